"""Datasets in the store: prepared once, found again by their digest, refused with every problem at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_jobs.data.dataset import DatasetFiles, load, prepare
from ray_jobs.data.ingest import canonical_line
from ray_jobs.errors import DataError
from ray_jobs.spec import DataSection
from ray_jobs.storage import Workspace
from ray_jobs.tasks.base import Row
from tests.data.builders import CHAT, CLASSIFY, rows_of, write_jsonl


def section(train: Path | str, **fields: Any) -> DataSection:
    return DataSection.model_validate({"train": str(train), **fields})


def contents(files: DatasetFiles) -> tuple[list[Row], list[Row]]:
    return files.train_rows, files.held_out_rows


def test_prepare_and_load(tmp_path: Path, store: Workspace) -> None:
    rows = rows_of(60)
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    dataset = prepare(store, section(path, held_out_fraction=0.2), CHAT)
    train, held_out = contents(load(store, dataset.digest))
    assert (len(train), len(held_out)) == (dataset.train_rows, dataset.held_out_rows)
    assert train == [row for row in rows if row in train]  # the order of the file
    assert sorted(map(canonical_line, train + held_out)) == sorted(map(canonical_line, rows))
    assert load(store, dataset.digest).dataset == dataset
    assert store.read_manifest(f"datasets/{dataset.digest}") is not None


def test_the_same_rows_from_another_source_are_the_same_dataset(tmp_path: Path, store: Workspace) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(40))
    store.upload_file(path, "files/data/b.jsonl")
    first = prepare(store, section(path), CHAT)
    again = prepare(store, section(store.uri("files/data/b.jsonl")), CHAT)
    assert again == first
    assert prepare(store, section(path, held_out_fraction=0.5), CHAT).digest != first.digest


def test_rows_held_out_are_dropped_from_training_and_counted(tmp_path: Path, store: Workspace) -> None:
    rows = rows_of(30)
    train = write_jsonl(tmp_path / "a.jsonl", [*rows, rows[0], rows[25]])
    held_out = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "質問 1", "completion": "答え 1"}, *rows[25:]])
    dataset = prepare(store, section(train, held_out=str(held_out)), CHAT)
    assert (dataset.train_rows, dataset.held_out_rows) == (25, 6)
    assert (dataset.leaked_rows, dataset.repeated_rows) == (7, 1)
    kept, set_aside = contents(load(store, dataset.digest))
    assert not {canonical_line(row) for row in kept} & {canonical_line(row) for row in set_aside}


def test_max_rows_takes_the_same_rows_each_time(tmp_path: Path, store: Workspace) -> None:
    rows = rows_of(80)
    first = prepare(store, section(write_jsonl(tmp_path / "a.jsonl", rows), max_rows=40), CHAT)
    again = prepare(store, section(write_jsonl(tmp_path / "b.jsonl", rows[::-1]), max_rows=40), CHAT)
    assert first.train_rows + first.held_out_rows == 40
    for side, backwards in zip(contents(load(store, first.digest)), contents(load(store, again.digest)), strict=True):
        assert side == backwards[::-1]


def test_labels_are_those_of_the_training_rows(tmp_path: Path, store: Workspace) -> None:
    rows = [{"text": f"文 {i}", "label": i % 3} for i in range(60)]
    dataset = prepare(store, section(write_jsonl(tmp_path / "a.jsonl", rows)), CLASSIFY)
    assert dataset.labels == ("0", "1", "2")


def test_labels_that_cannot_be_learnt(tmp_path: Path, store: Workspace) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [{"text": f"t {i}", "label": "xy"[i % 2]} for i in range(8)])
    held_out = write_jsonl(tmp_path / "b.jsonl", [{"text": "u", "label": "z"}, {"text": "v", "label": "x"}])
    with pytest.raises(DataError, match="only in held-out rows") as caught:
        prepare(store, section(train, held_out=str(held_out)), CLASSIFY)
    assert caught.value.details == ("'z'",)
    with pytest.raises(DataError, match="only the label 'x'"):
        prepare(
            store,
            section(write_jsonl(tmp_path / "c.jsonl", [{"text": f"t {i}", "label": "x"} for i in range(50)])),
            CLASSIFY,
        )


def test_problems_of_both_files_are_reported_at_once_and_nothing_is_stored(tmp_path: Path, store: Workspace) -> None:
    train = write_jsonl(
        tmp_path / "a.jsonl", [*rows_of(3), {"prompt": 3, "completion": "x"}, *[{"messages": []}] * 200]
    )
    held_out = write_jsonl(tmp_path / "b.jsonl", [{"messages": [{"role": "user", "content": "x"}]}])
    with pytest.raises(DataError) as caught:
        prepare(store, section(train, held_out=str(held_out)), CHAT)
    assert "202 problems in " in str(caught.value)
    assert f"{train} line 4: prompt must be" in caught.value.details[0]
    assert len(caught.value.details) == 101
    assert caught.value.details[-1] == "+102 more"
    assert store.list_dirs("datasets") == []


def test_missing_files(tmp_path: Path, store: Workspace) -> None:
    with pytest.raises(DataError, match=r"missing\.jsonl does not exist"):
        prepare(store, section(tmp_path / "missing.jsonl"), CHAT)
    with pytest.raises(DataError, match="is a directory"):
        prepare(store, section(tmp_path), CHAT)
    with pytest.raises(DataError, match="no rows at s3://"):
        prepare(store, section(store.uri("files/nothing.jsonl")), CHAT)


def test_a_column_the_task_does_not_have(tmp_path: Path, store: Workspace) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(3))
    with pytest.raises(DataError, match="did you mean 'messages'") as caught:
        prepare(store, section(path, columns={"message": "chat"}), CHAT)
    assert "data.columns" in str(caught.value)
