"""Rows and files of rows for the tests of this room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray_jobs.data.preparation import DuplicateCluster, Preparation, Sample, Side, StepReport
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import Row

CHAT, CLASSIFY = TASKS["chat"], TASKS["text_classification"]


def chat_row(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def rows_of(count: int) -> list[Row]:
    return [chat_row(f"質問 {i}", f"答え {i}") for i in range(count)]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def make_preparation(**changes: Any) -> Preparation:
    """A report in which there is nothing to fix: two labels with enough rows on every side, and steps that ran.

    `changes`: fields of the report.
    """
    sides = {
        "train": Side(rows=320, labels={"spam": 160, "ham": 160}),
        "validation": Side(rows=40, labels={"spam": 20, "ham": 20}),
        "test": Side(rows=40, labels={"spam": 20, "ham": 20}),
    }
    repaired = Sample(
        row="00112233445566aa", place="mails.csv line 12", before="CafÃ© au lait", after="Café au lait", why="UTF-8"
    )
    near = Sample(row="1234567890123456", place="mails.csv line 7", before="Win a prize now!", why="of a group of 3")
    fields: dict[str, Any] = {
        "task": "text_classification",
        "sources": ("mails.csv",),
        "read": 410,
        "sides": sides,
        "lengths": {32: 100, 64: 200, 256: 100},
        "steps": (
            StepReport(step="mojibake", action="change", rows=1, samples=(repaired,)),
            StepReport(step="near_duplicates", action="drop", rows=10, samples=(near,)),
            StepReport(step="personal_data", action="change", rows=3, detail={"email": 2, "phone": 1}),
        ),
        "clusters": (DuplicateCluster(rows=3, kept=1, texts=("Win a prize now!", "Win a prize now!!")),),
        "notices": ("mails.csv: read as CP1252",),
    }
    return Preparation(**(fields | changes))
