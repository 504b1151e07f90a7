"""What ends a search: its budgets. Ray Tune asks at every step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from ray.tune import Stopper

from ray_jobs.errors import KitaeError, TrainingError
from ray_jobs.search.records import Problem, SamplingEnd, SearchRecords, Unsaved
from ray_jobs.search.rungs import batch_size_of, rungs_of, steps_of
from ray_jobs.search.standing import standing
from ray_jobs.sharing.segments import Result, TrialSegment

_EVERY_S = 1.0
_SAVED_EVERY_S = 5.0


def reason_to_stop(problem: Problem, results: Mapping[str, Result], spent: Mapping[str, float]) -> str | None:
    """Why sampling ends now: a limit would be reached after the finalists have run. None: it continues. Pure.

    Returns None before the first result, which shows how long a trial takes. Raises TrainingError when a limit is too
    small for one trial.
    """
    found = problem.search.budget.limits(spent)
    measured = [result for result in results.values() if result.steps and result.seconds] if found else []
    if not measured:
        return None

    def rows(steps: int, run: TrialSegment) -> int:
        return max(1, steps * batch_size_of(problem, run.params))

    hours_a_row = median(result.seconds / rows(result.steps, result.run) for result in measured) / 3600
    whole = hours_a_row * min(rows(rungs_of(problem, each.run.params)[-1], each.run) for each in measured)
    finals = standing(problem, results, SamplingEnd(reason="", results=tuple(results)))
    ahead = sum(rows(steps_of(run, results), run) for run in finals.due)
    for limit, hours, used in found:
        if hours < whole:
            raise TrainingError(
                f"{limit} is too small for one trial, which takes about {whole:.3g} hours of a worker here "
                f"({hours:.3g} hours are allowed): raise it to at least {1.2 * whole / hours:.1f} times as much, or "
                "shorten a trial (training.epochs, training.max_steps)"
            )
        if used + hours_a_row * ahead >= hours:
            return f"{limit} is spent, including the time the finalists need"
    return None


class Meter:
    """Counts what a search has spent over all its starts, and stores it every few seconds. `busy_workers`: workers in
    use by so many running segments."""

    def __init__(
        self, records: SearchRecords, running: Mapping[str, TrialSegment], busy_workers: Callable[[int], int]
    ) -> None:
        self.records, self._running, self._busy_workers = records, running, busy_workers
        self.spent = records.spent()
        self._at, self._saved = time.monotonic(), 0.0

    def tick(self) -> None:
        """Count the time since the last tick."""
        now = time.monotonic()
        hours, self._at = (now - self._at) / 3600, now
        self.spent["wall"] += hours
        self.spent["worker"] += hours * self._busy_workers(len(self._running))
        if now - self._saved > _SAVED_EVERY_S:
            self.save()

    def save(self) -> None:
        self._saved = time.monotonic()
        with contextlib.suppress(KitaeError):  # written again in a few seconds
            self.records.spend(self.spent, list(self._running.values()))


class BudgetStopper(Unsaved, Stopper):
    """Ends a run of Tune when a budget is spent, or when `reason` is set. `problem`: None for the finalists, which
    always run."""

    def __init__(self, problem: Problem | None, results: Mapping[str, Result], meter: Meter) -> None:
        self._problem, self._results, self._meter = problem, results, meter
        self._asked_s = 0.0
        self.reason: str | None = None
        """Why it ends."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self._meter.tick()
        if self._problem and self.reason is None and time.monotonic() - self._asked_s > _EVERY_S:
            self._asked_s = time.monotonic()
            self.reason = reason_to_stop(self._problem, self._results, self._meter.spent)
        return self.reason is not None
