"""The batch plan: every row once an epoch, on any number of workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.spec import TrainingSection
from ray_jobs.training.batching import BatchPlan, split

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def make_plan(lengths: list[int], *, packed: bool = True, supervised: int | None = None, **settings: int) -> BatchPlan:
    training = TrainingSection.model_validate(
        {"batch_size": 5, "epochs": 2, "micro_batch_tokens": 64, "seed": 3, **settings}
    )
    counts = tuple(lengths) if supervised is None else (supervised,) * len(lengths)
    return BatchPlan(tuple(lengths), counts, training, packed)


@given(LENGTHS, st.integers(1, 7), st.booleans())
def test_every_epoch_trains_every_row_once(lengths: list[int], batch_size: int, packed: bool) -> None:
    plan = make_plan(lengths, batch_size=batch_size, packed=packed)
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        assert sorted(i for step in steps for i in plan.rows_of(step)) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 4), st.booleans())
def test_groups_divide_the_rows_evenly_and_stay_within_the_limit(
    lengths: list[int], workers: int, packed: bool
) -> None:
    groups = split(range(len(lengths)), lengths, workers, 64, packed=packed)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert len(groups) % workers == 0
    for group in groups:
        sizes = [lengths[i] for i in group]
        assert (sum(sizes) if packed else len(sizes) * max(sizes, default=0)) <= 64


@given(LENGTHS, st.integers(1, 4), st.integers(1, 100))
def test_padded_passes_are_the_fewest_that_fit(lengths: list[int], workers: int, limit: int) -> None:
    groups = split(range(len(lengths)), lengths, workers, limit, packed=False)
    sizes = sorted(lengths, reverse=True)
    fewest, at = 0, 0
    while at < len(sizes):
        fewest, at = fewest + 1, at + max(1, limit // sizes[at])
    assert len(groups) == workers * -(-fewest // workers)
    assert all(len(group) * max(lengths[i] for i in group) <= limit or len(group) == 1 for group in groups if group)


def test_the_order_changes_with_the_epoch_and_the_seed() -> None:
    plan = make_plan([1] * 30, batch_size=30)
    assert plan.rows_of(0) != plan.rows_of(1)
    assert plan.rows_of(0) == make_plan([1] * 30, batch_size=30).rows_of(0)
    assert plan.rows_of(0) != make_plan([1] * 30, batch_size=30, seed=4).rows_of(0)


@pytest.mark.parametrize("packed", [True, False])
def test_a_row_longer_than_a_pass_is_alone_in_it(packed: bool) -> None:
    assert split(range(2), [100, 3], 1, 64, packed=packed) == ((0,), (1,))
    lengths = [5, 9, 3, 9, 20, 1]
    groups = split(range(6), lengths, 1, 12, packed=packed)
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert (4,) in groups
    assert split([], [], 2, 8, packed=packed) == ((), ())


def test_max_steps_ends_the_plan() -> None:
    assert make_plan([1] * 10, epochs=3, max_steps=4).total_steps == 4
    assert make_plan([1] * 10).total_steps == 4


def test_a_step_that_supervises_nothing_has_a_mean() -> None:
    assert make_plan([3, 3], batch_size=2, supervised=0).supervised_in(0) == 1
