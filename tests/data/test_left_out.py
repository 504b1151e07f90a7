"""Rows that are too long to be trained are counted, and a label that loses all of its rows is named."""

from __future__ import annotations

from ray_jobs.data.encoding import sentences_of_left_out
from tests.data.builders import CHAT, CLASSIFY, chat_row


def test_rows_and_labels_that_are_left_out_are_said() -> None:
    rows = [{"text": f"t {i}", "label": label} for i, label in enumerate("aabbc")]
    assert sentences_of_left_out(rows, [0, 1, 2, 3, 4], CLASSIFY, "train") == []
    assert sentences_of_left_out(rows, [0, 0, 2, 3], CLASSIFY, "train") == [
        "2 of 5 train rows are left out: too long, or nothing in them is trained",
        "no train row of the label 'c' is left",
    ]
    assert sentences_of_left_out([chat_row("q", "a")] * 3, [1], CHAT, "held-out") == [
        "2 of 3 held-out rows are left out: too long, or nothing in them is trained"
    ]
