"""What the encoding says of rows that it leaves out."""

from __future__ import annotations

from typing import Any

from ray_jobs.data.encoding import Kept, encode_rows
from ray_jobs.tasks.base import Example, Row
from ray_jobs.tasks.text_classification import TextClassification


class Letters(TextClassification):
    """A token for each letter."""

    def encode(self, row: Row, processor: Any, labels: Any) -> list[Example]:
        del processor
        return [Example(tuple(map(ord, row["text"])), (labels.index(row["label"]),))]


def sentences(rows: list[Row]) -> list[str]:
    encoded, kept = encode_rows(rows, Letters(), None, ["bad", "good"], max_tokens=3, too_long="drop", source="train")
    assert len(encoded) == len(kept.kept)
    return kept.sentences("train")


def test_rows_and_labels_without_rows_are_named() -> None:
    rows = [{"text": "abc", "label": "good"}] * 300
    assert sentences(rows) == []
    long = [{"text": "abcd", "label": "good"}, {"text": "abcd", "label": "bad"}]
    assert sentences([*rows, *long]) == [
        "2 of 302 train rows are left out: too long, or nothing in them is trained",
        "no train row of the label 'bad' is left",
    ]


def test_a_row_of_several_examples_is_one_row() -> None:
    assert Kept(rows=2, kept=[0, 0, 1]).sentences("train") == []
    assert Kept(rows=3, kept=[0, 0, 1]).sentences("test")[0].startswith("1 of 3 test rows")
