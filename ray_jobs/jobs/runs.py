"""Runs: what an attempt of a job uses, written while it lives, in `runs/{job}-{attempt}.json` of the team's workspace.

Owns the heartbeat, from which follows that a runner is lost, and the hours that are booked to the team
(`ray_jobs.quota.bookings`). A run is written by the job's own process, so it is believed within bounds only.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from pydantic import AwareDatetime, BaseModel, Field

from ray_jobs.errors import KitaeError
from ray_jobs.jobs.attempts import Job
from ray_jobs.jobs.progress import duration
from ray_jobs.jobs.record import JobRecord, exists, load
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.storage.documents import Documents

BEAT_S = 30.0
LOST_AFTER_S = 10 * BEAT_S
"""Time without a heartbeat after which a runner is lost."""
WITH_WORKERS = ("search", "train", "evaluate", "parity", "publish")
"""Stages that hold a job's training workers."""


class JobRun(BaseModel, frozen=True):
    """One attempt of a job."""

    job: str = Field(max_length=100)
    attempt: int = Field(ge=1, le=10**6)
    model: str = Field(max_length=100)
    workers: int = Field(ge=1, le=4096)
    gpus_per_worker: int = Field(ge=0, le=64)
    started_at: AwareDatetime
    at: AwareDatetime
    """Time of the newest heartbeat."""
    held_s: float = Field(0.0, ge=0, le=10**9)
    """Seconds for which it has held its workers."""
    tokens: int = Field(0, ge=0, le=10**15)
    """Tokens that it has trained on."""
    ended: bool = False
    booked: bool = False
    """A run that was lost, whose usage is booked."""

    @property
    def name(self) -> str:
        return f"{self.job}-{self.attempt}"


RUNS = Documents("runs/", JobRun, "a run of a job")


class Heartbeat:
    """Writes a run's heartbeat until its block ends. Thread-safe."""

    def __init__(self, job: Job, spec: JobSpec) -> None:
        now = job.store.now()
        self._store = job.store
        self._run = JobRun(
            job=job.id, attempt=job.attempt, model=spec.name, workers=spec.compute.workers,
            gpus_per_worker=spec.compute.gpus_per_worker, started_at=now, at=now,
        )  # fmt: skip
        self._held_s = 0.0
        self._since: float | None = None
        """Start of the stage that holds workers."""
        self._tokens = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()

    @contextlib.contextmanager
    def beating(self) -> Iterator[Heartbeat]:
        """Within this block, the heartbeat is written every `BEAT_S`, and once more at its end."""

        def beat() -> None:
            while not self._ended.wait(BEAT_S):
                self._write(ended=False)

        self._write(ended=False)
        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()
            self._write(ended=True)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time of a stage that holds workers."""
        if name not in WITH_WORKERS:
            yield
            return
        with self._lock:
            self._since = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._held_s, self._since = self._held_now(), None

    def add_tokens(self, tokens: int) -> None:
        with self._lock:
            self._tokens += tokens

    def _held_now(self) -> float:
        return self._held_s + (0.0 if self._since is None else time.monotonic() - self._since)

    def _write(self, *, ended: bool) -> None:
        with self._lock:
            facts = {"at": self._store.now(), "held_s": self._held_now(), "tokens": self._tokens, "ended": ended}
        self._run = self._run.model_copy(update=facts)
        with contextlib.suppress(KitaeError):  # the next one may be written; the job does not depend on it
            self._store.put_json(RUNS.key(self._run.name), self._run.model_dump(mode="json"))


def is_lost(store: Workspace, record: JobRecord, now_s: float) -> bool:
    """True if the job's record says that it runs, and its runner has given no sign of life for `LOST_AFTER_S`."""
    if record.status != "running":
        return False
    run = RUNS.find(store, f"{record.id}-{record.attempt}")
    return run is not None and now_s - run.at.timestamp() > LOST_AFTER_S


def describe_takeover(store: Workspace, job_id: str) -> str | None:
    """What a new attempt does to the one that runs. None: none runs, or its runner is lost."""
    if not exists(store, job_id):
        return None
    record, now_s = load(store, job_id), store.now_s()
    if record.status != "running" or is_lost(store, record, now_s):
        return None
    run = RUNS.find(store, f"{job_id}-{record.attempt}")
    sign = "" if run is None else f", last sign of life {duration(max(0.0, now_s - run.at.timestamp()))} ago"
    return (
        f"job {job_id} already runs: attempt {record.attempt} by {record.owner}{sign}. A new attempt takes over from "
        f"its last checkpoint, and that one stops; `kitae status {job_id} --watch` follows a job without starting it"
    )
