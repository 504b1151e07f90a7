"""`kitae init` and `kitae data inspect`: from a file to a job file that is valid."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pytest
from click.testing import CliRunner, Result

from ray_jobs.__main__ import cli
from ray_jobs.errors import DataError, SpecError
from ray_jobs.spec import load_spec

Kitae = Callable[..., Result]


@pytest.fixture
def kitae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kitae:
    """Run a command in a directory with rows."""
    monkeypatch.chdir(tmp_path)
    with Path("reviews.csv").open("w", newline="") as file:
        rows = [
            (f"配送が遅い（{i}）。", "悪い") if i % 2 else (f"とても良い品です（{i}）。", "良い") for i in range(40)
        ]
        csv.writer(file).writerows([("本文", "評価", "店"), *((*row, "東京") for row in rows)])
    return lambda *arguments: CliRunner().invoke(cli, arguments)


def test_a_job_file_is_written_and_valid(kitae: Kitae) -> None:
    said = kitae("init", "reviews.csv").output
    spec = load_spec(Path("reviews.yaml"))
    assert (spec.name, spec.task) == ("reviews", "text_classification")
    assert spec.data.columns == {"text": "本文", "label": "評価"}
    assert (spec.data.train, spec.data.split_of(0).test, spec.data.too_long) == ("reviews.csv", 0.2, "truncate")
    assert spec.base_model == "intfloat/multilingual-e5-small"
    assert "labels: 悪い, 良い" in said
    assert "not used: the column(s) '店'" in said
    assert "kitae plan reviews.yaml" in said


def test_an_encoding_is_taken_and_written(kitae: Kitae) -> None:
    rows = "text,label\n" + "".join(f"本日{i}は晴天,{'xy'[i % 2]}\n" for i in range(20))
    Path("old.csv").write_bytes(rows.encode("euc_jp"))
    assert kitae("init", "old.csv", "--encoding", "euc_jp").exit_code == 0
    assert load_spec(Path("old.yaml")).data.encoding == "euc_jp"
    assert isinstance(kitae("data", "inspect", "old.csv", "--encoding", "euc").exception, DataError)


def test_a_job_file_is_not_overwritten_unless_forced(kitae: Kitae) -> None:
    Path("reviews.yaml").write_text("mine")
    refused = kitae("init", "reviews.csv")
    assert isinstance(refused.exception, SpecError)
    assert Path("reviews.yaml").read_text() == "mine"
    assert kitae("init", "reviews.csv", "--force", "--name", "other", "--base-model", "org/base").exit_code == 0
    assert (load_spec(Path("reviews.yaml")).name, load_spec(Path("reviews.yaml")).base_model) == ("other", "org/base")
    assert kitae("init", "reviews.csv", "-o", "second.yaml").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["nowhere.csv"], DataError, "does not exist"),
        (["."], DataError, "is a directory"),
        (["reviews.csv", "--task", "chats"], SpecError, "did you mean 'chat'"),
        (["reviews.csv", "--column", "text=本文"], SpecError, "needs --task"),
        (["reviews.csv", "--task", "chat", "--column", "txt=本文"], DataError, "data.columns"),
        (["reviews.csv", "--task", "text_classification", "--column", "text=本"], DataError, "no column '本'"),
        (["reviews.csv", "--name", "A B"], SpecError, "1 field"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(
    kitae: Kitae, arguments: list[str], error: type[Exception], said: str
) -> None:
    refused = kitae("init", *arguments)
    assert isinstance(refused.exception, error)
    assert said in str(refused.exception)
    assert not Path("reviews.yaml").exists()


def test_a_conversation_longer_than_a_pass_has_a_valid_job_file(kitae: Kitae) -> None:
    row = {"prompt": "q", "completion": "長" * 5000}
    Path("long.jsonl").write_text("".join(json.dumps(row | {"prompt": f"q{i}"}) + "\n" for i in range(5)))
    assert kitae("init", "long.jsonl").exit_code == 0
    spec = load_spec(Path("long.yaml"))
    assert spec.data.max_tokens == spec.training.micro_batch_tokens == 4096


def test_the_sheet_to_read_becomes_a_line_of_the_job_file(kitae: Kitae) -> None:
    book = openpyxl.Workbook()
    for month in ("1月", "2月"):
        sheet = book.create_sheet(month)
        for row in [("本文", "評価"), *[(f"{month}の感想 {i}", "良い" if i % 2 else "悪い") for i in range(20)]]:
            sheet.append(row)
    book.save("months.xlsx")
    refused = kitae("data", "inspect", "months.xlsx").exception
    assert "rows are in 2 sheets: '1月', '2月'" in refused.details[0]  # type: ignore[union-attr]
    assert "2月の感想 0" in kitae("data", "inspect", "months.xlsx", "--sheet", "2月").output
    assert kitae("init", "months.xlsx", "--sheet", "2月").exit_code == 0
    assert load_spec(Path("months.yaml")).data.sheet == "2月"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("text", "label"), *[(f"t{i}", "a") for i in range(20)]], "only the label 'a'"),
        ([("text", "label"), *[(f"t{i}", i) for i in range(20)]], "one input a label"),
        ([("prompt", "completion"), *[("q", f"a{i}") for i in range(20)]], "have one input"),
    ],
)
def test_inspect_lists_what_is_wrong_with_the_rows_together(
    kitae: Kitae, rows: list[tuple[object, ...]], said: str
) -> None:
    with Path("rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (problem,) = json.loads(kitae("data", "inspect", "rows.csv", "--json").output)["problems"]
    assert said in problem


def test_an_unclear_file_says_what_was_not_read(kitae: Kitae) -> None:
    Path("twice.csv").write_text("本文,評価,評価\n遅い,悪い,悪い\n")
    refused = kitae("data", "inspect", "twice.csv").exception
    assert "the header names '評価' twice" in refused.details[-1]  # type: ignore[union-attr]


def test_inspect_reads_a_bounded_part_of_long_rows(kitae: Kitae) -> None:
    rows = [{"prompt": f"q{i}", "completion": "x" * 1_000_000} for i in range(10)]
    Path("huge.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = json.loads(kitae("data", "inspect", "huge.jsonl", "--json").output)
    assert (found["whole"], found["rows"]) == (False, 5)


@pytest.mark.parametrize(
    ("name", "said"), [("new\nline.csv", "rename"), ("cut\udce3.csv", "rename"), ("link.csv", "a link to nowhere"),
                       ("pipe.csv", "no regular file")]
)  # fmt: skip
def test_a_path_that_cannot_be_read_says_why(kitae: Kitae, name: str, said: str) -> None:
    if name == "pipe.csv":
        os.mkfifo(name)
    elif name == "link.csv":
        Path(name).symlink_to("nowhere")
    else:
        Path(name).write_bytes(Path("reviews.csv").read_bytes())
    refused = kitae("init", name)
    assert isinstance(refused.exception, DataError)
    assert said in str(refused.exception)


def test_a_full_width_space_in_a_name_is_read(kitae: Kitae) -> None:
    Path("reviews.csv").rename("レビュー　一覧 (1).csv")
    assert kitae("init", "レビュー　一覧 (1).csv").exit_code == 0
    assert load_spec(Path("レビュー　一覧 (1).yaml")).data.train == "レビュー　一覧 (1).csv"


def test_a_folder_that_is_not_there_for_the_job_file(kitae: Kitae) -> None:
    refused = kitae("init", "reviews.csv", "-o", "nowhere/job.yaml")
    assert isinstance(refused.exception, SpecError)
    assert "cannot be written" in str(refused.exception)


def test_inspect_shows_columns_rows_and_the_guess(kitae: Kitae) -> None:
    shown = kitae("data", "inspect", "reviews.csv", "--rows", "2").output
    assert "とても良い品です（0）。" in shown
    assert "とても良い品です（2）。" not in shown
    assert "task text_classification, by the names of the columns" in shown
    found = json.loads(kitae("data", "inspect", "reviews.csv", "--json").output)
    assert (found["task"], found["columns"]) == ("text_classification", {"text": "本文", "label": "評価"})
    assert (found["rows"], found["whole"], found["problems"]) == (40, True, [])
    assert [column["name"] for column in found["file_columns"]] == ["本文", "評価", "店"]


def test_inspect_lists_what_is_wrong(kitae: Kitae) -> None:
    Path("bad.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "", "label": "y"}\n')
    assert "bad.jsonl line 2: text must be non-empty text" in kitae("data", "inspect", "bad.jsonl").output
    Path("empty.jsonl").write_text("")
    assert "it holds no rows" in kitae("data", "inspect", "empty.jsonl").exception.details  # type: ignore[union-attr]
