"""Datasets in the store: prepared once, found again by their digest, refused with every problem at once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.data.dataset import DatasetFiles, load, outline, prepare
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


def test_rows_that_name_their_side_have_it(tmp_path: Path, store: Workspace) -> None:
    sides = ["train", "train", "Test", "validation"]
    rows = [row | {"split": sides[i % 4]} for i, row in enumerate(rows_of(40))]
    asked = {"messages": rows[2]["messages"], "split": "train"}
    heard: list[str] = []
    dataset = prepare(store, section(write_jsonl(tmp_path / "a.jsonl", [*rows, asked])), CHAT, heard.append)
    assert (dataset.train_rows, dataset.held_out_rows, dataset.leaked_rows) == (20, 20, 1)
    train, held_out = contents(load(store, dataset.digest))
    assert train == [{"messages": row["messages"]} for row in rows if row["split"] == "train"]
    assert len(held_out) == 20
    assert heard == [
        f"{tmp_path / 'a.jsonl'}: the column 'split' names the side of each row: 21 train, 10 Test, 10 validation"
    ]


def test_sides_that_cannot_be_kept_are_said_or_refused(tmp_path: Path, store: Workspace) -> None:
    rows = [row | {"split": "test" if i < 5 else "train"} for i, row in enumerate(rows_of(40))]
    odd = write_jsonl(tmp_path / "odd.jsonl", [*rows[:-1], rows[-1] | {"split": "later"}])
    heard: list[str] = []
    assert prepare(store, section(odd), CHAT, heard.append).held_out_rows != 5
    assert "holds 5 row(s) out, and 1 row(s) name no side: it is not used" in heard[-1]
    assert any("not used: the column(s) 'split'" in each for each in heard)
    whole = write_jsonl(tmp_path / "whole.jsonl", rows[:5])
    prepare(store, section(whole), CHAT, heard.append)
    assert "none is to be trained on" in heard[-1]
    path, other = write_jsonl(tmp_path / "a.jsonl", rows), write_jsonl(tmp_path / "b.jsonl", rows_of(50)[40:])
    with pytest.raises(DataError, match=r"data\.held_out is given: remove these rows"):
        prepare(store, section(path, held_out=str(other)), CHAT)
    rare = write_jsonl(tmp_path / "rare.jsonl", [rows[0], *rows[5:]])
    with pytest.raises(DataError, match="none of the 3 chosen rows is held out"):
        prepare(store, section(rare, max_rows=3), CHAT)
    files = [write_jsonl(tmp_path / f"{i}.jsonl", part) for i, part in enumerate((rows[:5], rows[5:]))]
    dataset = prepare(store, section(files[0]).model_copy(update={"train": [str(file) for file in files]}), CHAT)
    assert (dataset.train_rows, dataset.held_out_rows) == (35, 5), "one side a file"


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


def test_doubtful_labels_and_a_lopsided_split_are_said(tmp_path: Path, store: Workspace) -> None:
    cells = ["配送", "品質", "配送、品質", "合計"]
    rows = [{"text": f"t {i}", "label": cells[i % 3]} for i in range(30)] + [{"text": "合計", "label": cells[3]}]
    rows += [{"text": "t 0", "label": "品質"}]
    notices = " ".join(outline(store, section(write_jsonl(tmp_path / "a.jsonl", rows)), CLASSIFY).notices)
    assert "each of '配送、品質' seems to be several labels" in notices
    assert "1 label(s) have fewer than 3 rows, and may have none held out: '合計'" in notices
    assert "1 text(s) have several labels" in notices
    few = [{"text": f"t {i % 3}", "label": "xy"[i % 3 % 2]} for i in range(30)]
    found = outline(store, section(write_jsonl(tmp_path / "b.jsonl", few)), CLASSIFY)
    assert found.notices == (
        f"{found.dataset.held_out_rows} of 30 rows are held out, more than data.held_out_fraction (10%): rows with one "
        "input stay together, and each label has one",
    )
    plain = [{"text": f"t {i}", "label": label} for i, label in enumerate(["N/A", "A", "B"] * 20)]
    assert outline(store, section(write_jsonl(tmp_path / "c.jsonl", plain)), CLASSIFY).notices == ()


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
    with pytest.raises(DataError, match="has no files"):
        prepare(store, section(tmp_path), CHAT)
    with pytest.raises(DataError, match="no rows at s3://"):
        prepare(store, section(store.uri("files/nothing.jsonl")), CHAT)


def test_a_column_the_task_does_not_have(tmp_path: Path, store: Workspace) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(3))
    with pytest.raises(DataError, match="did you mean 'messages'") as caught:
        prepare(store, section(path, columns={"message": "chat"}), CHAT)
    assert "data.columns" in str(caught.value)


MAIL = "taro.yamada@example.co.jp"


def with_mail(count: int) -> list[Row]:
    """Rows of which the first three hold an address."""
    rows = [{"prompt": f"質問 {i}", "completion": f"答え {i}"} for i in range(count)]
    return [row | ({"completion": f"{MAIL} まで"} if i < 3 else {}) for i, row in enumerate(rows)]


def test_personal_data_is_redacted_left_out_or_refused(tmp_path: Path, store: Workspace) -> None:
    path, notes = write_jsonl(tmp_path / "a.jsonl", with_mail(40)), list[str]()
    reported = prepare(store, section(path), CHAT, notes.append)
    assert "3 row(s) seem to hold personal data or secrets, which a model can repeat: email 3" in notes[-1]
    assert reported == prepare(store, section(path, personal_data="report"), CHAT)

    policy = section(path, personal_data={"email": "redact"})
    assert outline(store, policy, CHAT).dataset.train_rows == reported.train_rows
    assert not store.exists("datasets/placeholder-salt.json")
    redacted = prepare(store, policy, CHAT, notes.append)
    assert "(3 redacted)" in notes[-1]
    text = json.dumps(contents(load(store, redacted.digest)), ensure_ascii=False)
    assert MAIL not in text
    assert len(set(re.findall(r"\[EMAIL_\w+\]", text))) == 1
    assert prepare(store, policy, CHAT) == redacted

    dropped = prepare(store, section(path, personal_data={"email": "drop"}), CHAT, notes.append)
    assert dropped.train_rows + dropped.held_out_rows == 37
    assert "(3 left out)" in notes[-1]
    with pytest.raises(DataError, match="3 row\\(s\\) hold email") as refused:
        prepare(store, section(path, personal_data="refuse"), CHAT)
    assert refused.value.details[0] == "row 1: messages[1].content: email (25 characters)"


def test_notices_are_passed_on(tmp_path: Path, store: Workspace) -> None:
    notes: list[str] = []
    rows = [{"text": f"t {i}", "label": ["Good", "good", "bad"][i % 3], "id": i} for i in range(60)]
    prepare(store, section(write_jsonl(tmp_path / "a.jsonl", rows)), CLASSIFY, notes.append)
    assert any("not used: the column(s) 'id'" in note for note in notes)
    assert "the labels 'Good', 'good' differ in case alone, and count as 2" in notes
