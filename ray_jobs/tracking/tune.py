"""A search's trials in the trackers: a run for each trial, `{job id}-trial-{n}`, in one group for the job.

Ray Tune's loop only queues results; one thread a tracker writes them, as for a training. A run is open only while its
results are written: most trials are paused at any time, and Tune reports the end of none that a spent budget stops.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from ray.tune.result import TRAINING_ITERATION

from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.tracking import files
from ray_jobs.tracking.job_run import Writer, close_all, trackers_of
from ray_jobs.tracking.tracker import End, Point, Run, Tracker

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

_MOST_FAILURES = 3
"""Runs of one try that may fail before the others wait for the next try."""
_BOOKKEEPING = frozenset(
    {"pid", "timestamp", "done", "time_this_iter_s", "time_since_restore", "iterations_since_restore"}
)
"""Numbers of a result that are Tune's own and no metrics."""


def tune_callbacks(
    spec: JobSpec, job_id: str, store: Workspace, warn: Callable[[str], None], digest: str
) -> list[Callback]:
    """The callback of `spec.tracking` for one `ray.tune.RunConfig`.

    A trial's config is `{"trial": n, "params": {…}}`; each result has `training_iteration`. `warn` writes a warning
    into the job's events. `digest`: what identifies the search within its job.
    """
    found = trackers_of(store, spec.name, spec.tracking)
    writers = [Writer(TrialRuns(name, new), warn) for name, new in found.items()]
    return [TrialTrackers(job_id, digest, writers)] if writers else []


@dataclass(frozen=True)
class TrialPoint(Point):
    """A result of a trial; `step` is its place in the queue."""

    run: Run
    iteration: int
    end: End
    """How the trial's run ends if nothing follows."""


class TrialTrackers(Callback):
    """Queues the results of Tune's trials."""

    def __init__(self, job_id: str, digest: str, writers: Sequence[Writer]) -> None:
        self._job_id, self._digest, self._writers = job_id, digest, writers
        self._queued = 0
        self._seen: set[Run] = set()
        """Runs with a result."""

    def __getstate__(self) -> dict[str, Any]:
        """Keep nothing: Tune stores the callbacks beside its state, and runs the ones that it was given."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get("status", "ok") != "ok":  # its numbers are marks for the scheduler
            self._failed(trial)
            return
        values = {
            name: float(value) for name, value in result.items() if isinstance(value, Real) and name not in _BOOKKEEPING
        }
        run = self._run_of(trial)
        self._seen.add(run)
        self._put(run, int(result[TRAINING_ITERATION]), values, "finished")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._failed(trial)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        close_all(self._writers, "finished")

    def _failed(self, trial: Trial) -> None:
        run = self._run_of(trial)
        if run in self._seen:
            self._put(run, 0, {}, "failed")

    def _put(self, run: Run, iteration: int, values: Mapping[str, float], end: End) -> None:
        self._queued += 1
        point = TrialPoint(self._queued, int(time.time() * 1000), dict(values), run, iteration, end)
        for writer in self._writers:
            writer.put(point, 0)

    def _run_of(self, trial: Trial) -> Run:
        name = files.trial_run(trial.config)
        return Run(self._job_id, name, self._digest, f"{self._job_id}-{name}", trial.config["params"])


class TrialRuns:
    """The trials' runs in one tracker. A resumed search replays its results, so a run gets only those it lacks."""

    def __init__(self, name: str, new: Callable[[Run], Tracker]) -> None:
        self.name, self._new = name, new
        self._done: dict[Run, int] = {}
        """Place of the last result that each run has."""

    def open(self, began_at_step: int) -> int:
        return 0

    def write(self, points: Sequence[Point]) -> None:
        """Write what each run lacks. Raises the first error after the other runs were written."""
        waiting: dict[Run, list[TrialPoint]] = {}
        for point in points:
            assert isinstance(point, TrialPoint)
            if point.step > self._done.get(point.run, 0):
                waiting.setdefault(point.run, []).append(point)
        errors: list[Exception] = []
        for run, found in waiting.items():
            try:
                _write_run(self._new(run), found)
                self._done[run] = found[-1].step
            except Exception as error:  # noqa: BLE001  # of one run: the others may still be written
                errors.append(error)
                if len(errors) == _MOST_FAILURES:
                    break
        if errors:
            raise errors[0]

    def flush(self) -> None:
        """Nothing waits: `write` ends each run that it opens."""

    def close(self, end: End | None) -> None:
        """No run is open."""


def _write_run(tracker: Tracker, points: Sequence[TrialPoint]) -> None:
    """Open a run, write what it lacks and end it."""
    results = [point for point in points if point.values]
    held = tracker.open(results[0].iteration - 1 if results else 0)
    new: list[Point] = []
    for point in results:
        if point.iteration > held:
            held = point.iteration
            new.append(Point(point.iteration, point.at_ms, point.values))
    try:
        if new:
            tracker.write(new)
        tracker.flush()
    except Exception:
        with contextlib.suppress(Exception):
            tracker.close("failed")
        raise
    tracker.close(points[-1].end)
