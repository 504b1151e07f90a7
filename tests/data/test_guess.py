"""The task and the columns that a file suggests."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from ray_jobs.data.guess import guess, summarise
from ray_jobs.errors import DataError

TEXTS = [f"The parcel number {i} came late and the box was open." for i in range(30)]
ANSWERS = [f"We are sorry for parcel {i}; a new one is on its way." for i in range(30)]


def records(**columns: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


LABELS = ["late", "open", "other"] * 10
IDS = [str(i) for i in range(30)]


@pytest.mark.parametrize(
    ("columns", "task", "mapping"),
    [
        ({"text": TEXTS, "label": LABELS}, "text_classification", {}),
        ({"本文": TEXTS, "評価": LABELS}, "text_classification", {"text": "本文", "label": "評価"}),
        ({"id": IDS, "Review Text": TEXTS, "Sentiment": LABELS}, "text_classification",
         {"text": "Review Text", "label": "Sentiment"}),
        ({"番号": IDS, "お問い合わせ内容": TEXTS, "担当部署": LABELS}, "text_classification",
         {"text": "お問い合わせ内容", "label": "担当部署"}),
        ({"質問": TEXTS, "回答": ANSWERS, "カテゴリ": LABELS}, "chat", {"prompt": "質問", "completion": "回答"}),
        ({"記事": TEXTS, "要約": ANSWERS}, "chat", {"prompt": "記事", "completion": "要約"}),
        ({"a": IDS, "b": TEXTS, "c": LABELS}, "text_classification", {"text": "b", "label": "c"}),
        ({"a": TEXTS, "b": ANSWERS}, "chat", {"prompt": "a", "completion": "b"}),
        ({"messages": [[{"role": "user"}]] * 3}, "chat", {}),
        ({"conversations": [[{"from": "human"}]] * 3}, "chat", {}),
        ({"instruction": TEXTS, "input": TEXTS, "output": ANSWERS}, "chat", {}),
        ({"Instruction": ["Sum up."] * 30, "Input": TEXTS, "Output": ANSWERS}, "chat",
         {"prompt": "Instruction", "context": "Input", "completion": "Output"}),
        ({"指示": ["要約してください"] * 30, "入力": TEXTS, "出力": ANSWERS, "システム": IDS}, "chat",
         {"prompt": "指示", "context": "入力", "completion": "出力", "system": "システム"}),
        ({"入力": TEXTS, "出力": ANSWERS}, "chat", {"prompt": "入力", "completion": "出力"}),
        ({"本文": ["good", "bad", "so so"] * 10, "評価": LABELS}, "text_classification",
         {"text": "本文", "label": "評価"}),
        ({"本文": TEXTS[:2], "評価": LABELS[:2]}, "text_classification", {"text": "本文", "label": "評価"}),
        ({"本文": TEXTS, "評価": ["late"] * 30}, "text_classification", {"text": "本文", "label": "評価"}),
    ],
)  # fmt: skip
def test_the_columns_suggest_a_task(columns: dict[str, list[Any]], task: str, mapping: dict[str, str]) -> None:
    found = guess(summarise(records(**columns)), None, {})
    assert (found.task, dict(found.columns)) == (task, mapping)


def test_what_the_user_says_stays() -> None:
    columns = summarise(records(text=TEXTS, other=ANSWERS, label=LABELS, second=LABELS))
    found = guess(columns, "text_classification", {"text": "other", "label": "second"})
    assert dict(found.columns) == {"text": "other", "label": "second"}
    assert dict(guess(columns, "text_classification", {"label": "second"}).columns)["text"] == "text"
    with pytest.raises(DataError, match="no column 'secnd' for label: did you mean 'second'"):
        guess(columns, "text_classification", {"label": "secnd"})


@pytest.mark.parametrize(
    "columns",
    [
        {"a": LABELS, "b": LABELS},
        {"a": TEXTS, "b": LABELS, "c": LABELS[::-1]},
        {"n": IDS},
        {"context": TEXTS, "question": ANSWERS, "answers": [{"text": ["x"]}] * 30},  # SQuAD
        {"context": TEXTS, "other": ANSWERS},
        {"text": TEXTS, "role": ["prompter", "assistant"] * 15},  # OASST
    ],
)
def test_an_unclear_file_lists_its_columns(columns: dict[str, list[Any]]) -> None:
    with pytest.raises(DataError, match="not clear") as refused:
        guess(summarise(records(**columns)), None, {})
    assert len(refused.value.details) == len(columns)


def test_a_value_of_parquet_that_is_no_text_has_a_kind() -> None:
    (column,) = summarise(records(at=[datetime.date(2026, 1, 1)] * 3))
    assert (column.kind, column.may_be_text, column.may_be_label) == ("other", False, False)


def test_preferences_are_refused() -> None:
    with pytest.raises(DataError, match="preferences"):
        guess(summarise(records(prompt=TEXTS, chosen=ANSWERS, rejected=TEXTS)), None, {})
