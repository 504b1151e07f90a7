"""A search from its first trial to its winner: its budget, failures, crashes and kept checkpoints.

An executor that ends every segment at once replaces training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray_jobs.search.decide import Schedule, replay, trial_spec
from ray_jobs.search.runner import Search, prunable, warm_points

from ray_jobs import jobs
from ray_jobs.errors import JobCancelled, JobPaused, TrainingError
from ray_jobs.search import budget
from ray_jobs.search.records import Problem, Result, SearchRecords
from ray_jobs.search.shared_trainer import mode_of
from ray_jobs.search.trial_group import TrialTask
from ray_jobs.storage import Store
from ray_jobs.training.inputs import TrainInputs
from tests.builders import make_spec
from tests.search.test_decide import make_problem, outcome

SECONDS_A_ROW = 0.36
"""A whole trial of 270 rows takes 97 s of a worker."""


class Killed(Exception):
    """The driver died."""


@dataclass
class InstantExecutor:
    """Ends every segment at once, the last started first."""

    make: Callable[[TrialTask], Result | None]
    dies_after: int | None = None
    begun: list[str] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    clock: float = 0.0
    places: int = 4
    _now: dict[str, TrialTask] = field(default_factory=dict)

    def running(self) -> dict[str, float]:
        return dict.fromkeys(self._now, time.monotonic() - self.clock)

    def busy_workers(self) -> int:
        return 1

    def has_room(self, task: TrialTask) -> bool:
        return len(self._now) < self.places

    def start(self, task: TrialTask) -> None:
        self.begun.append(task.run.name)
        self._now[task.run.name] = task

    def drop(self, name: str) -> None:
        self.dropped.append(name)
        del self._now[name]

    def poll(self) -> list[Result]:
        if self.dies_after is not None and len(self.begun) > self.dies_after:
            raise Killed
        for name in reversed(list(self._now)):
            if (result := self.make(self._now[name])) is not None:
                del self._now[name]
                return [result]
        return []


def result_of(task: TrialTask) -> Result:
    """The outcome of `test_decide`, with its cost."""
    source = task.inputs.until.resume_from if task.inputs.until else None
    steps = task.run.until - (0 if source is None else int(source.rsplit("-", 1)[1]))
    result = outcome(task.run)
    return result.model_copy(
        update={
            "steps": steps,
            "seconds": SECONDS_A_ROW * steps * 10,
            "tokens": steps * 100,
            "trunk": f"{task.inputs.checkpoints}/step-{max(0, task.run.until - max(1, round(task.run.until * 0.2)))}",
            "checkpoint": f"{task.inputs.checkpoints}/step-{task.run.until}",
        }
    )


def start(store: Store, problem: Problem, runs: InstantExecutor, *, job_id: str | None = None) -> Search:
    job = jobs.start_attempt(store, problem.spec)
    records = SearchRecords(store, f"jobs/{job_id or job.id}/search/x")
    settled = records.begin(problem)

    def inputs(run: Any) -> TrainInputs:
        spec = trial_spec(settled, run)
        return TrainInputs(spec=spec, labels=(), encoded_key="e", base_key="b", checkpoints="")

    return Search(job, records, settled, inputs, runs, lambda *_, **__: None)


def run(store: Store, problem: Problem, runs: InstantExecutor) -> tuple[Schedule, dict[str, Result], Search]:
    search = start(store, problem, runs)
    schedule = search.run()
    return schedule, search.records.results(), search


def test_a_search_ends_with_the_winner_of_its_replay_and_a_page(store: Store) -> None:
    problem = make_problem()
    schedule, results, search = run(store, problem, InstantExecutor(result_of))
    assert schedule.winner is not None
    assert schedule == replay(problem, results)
    page = store.get(f"{search.records.prefix}/page.html").decode()
    assert problem.spec.job_id in page
    messages = [event.message for _, event in jobs.events(store, search.job.id)]
    assert sum("search: trial" in message for message in messages) == len(results)


@pytest.mark.parametrize("dies_after", [1, 4, 9, 13])
def test_a_killed_search_resumes_and_runs_nothing_twice(store: Store, dies_after: int) -> None:
    problem = make_problem()
    runs = InstantExecutor(result_of, dies_after=dies_after)
    with pytest.raises(Killed):
        start(store, problem, runs).run()
    before = set(start(store, problem, InstantExecutor(result_of)).records.results())
    again = InstantExecutor(result_of)
    schedule, results, _ = run(store, problem, again)
    assert not before & set(again.begun)
    expected: dict[str, Result] = {}
    while (straight := replay(problem, expected)).running:
        task = start(store, problem, InstantExecutor(result_of)).task(straight.running[0], expected)
        expected[task.run.name] = result_of(task)
    assert schedule == straight
    assert set(results) == set(expected)


@pytest.mark.parametrize("stop", [jobs.request_pause, jobs.request_cancel])
def test_a_trial_that_stopped_with_its_job_has_not_failed(store: Store, stop: Callable[[Store, str], object]) -> None:
    """Workers may see the request before the driver does, and end without a result."""
    problem = make_problem()

    def stopped(task: TrialTask) -> Result:
        if len(runs.begun) < 6:
            return result_of(task)
        stop(store, problem.spec.job_id)
        return Result(run=task.run, status="failed", error="it was stopped before its end")

    runs = InstantExecutor(stopped)
    with pytest.raises((JobPaused, JobCancelled)):
        start(store, problem, runs).run()
    schedule, results, _ = run(store, problem, InstantExecutor(result_of))
    assert {result.status for result in results.values()} == {"ok"}
    assert schedule.winner is not None


def test_a_budget_ends_the_sampling_and_the_finalists_still_run(store: Store) -> None:
    """A rung is 27 of 270 rows; two finalists to their end and again take 4 x 97 s."""
    search = {"budget": {"gpu_hours": 0.2}, "trials": 60}
    problem = make_problem(search)
    runs = InstantExecutor(result_of)
    begun = start(store, problem, runs)
    begun.records.spend({"wall": 0.0, "worker": 0.1})  # from an earlier start
    schedule = begun.run()
    assert schedule.winner is not None
    assert "search.budget.gpu_hours 0.2 is spent" in schedule.why
    assert len({name[:4] for name in runs.begun}) < 60


def test_a_budget_too_small_for_one_trial_is_an_error_with_the_least_budget(store: Store) -> None:
    problem = make_problem({"budget": {"money": 0.01, "price_per_hour": 1.0}})
    with pytest.raises(TrainingError, match=r"search.budget.money 0.01 is too small for one trial.*0\.027 hours.*3\.2"):
        run(store, problem, InstantExecutor(result_of))


def test_no_budget_ends_before_the_first_result() -> None:
    problem = make_problem({"budget": {"hours": 0.001}})
    assert budget.reason_to_stop(problem, {}, {"wall": 5.0, "worker": 5.0}) is None


def test_a_trial_that_takes_too_long_is_given_up_and_the_search_continues(store: Store) -> None:
    problem = make_problem({"trial_minutes": 0.5})
    slow = InstantExecutor(lambda task: None if task.run.trial == 2 else result_of(task), clock=60.0)
    schedule, results, _ = run(store, problem, slow)
    late = [result for result in results.values() if result.status == "timed_out"]
    assert [result.run.trial for result in late] == [2]
    assert "search.trial_minutes 0.5" in (late[0].error or "")
    assert slow.dropped == [late[0].run.name]
    assert schedule.winner is not None


def test_when_all_trials_fail_the_error_says_why(store: Store) -> None:
    problem = make_problem()
    with pytest.raises(TrainingError) as caught:
        run(store, problem, InstantExecutor(lambda task: outcome(task.run, "not_finite")))
    assert "all 9 trials of the search failed" in str(caught.value)
    assert "not_finite on purpose" in str(caught.value)
    assert len(caught.value.details) == 1


def test_only_the_best_checkpoints_are_kept(store: Store) -> None:
    problem = make_problem({"checkpoints_to_keep": 2, "trials": 27})
    kept: list[int] = []

    def stored() -> set[str]:
        return {info.key.split("/")[-2] for info in store.list(f"{search.records.prefix}/trials")}

    def watched(task: TrialTask) -> Result:
        store.put(f"{task.inputs.checkpoints}/file", b"x")
        kept.append(len(stored()))
        return result_of(task)

    search = start(store, problem, InstantExecutor(watched))
    schedule = search.run()
    assert schedule.winner is not None
    left = stored()
    assert schedule.winner.name in left
    assert len(left) <= 3
    assert max(kept) < 27 + 9
    results = search.records.results()
    assert set(prunable(problem, results, schedule)) == set(results) - left


def test_the_storage_budget_keeps_the_best_that_fit(store: Store) -> None:
    problem = make_problem({"storage_gib": 4.5, "trials": 27, "finalists": 1})
    results: dict[str, Result] = {}
    for _ in range(9):
        ran = replay(problem, results).running[0]
        results[ran.name] = outcome(ran).model_copy(update={"stored_bytes": 2**30})
    schedule = replay(problem, results)
    kept = set(results) - set(prunable(problem, results, schedule))
    assert len(kept) == 4
    unlimited = make_problem({"trials": 27, "finalists": 1})
    assert set(prunable(unlimited, results, schedule)) < set(results) - kept
    assert {run.source for run in schedule.running if run.source} <= kept


def test_needed_checkpoints_are_never_deleted(store: Store) -> None:
    problem = make_problem({"checkpoints_to_keep": 1, "trials": 27, "parallel": 5})
    gone: set[str] = set()
    results: dict[str, Result] = {}
    while (schedule := replay(problem, results)).running:
        for each in schedule.running:
            assert each.source not in gone
        results[schedule.running[0].name] = outcome(schedule.running[0])
        gone |= set(prunable(problem, results, replay(problem, results)))
    assert schedule.winner is not None
    assert schedule.winner.name not in gone
    assert gone


def test_a_later_search_begins_with_earlier_winners(store: Store) -> None:
    first = make_problem()
    schedule, _, _ = run(store, first, InstantExecutor(result_of))
    assert schedule.winner is not None
    other = make_problem({"seed": 5})
    assert warm_points(store, other, other.spec.job_id) == (schedule.winner.params,)
    assert warm_points(store, make_problem({"warm_start": False}), "x") == ()
    narrow = make_problem({"space": {"learning_rate": [1.0]}})
    assert warm_points(store, narrow, "x") == ()


@pytest.mark.parametrize(
    ("training", "compute", "mode", "why"),
    [
        ({"method": "lora"}, {"workers": 2}, "shared", ""),
        ({"method": "frozen"}, {}, "shared", ""),
        ({"method": "full"}, {}, "alone", "full"),
        ({"method": "full"}, {"workers": 2}, "workers", "full"),
        ({"method": "lora", "lora": {"dropout": 0.1}}, {}, "alone", "dropout"),
        ({"method": "lora"}, {"workers": 2, "zero_stage": 3}, "workers", "zero_stage 3"),
    ],
)
def test_where_a_trial_can_run(training: dict[str, Any], compute: dict[str, Any], mode: str, why: str) -> None:
    found = mode_of(make_spec(training=training, compute=compute))
    assert found[0] == mode
    assert why in found[1]


def test_the_limits_of_a_budget_in_hours() -> None:
    section = make_spec(search={"budget": {"hours": 2, "gpu_hours": 3, "money": 10, "price_per_hour": 4}}).search.budget  # type: ignore[union-attr]  # it has one
    found = budget.limits(section, {"wall": 1.0, "worker": 1.5})
    assert [(limit.hours, limit.spent) for limit in found] == [(2, 1.0), (3, 1.5), (2.5, 1.5)]
    assert not math.isnan(found[0].spent)


def test_the_job_of_a_segment_has_the_values_of_its_trial(tmp_path: Path) -> None:
    problem = make_problem()
    first = replay(problem, {}).running[0]
    spec = trial_spec(problem, first)
    assert spec.training.learning_rate == first.params["learning_rate"]
    assert spec.search is None
    again = trial_spec(problem, first.model_copy(update={"again": True}))
    assert again.training.seed == spec.training.seed + 1
