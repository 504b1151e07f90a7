"""A job's metrics on their way to its trackers: queued by the caller, written by one thread a tracker.

Owns which steps a tracker still needs, retries, and the one warning of a tracker that fails. Does not know a tracker's
protocol. Nothing here raises into the job or delays it, except for `CLOSE_S` at its end.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

from ray_jobs.errors import JobCancelled, JobPaused, JobSuperseded, KitaeError
from ray_jobs.jobs import Job
from ray_jobs.spec import TRACKING_CREDENTIALS, JobSpec, TrackingSection
from ray_jobs.storage import Workspace
from ray_jobs.tracking import files
from ray_jobs.tracking.event_files import EventFiles
from ray_jobs.tracking.mlflow_run import MlflowRun
from ray_jobs.tracking.tracker import METRICS, End, Point, Run, Tracker
from ray_jobs.tracking.wandb_run import WandbRun

FLUSH_EVERY_S = 60.0
"""Longest time between two flushes of a run that is not evaluated."""
RETRY_EVERY_S = 60.0
"""Wait before the next try with a tracker that failed."""
CLOSE_S = 30.0
"""Longest time that the end of a training or a search waits for its trackers."""
_MOST_WAITING = 100_000
"""Most steps that wait for a tracker; beyond them the oldest are dropped."""

Record = Callable[[int, Mapping[str, float | str]], None]
"""Takes a reported step and its metrics; never raises."""


@contextlib.contextmanager
def track(job: Job, spec: JobSpec, tracking: TrackingSection, digest: str) -> Iterator[Record]:
    """Write a training of `spec` into the trackers; the block's end or exception ends their run.

    `tracking` may differ from the section in `spec`, which a search stored. `digest`: what identifies the training
    within its job.
    """

    def warn(text: str) -> None:
        with contextlib.suppress(KitaeError):
            job.event("warning", text)

    run = Run(job.id, files.TRAINING, digest, job.id, params_of(spec))
    found = trackers_of(job.store, spec.name, tracking)
    writers = [Writer(new(run), warn, resumes=job.attempt > 1) for new in found.values()]

    def record(step: int, metrics: Mapping[str, float | str]) -> None:
        values = {name: float(metrics[name]) for name in METRICS if name in metrics}
        for writer in writers:
            writer.put(Point(step, int(time.time() * 1000), values), int(metrics.get("began_at_step", 0)))

    end, waits = cast("End | None", "finished"), True
    try:
        yield record
    except BaseException as error:
        end = end_of(error)
        # A signal ends the process: while it waited, its workers would train on behind their last checkpoint.
        waits = isinstance(error, Exception)
        raise
    finally:
        close_all(writers, end, waits=waits)


def close_all(writers: Sequence[Writer], end: End | None, *, waits: bool = True) -> None:
    """Let the threads write what waits, end their runs, and wait for them at most `CLOSE_S`."""
    deadline_s = time.monotonic() + CLOSE_S
    for writer in writers:
        writer.close(end)
    for writer in writers if waits else ():
        writer.join(max(0.0, deadline_s - time.monotonic()))


def end_of(error: BaseException) -> End | None:
    """How an error ends a run. Pure."""
    if isinstance(error, JobSuperseded):
        return None
    return "stopped" if isinstance(error, JobCancelled | JobPaused | KeyboardInterrupt | SystemExit) else "failed"


def trackers_of(store: Workspace, model: str, tracking: TrackingSection) -> dict[str, Callable[[Run], Tracker]]:
    """What makes a run in each tracker, by the tracker's name. A package is imported when a run is opened."""
    found: dict[str, Callable[[Run], Tracker]] = {}
    if tracking.tensorboard:
        found[EventFiles.name] = partial(EventFiles, store)
    if tracking.mlflow is not None:
        found[MlflowRun.name] = partial(MlflowRun, tracking.mlflow, model)
    if tracking.wandb is not None:
        found[WandbRun.name] = partial(WandbRun, tracking.wandb, store)
    return found


def params_of(spec: JobSpec) -> dict[str, Any]:
    """A job's training values by the names of a search's space. Pure."""

    def flat(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in section.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{name}.")
            elif value is not None:
                yield f"{prefix}{name}", value

    return {
        "task": spec.task, "base_model": spec.base_model, **dict(flat(spec.training.model_dump(mode="json"), "")),
    }  # fmt: skip


def reason(error: BaseException) -> str:
    """An error's first line, without credentials, for a warning."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    for secret in filter(None, map(os.environ.get, TRACKING_CREDENTIALS)):
        text = text.replace(secret, "***")
    return text[:300]


class Writer:
    """The queue and the thread of one tracker."""

    def __init__(self, tracker: Tracker, warn: Callable[[str], None], *, resumes: bool = False) -> None:
        """`warn` gets the first error. `resumes`: an earlier attempt's run may be open, and is ended in any case."""
        self._tracker, self._send_warning, self._resumes = tracker, warn, resumes
        self._changed = threading.Condition()
        self._waiting: deque[Point] = deque(maxlen=_MOST_WAITING)
        self._given = 0
        """Last step put into the queue."""
        self._began_at_step = 0
        self._closing = False
        self._end: End | None = None
        self._thread: threading.Thread | None = None
        # Of the thread alone.
        self._held: int | None = None
        """Last step that the tracker holds. None: not opened."""
        self._flushed_s = time.monotonic()
        self._warned = self._failed = False

    def put(self, point: Point, began_at_step: int) -> None:
        """Queue a step; one that restarted workers repeat is left out."""
        with self._changed:
            if point.step <= self._given or self._closing:
                return
            if self._thread is None:
                self._began_at_step = began_at_step
            self._given = point.step
            self._waiting.append(point)
            self._start()
            self._changed.notify()

    def close(self, end: End | None) -> None:
        """Let the thread write what waits, end the run, and stop."""
        with self._changed:
            self._closing, self._end = True, end
            if self._resumes:  # every step may be an earlier attempt's
                self._start()
            self._changed.notify()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread; warn if it has not ended then. It ends with the process at the latest."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                self._warn(TimeoutError(f"it was not done {CLOSE_S:g} s after the end"))

    def _start(self) -> None:
        if self._thread is None:
            name = f"tracking-{self._tracker.name}"
            self._thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                wait_s = RETRY_EVERY_S if self._failed else None
                self._changed.wait_for(lambda: self._closing or (self._waiting and not self._failed), wait_s)
                points, closing = list(self._waiting), self._closing
            try:
                self._write(points, closing)
                self._failed = False
            except Exception as error:  # noqa: BLE001  # of someone else's server or package: it must not end the job
                self._failed = True
                self._warn(error)
            if not self._failed:
                with self._changed:
                    while points and self._waiting and self._waiting[0].step <= points[-1].step:
                        self._waiting.popleft()
            if closing:
                return

    def _write(self, points: Sequence[Point], closing: bool) -> None:
        if self._held is None:
            self._held = self._tracker.open(self._began_at_step)
        new = [point for point in points if point.step > self._held]
        if new:
            self._tracker.write(new)
            self._held = new[-1].step
        now_s = time.monotonic()
        measured = any("held_out_loss" in point.values for point in new)
        if measured or closing or now_s - self._flushed_s >= FLUSH_EVERY_S:
            self._flushed_s = now_s
            self._tracker.flush()
        if closing:
            self._tracker.close(self._end)

    def _warn(self, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        self._send_warning(f"{self._tracker.name} fails, and the job continues without it: {reason(error)}")
