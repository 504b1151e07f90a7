"""The lengths of trials: their rungs in optimizer steps, and the job of a segment. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ray_jobs.search.records import Problem
from ray_jobs.sharing.segments import Params, Result, TrialSegment
from ray_jobs.spec import JobSpec, Range
from ray_jobs.spec.search import POPULATIONS
from ray_jobs.training.lr_schedule import decay_start

RESOURCE = "resource"
"""Name in Tune's results of a rung's length, in units of the first."""
FAILED = 1e9
"""What a failed trial reports to Tune, in the worse direction of each metric."""


def rungs_of(problem: Problem, params: Params) -> tuple[int, ...]:
    """The rungs of a trial with these values, in steps; the last is its end."""
    training = problem.spec.training
    epochs, most = params.get("epochs", training.epochs), params.get("max_steps", training.max_steps)
    total = math.ceil(problem.rows / batch_size_of(problem, params)) * epochs
    total = total if most is None else min(total, most)
    steps = [max(2, round(total * share)) for share in shares_of(problem)]
    return tuple(min(step, total) for step in steps)


def shares_of(problem: Problem) -> list[float]:
    """The rungs as shares of a whole trial."""
    search = problem.search
    if search.schedules in POPULATIONS:
        return [(i + 1) / search.rungs for i in range(search.rungs)]
    if search.schedules == "none":
        return [1.0]
    return [search.reduction ** -(search.rungs - 1 - i) for i in range(search.rungs)]


def batch_size_of(problem: Problem, params: Params) -> int:
    """Rows in an optimizer step of a trial."""
    return int(params.get("batch_size", problem.spec.training.batch_size))


def trial_spec(problem: Problem, run: TrialSegment) -> JobSpec:
    """The job file of a segment."""
    spec = problem.spec.with_values(run.params)
    if not run.again:
        return spec
    return spec.model_copy(update={"training": spec.training.model_copy(update={"seed": spec.training.seed + 1})})


def steps_of(run: TrialSegment, results: Mapping[str, Result]) -> int:
    """Optimizer steps that a segment trains."""
    source = results.get(run.source) if run.source is not None else None
    return run.until - (decay_start(source.run.until) if source is not None else 0)


def trials_of(problem: Problem) -> int:
    """Most trials of a search."""
    if problem.search.samples != "grid":
        return problem.search.trials
    return math.prod(len(values) for values in problem.space.values() if not isinstance(values, Range))
