"""The split: equal rows are on one side, in any order of the file and whatever rows are added."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.data.split import choose, input_digest, is_held_out, row_digest, split, without_leak
from ray_jobs.errors import DataError

DIGESTS = st.lists(st.text(max_size=4).map(row_digest), min_size=1, max_size=60)
FRACTIONS = st.floats(0.01, 0.99)


@given(DIGESTS, FRACTIONS, st.randoms(use_true_random=False))
def test_equal_rows_share_a_side_in_any_order(digests: list[bytes], fraction: float, rng: random.Random) -> None:
    shuffled = list(digests)
    rng.shuffle(shuffled)
    try:
        train_rows, held_out_rows = split(digests, [None] * len(digests), range(len(digests)), fraction)
    except DataError:
        with pytest.raises(DataError):
            split(shuffled, [None] * len(shuffled), range(len(shuffled)), fraction)
        return
    _, again = split(shuffled, [None] * len(shuffled), range(len(shuffled)), fraction)
    held_out = [digests[i] for i in held_out_rows]
    train = [digests[i] for i in train_rows]
    assert not set(held_out) & set(train)
    assert Counter(held_out) == Counter(shuffled[i] for i in again)
    assert Counter(held_out) + Counter(train) == Counter(digests)
    assert train_rows == sorted(train_rows)


@given(DIGESTS, DIGESTS, FRACTIONS)
def test_rows_that_are_added_move_no_other_row(digests: list[bytes], more: list[bytes], fraction: float) -> None:
    before = {digest: is_held_out(digest, fraction) for digest in digests}
    after = {digest: is_held_out(digest, fraction) for digest in digests + more}
    assert before.items() <= after.items()


@given(DIGESTS, st.integers(1, 60))
def test_chosen_rows_are_the_same_in_any_order(digests: list[bytes], max_rows: int) -> None:
    chosen = [digests[i] for i in choose(digests, max_rows)]
    backwards = digests[::-1]
    assert len(chosen) == min(max_rows, len(digests))
    assert Counter(chosen) == Counter(backwards[i] for i in choose(backwards, max_rows))


def test_a_small_choice_is_split_like_the_whole() -> None:
    digests = [row_digest(f"row {i}") for i in range(20_000)]
    train, held_out = split(digests, [None] * 20_000, choose(digests, 2_000), 0.1)
    assert 150 < len(held_out) < 250
    assert len(train) + len(held_out) == 2_000


def test_rows_of_one_input_are_not_split() -> None:
    rows = [row_digest("the same")] * 10
    with pytest.raises(DataError, match="have one input"):
        split(rows, [None] * 10, range(10), 0.5)
    with pytest.raises(DataError, match="held out too"):
        without_leak(rows, range(10), set(rows))


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abcd")), min_size=2, max_size=60), st.floats(0.01, 0.99))
def test_every_label_is_trained_and_those_with_three_inputs_are_held_out_too(
    rows: list[tuple[int, str]], fraction: float
) -> None:
    rows = [(number if label != "d" else 99, label) for number, label in rows]  # d: one input, many times
    rows = [(number + 100 * "abcd".index(label), label) for number, label in rows]  # an input has one label
    inputs, labels = [row_digest(str(number)) for number, _ in rows], [label for _, label in rows]
    if len(set(inputs)) == len(set(labels)):
        with pytest.raises(DataError, match="have one input"):
            split(inputs, labels, range(len(rows)), fraction)
        return
    train, held_out = split(inputs, labels, range(len(rows)), fraction)
    assert sorted(train + held_out) == list(range(len(rows)))
    assert not {inputs[i] for i in train} & {inputs[i] for i in held_out}
    assert {labels[i] for i in train} == set(labels)
    assert held_out
    many = {label for label in labels if len({inputs[i] for i, other in enumerate(labels) if other == label}) >= 3}
    assert many <= {labels[i] for i in held_out}


def test_twins_are_one_input() -> None:
    twins = ["カメラは良い", "ｶﾒﾗは良い", "カメラは良い ", "カメラは 良い".replace(" ", "")]
    assert len(set(map(input_digest, twins))) == 1
    assert input_digest("Good  Camera") == input_digest("good camera")
    assert input_digest("good camera") != input_digest("good cameras")
