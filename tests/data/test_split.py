"""The split: shares and labels hold, groups stay whole, no old row moves, and the order of the rows changes nothing."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.data.row_arrays import digests_of, short_keys
from ray_jobs.data.split import (
    FEWEST,
    LEAKED,
    NO_SIDE,
    SIDES,
    STRADDLING,
    TEST,
    TRAIN,
    VALIDATION,
    Rows,
    choose,
    input_digest,
    joined,
    row_digest,
    side_named,
    split,
)
from ray_jobs.errors import DataError
from ray_jobs.spec.split import Shares, SplitSection

SHARES = SplitSection(ratio="8:1:1").shares(0)


def rows_of(
    inputs: list[str],
    labels: list[str | None] | None = None,
    *,
    given: list[int] | None = None,
    before: list[int] | None = None,
    groups: list[int] | None = None,
    times: list[float] | None = None,
) -> Rows:
    """Rows with these inputs; equal inputs, and equal `groups`, are one group."""
    keys = short_keys(digests_of([row_digest(each) for each in inputs]))
    same = [keys.astype(np.int64), *([np.array(groups, dtype=np.int64)] if groups is not None else [])]
    none = [NO_SIDE] * len(inputs)
    return Rows(
        keys=keys,
        groups=joined(same),
        labels=labels if labels is not None else [None] * len(inputs),
        given=np.array(given or none, dtype=np.int64),
        before=np.array(before or none, dtype=np.int64),
        times=None if times is None else np.array(times),
    )


INPUTS = st.lists(st.text(max_size=3), min_size=1, max_size=60)


@given(INPUTS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(inputs: list[str], rng: random.Random) -> None:
    labels: list[str | None] = [each[:1] for each in inputs]
    order = list(range(len(inputs)))
    rng.shuffle(order)
    try:
        sides = split(rows_of(inputs, labels), SHARES).sides
    except DataError:
        with pytest.raises(DataError):
            split(rows_of([inputs[i] for i in order], [labels[i] for i in order]), SHARES)
        return
    again = split(rows_of([inputs[i] for i in order], [labels[i] for i in order]), SHARES).sides
    assert [int(sides[i]) for i in order] == again.tolist()
    of_input: dict[str, set[int]] = {}
    for each, side in zip(inputs, sides.tolist(), strict=True):
        of_input.setdefault(each, set()).add(side)
    assert all(len(found) == 1 for found in of_input.values()), "one input, one side"


@given(st.integers(500, 900), st.sampled_from(["7:1:2", "6:2:2", "8:1:1", "18:1:1"]), st.integers(1, 6))
def test_shares_hold_within_two_points_from_500_rows_on(rows: int, ratio: str, labels: int) -> None:
    shares = SplitSection(ratio=ratio).shares(rows)
    sides = split(rows_of([f"r{i}" for i in range(rows)], [str(i % labels) for i in range(rows)]), shares).sides
    counts = np.bincount(sides, minlength=len(SIDES)) / rows
    assert np.all(np.abs(counts - np.array(shares)) < 0.02)


def test_every_label_with_three_inputs_is_on_every_side() -> None:
    labels = ["common"] * 300 + ["rare"] * FEWEST + ["alone"]
    found = split(rows_of([f"r{i}" for i in range(len(labels))], list(labels)), SHARES)
    sides = [Counter(labels[i] for i in found.rows(side)) for side in (TRAIN, VALIDATION, TEST)]
    assert [each["rare"] for each in sides] == [1, 1, 1]
    assert sides[TRAIN]["alone"] == 1
    assert not found.shared


@pytest.mark.parametrize("seed", range(20))
def test_rows_that_are_added_move_no_old_row_and_the_shares_hold(seed: int) -> None:
    rng = random.Random(seed)
    inputs = [f"r{i}" for i in range(rng.randint(30, 600))]
    labels = [rng.choice("aab") for _ in inputs]
    groups = [i // rng.choice((1, 1, 4)) for i in range(len(inputs))]
    sides = split(rows_of(inputs, list(labels), groups=groups), SHARES).sides.tolist()
    more = [f"n{seed}.{i}" for i in range(rng.randint(1, 400))]
    before = [*sides, *[NO_SIDE] * len(more)]
    groups += [rng.choice(groups) if rng.random() < 0.2 else 10_000 + i for i in range(len(more))]
    labels += [rng.choice("aab") for _ in more]
    rows = rows_of([*inputs, *more], list(labels), before=before, groups=groups)
    after = split(rows, SHARES).sides
    assert after.tolist()[: len(inputs)] == sides
    assert STRADDLING not in after, "no group had two sides"
    for group in np.unique(rows.groups):
        assert len(set(after[rows.groups == group].tolist())) == 1, "no group straddles"
    if len(after) >= 500:
        assert np.all(np.abs(np.bincount(after, minlength=3) / len(after) - np.array(SHARES)) < 0.02)


def test_a_new_row_between_two_sides_is_left_out() -> None:
    inputs = ["a", "b", "c", "d", "new"]
    before = [TRAIN, VALIDATION, TEST, TRAIN, NO_SIDE]
    linked = rows_of(inputs, before=before, groups=[1, 2, 3, 4, 2])
    assert split(linked, SHARES).sides.tolist() == [*before[:4], VALIDATION]
    torn = Rows(**{**vars(linked), "groups": np.array([1, 2, 2, 4, 2])})
    assert split(torn, SHARES).sides.tolist() == [*before[:4], STRADDLING]


def test_rows_like_those_given_to_another_side_leak() -> None:
    inputs = ["a", "b", "c", "x", "x", "y", "y"]
    given = [NO_SIDE, NO_SIDE, NO_SIDE, NO_SIDE, VALIDATION, VALIDATION, TEST]
    sides = split(rows_of(inputs, given=given), Shares(1.0, 0.0, 0.0)).sides
    assert sides.tolist() == [TRAIN, TRAIN, TRAIN, LEAKED, VALIDATION, LEAKED, TEST]
    with pytest.raises(DataError, match="all 1 training rows are held out too"):
        split(rows_of(["x", "x"], given=[NO_SIDE, TEST]), Shares(1.0, 0.0, 0.0))
    with pytest.raises(DataError, match="all 1 rows for validation have inputs of test rows"):
        split(rows_of(["a", "x", "x"], given=[NO_SIDE, VALIDATION, TEST]), Shares(1.0, 0.0, 0.0))


def test_the_newest_rows_are_tested() -> None:
    rng = random.Random(0)
    times = [float(i) for i in range(200)]
    rng.shuffle(times)
    sides = split(rows_of([f"r{i}" for i in range(200)], times=times), SHARES).sides
    ordered = sides[np.argsort(times)]
    assert ordered.tolist() == sorted(ordered.tolist())
    assert np.bincount(sides).tolist() == [160, 20, 20]


def test_few_rows_share_one_side_or_are_refused() -> None:
    found = split(rows_of(["a", "b"]), SHARES)
    assert found.shared
    assert sorted(found.sides.tolist()) == [TRAIN, VALIDATION]
    with pytest.raises(DataError, match="the 2 rows have one input, so that none can be held out"):
        split(rows_of(["a", "a"]), SHARES)
    with pytest.raises(DataError, match="one input a label"):
        split(rows_of(["a", "b"], ["x", "y"]), SHARES)
    with pytest.raises(DataError, match="every one is left out"):
        split(rows_of([]), SHARES)


@given(st.lists(st.text(max_size=4).map(row_digest), min_size=1, max_size=60), st.integers(1, 60))
def test_chosen_rows_are_the_same_in_any_order(digests: list[bytes], max_rows: int) -> None:
    chosen = [digests[i] for i in choose(digests_of(digests), max_rows)]
    backwards = digests[::-1]
    assert len(chosen) == min(max_rows, len(digests))
    assert Counter(chosen) == Counter(backwards[i] for i in choose(digests_of(backwards), max_rows))


def test_rows_that_share_any_group_are_one_group() -> None:
    found = joined([np.array([1, 1, 2, 3, 4]), np.array([7, 8, 8, 9, 9])])
    assert len(set(found[:3].tolist())) == len(set(found[3:].tolist())) == 1
    assert found[0] != found[4]


def test_twins_in_width_case_and_white_space_have_one_digest() -> None:
    assert input_digest("ＡＢＣ  テスト\n") == input_digest("abc ﾃｽﾄ")
    assert input_digest("abc") != input_digest("abd")


def test_names_of_sides() -> None:
    assert [side_named(each) for each in ("Train", " test ", "val", "dev", "later", 3, None)] == [
        TRAIN, TEST, VALIDATION, VALIDATION, None, None, None,
    ]  # fmt: skip
