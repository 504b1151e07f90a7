"""The encode stage: one prompt setting for both sides of a dataset, recorded, and part of the key."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs.data.dataset import Dataset
from ray_jobs.errors import DataError
from ray_jobs.pipeline import stage_work
from ray_jobs.pipeline.outputs import BaseCopy, EncodedRows, Flow
from ray_jobs.storage import Workspace
from ray_jobs.tasks.base import PromptSetting
from tests.builders import make_spec
from tests.tasks.chat.families import templates, tokenizer_of
from tests.tasks.chat.shapes import Row, answer, user

PLAIN: list[Row] = [{"messages": [user(f"Question {i}?"), answer(f"Answer {i}.")]} for i in range(12)]
THOUGHT: Row = {"messages": [user("Why?"), answer("So.", reasoning_content="They ask why.")]}


def encoded(
    monkeypatch: pytest.MonkeyPatch, store: Workspace, directory: Path, family: str, rows: list[Row], day: int = 26
) -> EncodedRows:
    """The encode stage on a base of a tokenizer alone with the family's template, on a day of July 2026."""
    base, path = directory / family, directory / "rows.jsonl"
    if not base.exists():
        tokenizer_of(family, templates()[family], base)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = make_spec(base_model=str(base), data={"train": str(path), "max_tokens": 2048})
    notes: list[Any] = []
    job = SimpleNamespace(event=lambda *event: notes.append(event), id="a-job")
    context: Any = SimpleNamespace(
        store=store, show=lambda *_, **__: None, job=job, join_cluster_for=lambda _: None
    )  # fmt: skip
    flow = Flow(spec).with_output(Dataset, "", stage_work.make_dataset(Flow(spec), context))
    flow = flow.with_output(BaseCopy, str(base), BaseCopy(digest="b", name=family, key="bases/b"))
    monkeypatch.setattr(stage_work, "fetch_base", lambda *_: base)
    monkeypatch.setattr(Workspace, "now", lambda _: datetime(2026, 7, day, 23, tzinfo=UTC))
    found = stage_work.encode(flow, context, str(base))
    assert [text for _, text in notes if not text.startswith("data")] == found.prompts.notes()
    return found


def test_rows_encoded_on_two_days_are_two_trees_with_their_day(
    monkeypatch: pytest.MonkeyPatch, store: Workspace, tmp_path: Path
) -> None:
    first, again, next_day = (encoded(monkeypatch, store, tmp_path, "llama3_2", PLAIN, day=day) for day in (26, 26, 27))
    assert first == again
    assert first.key != next_day.key
    assert [str(each.prompts.today) for each in (first, next_day)] == ["2026-07-26", "2026-07-27"]
    assert "the template writes today's date: 2026-07-27" in next_day.as_text()


def test_rows_of_both_kinds_get_one_setting_and_a_template_without_a_date_none(
    monkeypatch: pytest.MonkeyPatch, store: Workspace, tmp_path: Path
) -> None:
    plain = encoded(monkeypatch, store, tmp_path, "qwen3_5_nothink", PLAIN)
    assert plain.prompts == PromptSetting()
    mixed = encoded(monkeypatch, store, tmp_path, "qwen3_5_nothink", [*PLAIN, THOUGHT])
    assert mixed.prompts == PromptSetting(switches={"enable_thinking": True})
    assert mixed.train_rows + mixed.validation_rows + mixed.test_rows == 13


def test_a_base_with_fewer_positions_than_max_tokens_gets_rows_of_its_own_length(
    monkeypatch: pytest.MonkeyPatch, store: Workspace, tmp_path: Path
) -> None:
    base = tmp_path / "llama3_2"
    tokenizer_of("llama3_2", templates()["llama3_2"], base)
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 256}))
    rows: list[Row] = [*PLAIN, {"messages": [user("Tell me all."), answer("word " * 400)]}]
    with pytest.raises(DataError, match="256"):
        encoded(monkeypatch, store, tmp_path, "llama3_2", rows)
    found = encoded(monkeypatch, store, tmp_path, "llama3_2", PLAIN)
    assert found.train_rows > 0
