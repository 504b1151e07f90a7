"""The budget of a search: its limits, what was spent, and when it ends the sampling. In hours of a training worker."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

from ray_jobs.errors import KitaeError, TrainingError
from ray_jobs.search import decide
from ray_jobs.search.records import Problem, Result, SamplingEnd, SearchRecords
from ray_jobs.spec import BudgetSection

_SAVED_EVERY_S = 5.0


@dataclass(frozen=True)
class Limit:
    """One of a budget's limits."""

    text: str
    hours: float
    spent: float


def limits(budget: BudgetSection, spent: Mapping[str, float]) -> list[Limit]:
    """The limits that a job file sets. `spent`: hours by the clock (`wall`) and of all workers (`worker`)."""
    found = []
    if budget.hours is not None:
        found.append(Limit(f"search.budget.hours {budget.hours:g}", budget.hours, spent["wall"]))
    if budget.gpu_hours is not None:
        found.append(Limit(f"search.budget.gpu_hours {budget.gpu_hours:g}", budget.gpu_hours, spent["worker"]))
    if budget.money is not None and budget.price_per_hour is not None:
        hours = budget.money / budget.price_per_hour
        found.append(Limit(f"search.budget.money {budget.money:g}", hours, spent["worker"]))
    return found


def reason_to_stop(problem: Problem, results: Mapping[str, Result], spent: Mapping[str, float]) -> str | None:
    """Why sampling ends now: a limit would be reached after the finalists have run. None: it continues. Pure.

    Returns None before the first result, which shows how long a trial takes. Raises TrainingError when a limit is too
    small for one trial.
    """
    assert problem.spec.search is not None
    budget = problem.spec.search.budget
    measured = [result for result in results.values() if result.steps and result.seconds]
    if not measured:
        return None
    hours_a_row = median(result.seconds / decide.rows_trained(problem, result) for result in measured) / 3600
    whole = hours_a_row * min(decide.whole_length(problem, result.run) for result in measured)
    stop = SamplingEnd(reason="", results=tuple(results))
    ahead = sum(decide.length(problem, run, results) for run in decide.replay(problem, results, stop).running)
    for limit in limits(budget, spent):
        if limit.hours < whole:
            raise TrainingError(
                f"{limit.text} is too small for one trial, which takes about {whole:.3g} hours of a worker here "
                f"({limit.hours:.3g} hours are allowed): raise it to at least {1.2 * whole / limit.hours:.1f} times as "
                "much, or shorten a trial (training.epochs, training.max_steps)"
            )
        if limit.spent + hours_a_row * ahead >= limit.hours:
            return f"{limit.text} is spent, including the time the finalists need"
    return None


@dataclass
class Meter:
    """Counts what a search has spent over all its starts, and stores it every few seconds."""

    records: SearchRecords
    busy_workers: Callable[[], int]
    spent: dict[str, float] = field(default_factory=dict)
    _at: float = field(default_factory=time.monotonic)
    _saved: float = 0.0

    def __post_init__(self) -> None:
        self.spent = self.records.spent()

    def tick(self) -> None:
        """Count the time since the last tick."""
        now = time.monotonic()
        hours, self._at = (now - self._at) / 3600, now
        self.spent["wall"] += hours
        self.spent["worker"] += hours * self.busy_workers()
        if now - self._saved > _SAVED_EVERY_S:
            self.save()

    def save(self) -> None:
        self._saved = time.monotonic()
        with contextlib.suppress(KitaeError):  # written again in a few seconds
            self.records.spend(self.spent)
