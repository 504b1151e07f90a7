"""A search from its first trial to its winner: its budget, failures, crashes and what it keeps. Trials are played by a
stand-in that ends them at once, since what is tested is what the search does with them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import jobs
from ray_jobs.errors import JobCancelled, JobPaused, TrainingError
from ray_jobs.search import budget
from ray_jobs.search.decide import Schedule, play, trial_spec
from ray_jobs.search.records import Problem, Result, SearchRecords
from ray_jobs.search.runner import Search, prunable, warm_points
from ray_jobs.search.shared_trainer import Task, mode_of
from ray_jobs.storage import Store
from ray_jobs.training.trainer import TrainInputs
from tests.builders import make_spec
from tests.search.test_decide import make_problem, outcome

SECONDS_A_ROW = 0.36
"""So that a whole trial, 270 rows, takes 97 s of a worker."""


class Killed(Exception):
    """The driver died."""


@dataclass
class Played:
    """Ends every run at once, in the reverse of the order in which they were begun."""

    make: Callable[[Task], Result | None]
    dies_after: int | None = None
    begun: list[str] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    clock: float = 0.0
    places: int = 4
    _now: dict[str, Task] = field(default_factory=dict)

    def running(self) -> dict[str, float]:
        return dict.fromkeys(self._now, time.monotonic() - self.clock)

    def busy_workers(self) -> int:
        return 1

    def has_room(self, task: Task) -> bool:
        return len(self._now) < self.places

    def start(self, task: Task) -> None:
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


def played(task: Task) -> Result:
    """The objective of `test_search_decide`, and what it took."""
    source = task.inputs.stretch.source if task.inputs.stretch else None
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


def start(store: Store, problem: Problem, runs: Played, *, job_id: str | None = None) -> Search:
    job = jobs.start_attempt(store, problem.spec)
    records = SearchRecords(store, f"jobs/{job_id or job.id}/search/x")
    settled = records.begin(problem)

    def inputs(run: Any) -> TrainInputs:
        spec = trial_spec(settled, run)
        return TrainInputs(spec=spec, labels=(), encoded_key="e", base_key="b", checkpoints="")

    return Search(job, records, settled, inputs, runs, lambda *_, **__: None)


def run(store: Store, problem: Problem, runs: Played) -> tuple[Schedule, dict[str, Result], Search]:
    search = start(store, problem, runs)
    schedule = search.run()
    return schedule, search.records.results(), search


def test_it_comes_to_what_it_should_and_shows_it(store: Store) -> None:
    problem = make_problem()
    schedule, results, search = run(store, problem, Played(played))
    assert schedule.winner is not None
    assert schedule == play(problem, results)
    page = store.get(f"{search.records.prefix}/page.html").decode()
    assert problem.spec.job_id in page
    told = [event.message for _, event in jobs.events(store, search.job.id)]
    assert sum("search: trial" in message for message in told) == len(results)


@pytest.mark.parametrize("dies_after", [1, 4, 9, 13])
def test_killed_anywhere_it_goes_on_and_runs_nothing_twice(store: Store, dies_after: int) -> None:
    problem = make_problem()
    runs = Played(played, dies_after=dies_after)
    with pytest.raises(Killed):
        start(store, problem, runs).run()
    before = set(start(store, problem, Played(played)).records.results())
    again = Played(played)
    schedule, results, _ = run(store, problem, again)
    assert not before & set(again.begun)
    expected: dict[str, Result] = {}
    while (straight := play(problem, expected)).running:
        task = start(store, problem, Played(played)).task(straight.running[0], expected)
        expected[task.run.name] = played(task)
    assert schedule == straight
    assert set(results) == set(expected)


@pytest.mark.parametrize("stop", [jobs.request_pause, jobs.request_cancel])
def test_a_trial_that_stopped_with_its_job_has_not_failed(store: Store, stop: Callable[[Store, str], object]) -> None:
    """The workers may hear of it before the driver does, and end without a result."""
    problem = make_problem()

    def stopped(task: Task) -> Result:
        if len(runs.begun) < 6:
            return played(task)
        stop(store, problem.spec.job_id)
        return Result(run=task.run, status="failed", error="it was stopped before its end")

    runs = Played(stopped)
    with pytest.raises((JobPaused, JobCancelled)):
        start(store, problem, runs).run()
    schedule, results, _ = run(store, problem, Played(played))
    assert {result.status for result in results.values()} == {"ok"}
    assert schedule.winner is not None


def test_a_budget_ends_the_sampling_and_the_finalists_still_run(store: Store) -> None:
    """27 rows of 270 are a rung; 2 finalists to their end and again take 4 x 97 s."""
    search = {"budget": {"gpu_hours": 0.2}, "trials": 60}
    problem = make_problem(search)
    runs = Played(played)
    begun = start(store, problem, runs)
    begun.records.spend({"wall": 0.0, "worker": 0.1})  # of an earlier start
    schedule = begun.run()
    assert schedule.winner is not None
    assert "search.budget.gpu_hours 0.2 is spent" in schedule.why
    assert len({name[:4] for name in runs.begun}) < 60


def test_a_budget_too_small_for_one_trial_says_the_least(store: Store) -> None:
    problem = make_problem({"budget": {"money": 0.01, "price_per_hour": 1.0}})
    with pytest.raises(TrainingError, match=r"search.budget.money 0.01 is too small for one trial.*0\.027 hours.*3\.2"):
        run(store, problem, Played(played))


def test_nothing_stops_before_the_first_result() -> None:
    problem = make_problem({"budget": {"hours": 0.001}})
    assert budget.reason_to_stop(problem, {}, {"wall": 5.0, "worker": 5.0}) is None


def test_what_takes_too_long_is_given_up_and_the_search_goes_on(store: Store) -> None:
    problem = make_problem({"trial_minutes": 0.5})
    slow = Played(lambda task: None if task.run.trial == 2 else played(task), clock=60.0)
    schedule, results, _ = run(store, problem, slow)
    late = [result for result in results.values() if result.status == "timed_out"]
    assert [result.run.trial for result in late] == [2]
    assert "search.trial_minutes 0.5" in (late[0].error or "")
    assert slow.dropped == [late[0].run.name]
    assert schedule.winner is not None


def test_when_all_fail_it_says_why(store: Store) -> None:
    problem = make_problem()
    with pytest.raises(TrainingError) as caught:
        run(store, problem, Played(lambda task: outcome(task.run, "not_finite")))
    assert "all 9 trials of the search failed" in str(caught.value)
    assert "not_finite on purpose" in str(caught.value)
    assert len(caught.value.details) == 1


def test_only_the_best_checkpoints_stay(store: Store) -> None:
    problem = make_problem({"checkpoints_to_keep": 2, "trials": 27})
    kept: list[int] = []

    def there() -> set[str]:
        return {info.key.split("/")[-2] for info in store.list(f"{search.records.prefix}/trials")}

    def watched(task: Task) -> Result:
        store.put(f"{task.inputs.checkpoints}/file", b"x")
        kept.append(len(there()))
        return played(task)

    search = start(store, problem, Played(watched))
    schedule = search.run()
    assert schedule.winner is not None
    left = there()
    assert schedule.winner.name in left
    assert len(left) <= 3
    assert max(kept) < 27 + 9
    results = search.records.results()
    assert set(prunable(problem, results, schedule)) == set(results) - left


def test_the_storage_budget_keeps_the_best_that_have_room(store: Store) -> None:
    problem = make_problem({"storage_gib": 4.5, "trials": 27, "finalists": 1})
    results: dict[str, Result] = {}
    for _ in range(9):
        ran = play(problem, results).running[0]
        results[ran.name] = outcome(ran).model_copy(update={"stored_bytes": 2**30})
    schedule = play(problem, results)
    kept = set(results) - set(prunable(problem, results, schedule))
    assert len(kept) == 4
    unlimited = make_problem({"trials": 27, "finalists": 1})
    assert set(prunable(unlimited, results, schedule)) < set(results) - kept
    assert {run.source for run in schedule.running if run.source} <= kept


def test_what_is_still_needed_is_never_deleted(store: Store) -> None:
    problem = make_problem({"checkpoints_to_keep": 1, "trials": 27, "parallel": 5})
    gone: set[str] = set()
    results: dict[str, Result] = {}
    while (schedule := play(problem, results)).running:
        for each in schedule.running:
            assert each.source not in gone
        results[schedule.running[0].name] = outcome(schedule.running[0])
        gone |= set(prunable(problem, results, play(problem, results)))
    assert schedule.winner is not None
    assert schedule.winner.name not in gone
    assert gone


def test_a_later_search_begins_with_what_won_before(store: Store) -> None:
    first = make_problem()
    schedule, _, _ = run(store, first, Played(played))
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


def test_the_job_of_a_run_is_its_trial(tmp_path: Path) -> None:
    problem = make_problem()
    first = play(problem, {}).running[0]
    spec = trial_spec(problem, first)
    assert spec.training.learning_rate == first.params["learning_rate"]
    assert spec.search is None
    again = trial_spec(problem, first.model_copy(update={"again": True}))
    assert again.training.seed == spec.training.seed + 1
