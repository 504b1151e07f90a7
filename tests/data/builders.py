"""Rows and files of rows for the tests of this room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
