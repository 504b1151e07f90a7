"""Datasets in the store: prepared once, found again by their digest, refused with every problem at once."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.data import versions
from ray_jobs.data.dataset import Dataset, DatasetFiles, load, report_of
from ray_jobs.data.ingest import canonical_line
from ray_jobs.data.prepare import outline, prepare
from ray_jobs.data.split import SIDES
from ray_jobs.data.version_diff import version_diff
from ray_jobs.errors import DataError, ObjectNotFound
from ray_jobs.spec import DataSection
from ray_jobs.storage import Workspace
from ray_jobs.tasks.base import Row
from tests.data.builders import CHAT, CLASSIFY, chat_row, rows_of, write_jsonl


def section(train: Path | str, **fields: Any) -> DataSection:
    return DataSection.model_validate({"train": str(train), **fields})


def contents(files: DatasetFiles) -> tuple[list[Row], list[Row]]:
    """The rows to train on, and the others."""
    return files.train_rows, [*files.validation_rows, *files.test_rows]


def not_trained(dataset: Dataset) -> int:
    return dataset.validation_rows + dataset.test_rows


def test_prepare_and_load(tmp_path: Path, store: Workspace) -> None:
    rows = rows_of(60)
    dataset = prepare(store, section(write_jsonl(tmp_path / "a.jsonl", rows), split="6:2:2"), CHAT)
    files = load(store, dataset.digest)
    sides = [files.train_rows, files.validation_rows, files.test_rows]
    assert [len(side) for side in sides] == [36, 12, 12]
    lines = [list(map(canonical_line, side)) for side in sides]
    assert sorted(line for side in lines for line in side) == sorted(map(canonical_line, rows))
    assert files.dataset == dataset
    again = prepare(store, section(write_jsonl(tmp_path / "b.jsonl", rows[::-1]), split="6:2:2"), CHAT)
    assert again == dataset, "another order of the rows is the same dataset, byte for byte"


def test_the_sides_of_the_version_before_stay(tmp_path: Path, store: Workspace) -> None:
    data = section(write_jsonl(tmp_path / "a.jsonl", rows_of(60)))
    first = prepare(store, data, CHAT, name="faq")
    assert versions.record(store, "faq", data, first, "job-1").label == "faq@1"
    more = section(
        write_jsonl(tmp_path / "b.jsonl", [chat_row(f"別の質問 {i}", "はい") for i in range(40)] + rows_of(60))
    )
    second = prepare(store, more, CHAT, name="faq")
    assert versions.record(store, "faq", more, second, "job-2").label == "faq@2"
    assert versions.record(store, "faq", more, second, "job-3").job_id == "job-2", "the same rows are no new version"
    changes = version_diff(store, "faq@1", "faq")
    assert sum(each.moved for each in changes.sides.values()) == changes.gone == 0
    assert sum(each.new for each in changes.sides.values()) == 40
    notes: list[str] = []
    prepare(store, section(tmp_path / "b.jsonl", split="6:2:2"), CHAT, notes.append, name="faq")
    assert "data.split is another than that of faq@2: every row gets a new side" in notes
    with pytest.raises(ObjectNotFound, match="no dataset faq@3; faq has 1, 2"):
        versions.resolve(store, "faq@3")


def test_near_duplicates_are_on_one_side(tmp_path: Path, store: Workspace) -> None:
    words = [
        "配送",
        "返品",
        "交換",
        "注文",
        "変更",
        "住所",
        "電話",
        "領収書",
        "在庫",
        "予約",
        "支払い",
        "割引",
        "会員",
        "解約",
        "登録",
    ]
    texts = [
        f"{a}と{b}の手続きについて、{c}の場合はどうすればよいですか" for a in words for b in words for c in words[:3]
    ]
    rows = [chat_row(text, "はい") for text in texts[::7]] + [chat_row(text + "。", "いいえ") for text in texts[::7]]
    dataset = prepare(store, section(write_jsonl(tmp_path / "a.jsonl", rows)), CHAT)
    files, of_text = load(store, dataset.digest), dict[str, set[str]]()
    for side in ("train", "validation", "test"):
        for row in files.rows(side):
            of_text.setdefault(row["messages"][0]["content"].rstrip("。"), set()).add(side)
    assert dataset.train_rows + not_trained(dataset) == len(rows)
    assert all(len(sides) == 1 for sides in of_text.values())


def test_groups_stay_together_and_the_newest_are_tested(tmp_path: Path, store: Workspace) -> None:
    rows = [row | {"user": i // 5, "at": f"2026/{1 + i // 28}/{1 + i % 28} 9:05"} for i, row in enumerate(rows_of(300))]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    user_of = {canonical_line(CHAT.normalise({"messages": row["messages"]})): row["user"] for row in rows}
    files = load(store, prepare(store, section(path, split={"group": "user"}), CHAT).digest)
    users = [{user_of[canonical_line(row)] for row in files.rows(side)} for side in ("train", "validation", "test")]
    assert not users[0] & users[1] | users[1] & users[2] | users[0] & users[2]
    files = load(store, prepare(store, section(path, split={"time": "at", "group": "user"}), CHAT).digest)
    oldest, between, newest = (
        {user_of[canonical_line(row)] for row in files.rows(side)} for side in ("train", "validation", "test")
    )
    assert max(oldest) < min(between)
    assert max(between) < min(newest)
    rows[7]["at"] = "soon"
    with pytest.raises(DataError) as caught:
        prepare(store, section(write_jsonl(tmp_path / "b.jsonl", rows), split={"time": "at"}), CHAT)
    assert caught.value.details == (
        f"{tmp_path / 'b.jsonl'} line 8: no date or number in 'at', the column data.split.time",
    )
    with pytest.raises(DataError) as caught:
        prepare(store, section(path, split={"group": "usr"}), CHAT)
    assert "no row has a column 'usr', which data.split names; did you mean 'user'" in caught.value.details[0]


def test_cleaning_and_its_report(tmp_path: Path, store: Workspace) -> None:
    rows = [{"text": f"商品 {i} は{'良い' if i % 2 else '悪い'}", "label": "gb"[i % 2]} for i in range(60)]
    rows += [rows[0], {"text": "商品 1 は良い", "label": "g"}, {"text": "cafÃ© is good, trÃ¨s bon", "label": "b"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    untouched = prepare(store, section(path), CLASSIFY)
    assert untouched.train_rows + not_trained(untouched) == 63
    cleaned = prepare(store, section(path, clean="standard"), CLASSIFY)
    report = report_of(store, cleaned.digest)
    assert report is not None
    steps = {step.step: (step.action, step.rows) for step in report.steps if step.rows}
    assert steps == {"mojibake": ("change", 1), "exact_duplicates": ("drop", 1), "conflicts": ("report", 2)}
    assert report.read == 63
    assert cleaned.train_rows + not_trained(cleaned) == 62
    assert sum(side.rows for side in report.sides.values()) == sum(report.lengths.values()) == 62
    texts = json.dumps(contents(load(store, cleaned.digest)), ensure_ascii=False)
    assert "café is good, très bon" in texts
    listed = report.steps[0].samples[0].row
    drop = tmp_path / "drop.txt"
    drop.write_text(f"{listed}  # by hand\n", encoding="utf-8")
    dropped = prepare(store, section(path, clean={"drop_rows": str(drop)}), CLASSIFY)
    assert dropped.train_rows + not_trained(dropped) == 62
    drop.write_text("0123456789abcdef\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"drop_rows has 1 id\(s\) that no row has"):
        prepare(store, section(path, clean={"drop_rows": str(drop)}), CLASSIFY)


def test_the_same_rows_from_another_source_are_the_same_dataset(tmp_path: Path, store: Workspace) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(40))
    store.upload_file(path, "files/data/b.jsonl")
    first = prepare(store, section(path), CHAT)
    again = prepare(store, section(store.uri("files/data/b.jsonl")), CHAT)
    assert again == first
    assert prepare(store, section(path, split="6:2:2"), CHAT).digest != first.digest


def test_rows_held_out_are_dropped_from_training_and_counted(tmp_path: Path, store: Workspace) -> None:
    rows = rows_of(30)
    train = write_jsonl(tmp_path / "a.jsonl", [*rows, rows[0], rows[25]])
    held_out = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "質問 1", "completion": "答え 1"}, *rows[25:]])
    dataset = prepare(store, section(train, held_out=str(held_out)), CHAT)
    assert dataset.validation_rows == 6
    assert (dataset.train_rows + dataset.test_rows, dataset.leaked_rows) == (25, 7)
    kept, set_aside = contents(load(store, dataset.digest))
    assert not {canonical_line(row) for row in kept} & {canonical_line(row) for row in set_aside}


def test_rows_that_name_their_side_have_it(tmp_path: Path, store: Workspace) -> None:
    sides = ["train", "train", "Test", "validation"]
    rows = [row | {"split": sides[i % 4]} for i, row in enumerate(rows_of(40))]
    asked = {"messages": rows[2]["messages"], "split": "train"}
    heard: list[str] = []
    dataset = prepare(store, section(write_jsonl(tmp_path / "a.jsonl", [*rows, asked])), CHAT, heard.append)
    assert (dataset.train_rows, dataset.validation_rows, dataset.test_rows, dataset.leaked_rows) == (20, 10, 10, 1)
    train, _ = contents(load(store, dataset.digest))
    wanted = [{"messages": row["messages"]} for row in rows if row["split"] == "train"]
    assert sorted(map(canonical_line, train)) == sorted(map(canonical_line, wanted))
    assert heard == [
        f"{tmp_path / 'a.jsonl'}: the column 'split' names the side of each row: 21 train, 10 Test, 10 validation"
    ]


def test_sides_that_cannot_be_kept_are_said_or_refused(tmp_path: Path, store: Workspace) -> None:
    rows = [row | {"split": "test" if i < 5 else "train"} for i, row in enumerate(rows_of(40))]
    odd = write_jsonl(tmp_path / "odd.jsonl", [*rows[:-1], rows[-1] | {"split": "later"}])
    heard: list[str] = []
    assert not_trained(prepare(store, section(odd), CHAT, heard.append)) != 5
    assert "sets 5 row(s) aside, and 1 row(s) name no side: it is not used" in heard[-1]
    assert any("not used: the column(s) 'split'" in each for each in heard)
    whole = write_jsonl(tmp_path / "whole.jsonl", rows[:5])
    prepare(store, section(whole), CHAT, heard.append)
    assert any("none is to be trained on" in each for each in heard)
    path, other = write_jsonl(tmp_path / "a.jsonl", rows), write_jsonl(tmp_path / "b.jsonl", rows_of(50)[40:])
    with pytest.raises(DataError, match=r"data\.held_out is given: remove these rows"):
        prepare(store, section(path, held_out=str(other)), CHAT)
    files = [write_jsonl(tmp_path / f"{i}.jsonl", part) for i, part in enumerate((rows[:5], rows[5:]))]
    dataset = prepare(store, section(files[0]).model_copy(update={"train": [str(file) for file in files]}), CHAT)
    assert dataset.test_rows == 5, "one side a file"
    assert dataset.train_rows + dataset.validation_rows == 35


def test_max_rows_takes_the_same_rows_each_time(tmp_path: Path, store: Workspace) -> None:
    rows = rows_of(80)
    first = prepare(store, section(write_jsonl(tmp_path / "a.jsonl", rows), max_rows=40), CHAT)
    again = prepare(store, section(write_jsonl(tmp_path / "b.jsonl", rows[::-1]), max_rows=40), CHAT)
    assert first.train_rows + not_trained(first) == 40
    assert again == first


def test_a_mixture_has_limits_and_weights(tmp_path: Path, store: Workspace) -> None:
    for name, count in (("faq", 30), ("other", 200), ("half", 200)):
        write_jsonl(tmp_path / f"{name}.jsonl", [chat_row(f"{name} {i} {i * i}", "a") for i in range(count)])
    mixture = [
        {"source": str(tmp_path / "faq.jsonl"), "weight": 3},
        {"source": str(tmp_path / "other.jsonl"), "max_rows": 50},
        {"source": str(tmp_path / "half.jsonl"), "weight": 0.5},
    ]
    notices: list[str] = []
    data = DataSection.model_validate({"train": mixture, "split": "8:1:1"})
    files = load(store, prepare(store, data, CHAT, notices.append).digest)
    counts = {side: Counter(row["messages"][0]["content"].split()[0] for row in files.rows(side)) for side in SIDES}
    sums = {name: sum(each[name] for side, each in counts.items() if side != "train") for name in counts["train"]}
    assert counts["train"]["faq"] == 3 * (30 - sums["faq"])
    assert counts["train"]["other"] + sums["other"] == 50
    assert 0.3 < counts["train"]["half"] / (200 - sums["half"]) < 0.7
    assert files.dataset.repeated_rows == 0, "copies by weight are no repetitions"
    assert sum("weight" in notice for notice in notices) == 2


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
    few = [{"text": f"t {i % 6}", "label": "xy"[i % 2]} for i in range(30)]
    found = outline(store, section(write_jsonl(tmp_path / "b.jsonl", few)), CLASSIFY)
    assert found.notices == (
        "20 of 30 rows are not trained on, more than data.split asks for (20%): rows that belong together stay "
        "together, and each label has rows on every side",
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
    assert dropped.train_rows + not_trained(dropped) == 37
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


def test_a_system_message_or_a_template_makes_no_duplicates(tmp_path: Path, store: Workspace) -> None:
    system = {
        "role": "system",
        "content": "あなたは通販の問い合わせに答える担当者です。丁寧に、短く答えてください。" * 5,
    }
    rows = [{"messages": [system, *row["messages"]]} for row in rows_of(100)]
    notes: list[str] = []
    dataset = prepare(store, section(write_jsonl(tmp_path / "a.jsonl", rows)), CHAT, notes.append)
    assert (dataset.train_rows, dataset.validation_rows, dataset.test_rows, notes) == (80, 10, 10, [])
    asked = "Classify the following review as good or bad, in one word: it is number"
    texts = [chat_row(f"{asked} {i}", "good") for i in range(100)]
    dataset = prepare(store, section(write_jsonl(tmp_path / "b.jsonl", texts)), CHAT, notes.append)
    assert (dataset.train_rows, dataset.validation_rows, dataset.test_rows) == (80, 10, 10)
    assert any("rows are alike, as if of one template" in note for note in notes)


def test_a_row_without_text_after_its_cleaning_is_left_out(tmp_path: Path, store: Workspace) -> None:
    rows = [{"text": f"文 {i}", "label": "xy"[i % 2]} for i in range(20)] + [{"text": "\u200b\u200b", "label": "x"}]
    path, notes = write_jsonl(tmp_path / "a.jsonl", rows), list[str]()
    dataset = prepare(store, section(path, clean={"invisible": "remove"}), CLASSIFY, notes.append)
    assert dataset.train_rows + not_trained(dataset) == 20
    assert "1 row(s) have no text left after the cleaning, and are left out" in notes
