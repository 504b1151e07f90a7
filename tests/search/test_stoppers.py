"""What ends a search: its budgets, and its job."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ray_jobs import jobs
from ray_jobs.errors import JobCancelled, JobPaused, TrainingError
from ray_jobs.search.driver import Search
from ray_jobs.search.records import Problem, SearchRecords
from ray_jobs.search.stoppers import BudgetStopper, Meter, reason_to_stop
from ray_jobs.sharing.segments import Result, TrialSegment
from ray_jobs.storage import Workspace
from tests.builders import make_spec
from tests.search.problems import make_problem, outcome
from tests.search.simulation import Simulation

SECONDS_A_ROW = 0.36
"""A whole trial of 270 rows takes 97 s of a worker."""


def costly(run: TrialSegment) -> Result:
    steps = run.until
    return outcome(run).model_copy(update={"steps": steps, "seconds": SECONDS_A_ROW * steps * 10})


def sampled(problem: Problem, until: int) -> dict[str, Result]:
    simulation = Simulation(problem, costly)
    simulation.run(until=until)
    return simulation.results


def test_the_limits_of_a_budget_in_hours() -> None:
    section = make_spec(search={"budget": {"hours": 2, "gpu_hours": 3, "money": 10, "price_per_hour": 4}}).search.budget  # type: ignore[union-attr]  # it has one
    found = section.limits({"wall": 1.0, "worker": 1.5})
    assert [(hours, used) for _, hours, used in found] == [(2, 1.0), (3, 1.5), (2.5, 1.5)]


@pytest.mark.parametrize(("spent", "over"), [(0.05, False), (0.15, True)])
def test_a_budget_ends_the_sampling_while_the_finalists_can_still_run(spent: float, over: bool) -> None:
    """Two finalists to their end and again take 4 x 97 s, 0.108 hours."""
    problem = make_problem({"budget": {"gpu_hours": 0.2}, "trials": 60})
    reason = reason_to_stop(problem, sampled(problem, 5), {"wall": 0.0, "worker": spent})
    assert (reason is not None) == over
    assert reason is None or "search.budget.gpu_hours 0.2 is spent" in reason


def test_a_budget_too_small_for_one_trial_is_an_error_with_the_least_budget() -> None:
    problem = make_problem({"budget": {"money": 0.01, "price_per_hour": 1.0}})
    with pytest.raises(TrainingError, match=r"search.budget.money 0.01 is too small for one trial.*0\.027 hours.*3\.2"):
        reason_to_stop(problem, sampled(problem, 1), {"wall": 0.0, "worker": 0.0})


def test_no_budget_ends_before_the_first_result() -> None:
    problem = make_problem({"budget": {"hours": 0.001}})
    assert reason_to_stop(problem, {}, {"wall": 5.0, "worker": 5.0}) is None


def make_meter(store: Workspace, problem: Problem, spent: dict[str, float] | None = None) -> Meter:
    records = SearchRecords(store, f"jobs/{problem.spec.job_id}/search/x")
    if spent is not None:
        records.spend(spent, [])
    return Meter(records, {}, lambda _: 2)


def test_a_spent_budget_stops_with_its_reason_and_counts_earlier_attempts(store: Workspace) -> None:
    problem = make_problem({"budget": {"gpu_hours": 0.2}, "trials": 60})
    meter = make_meter(store, problem, {"wall": 0.0, "worker": 0.15})
    stopper = BudgetStopper(problem, sampled(problem, 5), meter)
    assert stopper.stop_all()
    assert stopper.stop_all()
    assert "search.budget.gpu_hours 0.2 is spent" in (stopper.reason or "")
    assert not stopper("trial", {})
    assert not BudgetStopper(None, sampled(problem, 5), meter).stop_all()  # finalists always run


def test_a_meter_counts_the_workers_in_use_over_all_attempts(store: Workspace) -> None:
    meter = make_meter(store, make_problem(), {"wall": 1.0, "worker": 1.0})
    meter._at -= 3600.0  # as after an hour
    meter.tick()
    assert meter.spent == {"wall": pytest.approx(2.0, abs=0.01), "worker": pytest.approx(3.0, abs=0.01)}
    assert meter.records.spent() == meter.spent


@pytest.mark.parametrize(
    ("stop", "error"), [(jobs.request_pause, JobPaused), (jobs.request_cancel, JobCancelled)], ids=["pause", "cancel"]
)
def test_a_job_that_stops_ends_its_search(
    store: Workspace, stop: Callable[[Workspace, str], Any], error: type[Exception]
) -> None:
    job = jobs.start_attempt(store, make_problem().spec)
    search = Search(job, SearchRecords(store, "search"), make_problem(), {}, print, print)
    refreshed = threading.Event()
    search.progress = cast(Any, SimpleNamespace(refresh=refreshed.set, running={}, error=None))
    stopper = BudgetStopper(None, {}, cast(Any, SimpleNamespace(tick=int)))

    def fit() -> None:  # as Tune, which asks its stopper
        assert refreshed.wait(30)
        stop(store, job.id)
        job._read_at_s = 0.0  # as after a few seconds
        deadline = time.monotonic() + 30
        while not stopper.stop_all() and time.monotonic() < deadline:
            time.sleep(0.01)

    with pytest.raises(error):
        search._run_beside_a_watch(
            cast(Any, SimpleNamespace(fit=fit)), stopper, cast(Any, SimpleNamespace(trainers=()))
        )
    assert stopper.reason == "the job stops"
