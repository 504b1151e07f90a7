"""Monthly budgets: what a month has booked and reserved, a job's estimate, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any

import pytest

from ray_jobs.cluster import prices as prices_of
from ray_jobs.cluster import settings
from ray_jobs.errors import BudgetError, SpecError
from ray_jobs.storage import Store
from ray_jobs.tenancy import budgets, spent, usage
from ray_jobs.tenancy.budgets import Budget, Estimate
from ray_jobs.tenancy.prices import Prices
from ray_jobs.tenancy.spent import Used
from ray_jobs.tenancy.usage import UsageRow
from tests.builders import make_spec

PRICES = Prices(gpu_hour=3.0, cpu_hour=0.5)
NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)
HOUR = 3600.0


def book(store: Store, number: int, day: date = date(2026, 3, 10), **fields: Any) -> None:
    row = {"day": day, "team": "blue", "key_id": "k", "model": f"job-{number}", "kind": "training", "requests": 1}
    usage.write(store, "blue", day, f"job-{number}", 1, [UsageRow.model_validate(row | fields)])


def booked(store: Store, now: datetime = NOW) -> float:
    return budgets.standing(store, "blue", Budget(per_month=1.0), PRICES, now).booked


def always(_: str) -> bool:
    return True


def estimated(gpu_hours: float) -> Estimate:
    return Estimate(Used(gpu_seconds=gpu_hours * HOUR, worker_seconds=gpu_hours * HOUR), "a test")


def reserve(store: Store, job: str, gpu_hours: float, now: datetime = NOW) -> budgets.BudgetStanding | None:
    return budgets.reserve(store, "blue", job, estimated(gpu_hours), PRICES, now, is_open=always)


def test_a_month_costs_its_gpu_hours_and_the_cpu_hours_of_trainings_without_gpus(store: Store) -> None:
    book(store, 1, worker_seconds=2 * HOUR, gpu_seconds=2 * HOUR)
    book(store, 2, worker_seconds=HOUR, own_cpu_seconds=4 * HOUR)
    book(store, 3, worker_seconds=HOUR)  # by a version that did not count CPUs
    book(store, 4, date(2026, 2, 28), gpu_seconds=100 * HOUR)
    assert booked(store) == pytest.approx(2 * 3.0 + 4 * 0.5 + 0.5)
    assert booked(store, datetime(2026, 4, 1, tzinfo=UTC)) == 0.0


def test_a_run_that_is_booked_again_counts_once(store: Store) -> None:
    for _ in range(3):
        book(store, 1, gpu_seconds=HOUR)
    assert booked(store) == pytest.approx(3.0)


def test_a_month_begun_by_an_earlier_version_counts_its_rows(store: Store) -> None:
    for number in range(3):
        book(store, number, gpu_seconds=HOUR)
    store.delete("spent/blue/2026-03.json")
    assert booked(store) == pytest.approx(9.0)
    book(store, 3, gpu_seconds=HOUR)
    assert booked(store) == pytest.approx(12.0)


def test_a_job_is_refused_that_would_exceed_the_month(store: Store) -> None:
    assert reserve(store, "free", 1000) is None  # no budget
    budgets.set_budget(store, "blue", 30.0)
    book(store, 1, gpu_seconds=5 * HOUR)
    found = reserve(store, "first", 3)
    assert found is not None
    assert (found.booked, found.reserved, found.level) == (15.0, 9.0, "warning")
    with pytest.raises(BudgetError) as refused:
        reserve(store, "second", 2.1)
    assert "has used 80% of its budget of 30.00 this month (15.00 booked and 9.00 reserved" in refused.value.message
    assert "the job's cost is about 6.30 (a test)" in refused.value.message
    assert reserve(store, "third", 2) is not None  # exactly the rest
    with pytest.raises(BudgetError, match="100%"):
        budgets.check(store, "blue", Estimate(None, "no idea"), PRICES, NOW)
    spent.release(store, "blue", NOW.date(), "first")
    assert budgets.check(store, "blue", estimated(2), PRICES, NOW) is not None


def test_of_concurrent_jobs_only_those_that_fit_are_reserved(store: Store) -> None:
    budgets.set_budget(store, "blue", 30.0)

    def one(number: int) -> bool:
        with suppress(BudgetError):
            reserve(store, f"job-{number}", 3)
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one, range(8))) == 3


def test_a_reservation_without_a_job_ends(store: Store) -> None:
    budgets.set_budget(store, "blue", 10.0)
    reserve(store, "interrupted", 3)
    later = datetime.fromtimestamp(NOW.timestamp() + budgets.ORPHAN_AFTER_S + 1, UTC)
    with pytest.raises(BudgetError):
        reserve(store, "next", 3, later)
    assert budgets.reserve(store, "blue", "next", estimated(3), PRICES, later, is_open=lambda _: False) is not None


@pytest.mark.parametrize(
    ("fields", "tokens", "hours", "basis"),
    [
        ({}, None, None, "not counted"),
        ({}, 36_000, 0.1, "36,000 tokens at the speed of the team's 2 latest trainings"),
        ({"search": {"trials": 9, "budget": {"gpu_hours": 4}}}, None, 4, "budget of its search"),
        ({"search": {"trials": 9, "budget": {"hours": 2}}, "compute": {"workers": 3}}, 1, 6, "budget of its search"),
        ({"search": {"trials": 9, "budget": {"money": 6, "price_per_hour": 3}}}, 1, 2, "budget of its search"),
        ({"search": {"trials": 9}}, 36_000, 0.1, "one training of its search, which has no budget"),
    ],
)
def test_an_estimate_says_what_it_follows_from(
    store: Store, fields: dict[str, Any], tokens: int | None, hours: float | None, basis: str
) -> None:
    book(store, 1, worker_seconds=HOUR, gpu_seconds=HOUR, prompt_tokens=540_000)
    book(store, 2, date(2026, 2, 1), worker_seconds=HOUR, gpu_seconds=HOUR, prompt_tokens=180_000)
    spec = make_spec(**fields)
    found = budgets.estimate_of(store, spec, "blue", tokens, NOW)
    assert basis in found.basis
    assert (found.used and found.used.worker_seconds / HOUR) == (hours and pytest.approx(hours))


def test_the_first_training_of_a_team_has_no_estimate(store: Store) -> None:
    found = budgets.estimate_of(store, make_spec(), "blue", 1000, NOW)
    assert (found.used, "no training" in found.basis) == (None, True)


def test_a_budget_is_not_checked_without_prices(store: Store) -> None:
    budgets.set_budget(store, "blue", 10.0)
    with pytest.raises(BudgetError, match="KITAE_PRICES"):
        budgets.check(store, "blue", estimated(1), None, NOW)
    with pytest.raises(SpecError, match="cannot be a team"):
        budgets.set_budget(store, "Blue Team", 1.0)
    budgets.clear(store, "blue")
    with pytest.raises(SpecError, match="has no budget"):
        budgets.clear(store, "blue")


def test_prices_are_those_of_the_dearest_flavors_or_of_the_environment(tmp_path: Any) -> None:
    flavors = {
        "h100": {"resource": "nvidia.com/gpu", "price_per_hour": 3.2},
        "l4": {"resource": "nvidia.com/gpu", "price_per_hour": 0.8},
        "cpu": {"price_per_hour": 0.1},
    }
    parsed = settings.parse({"image": "x", "flavors": flavors})
    assert prices_of.of_flavors(parsed) == Prices(gpu_hour=3.2, cpu_hour=0.1)
    assert prices_of.of_flavors(settings.parse({"image": "x"})) is None
    assert prices_of.from_environment({}) is None
    assert prices_of.from_environment({"KITAE_PRICES": '{"gpu_hour": 2}'}) == Prices(gpu_hour=2.0)
    for wrong in ("x", "[]", '{"gpu": 1}', '{"gpu_hour": -1}', '{"gpu_hour": 1e999}'):
        with pytest.raises(SpecError, match="KITAE_PRICES"):
            prices_of.from_environment({"KITAE_PRICES": wrong})
    (tmp_path / "cluster.yaml").write_text("image: x\n")
    with pytest.raises(SpecError, match="leave it out"):
        prices_of.from_environment({"KITAE_CLUSTER": str(tmp_path / "cluster.yaml"), "KITAE_PRICES": "{}"})
