"""Attempts: every start of a job claims the next number by a conditional write, and only the newest attempt counts.

Owns the claim and what a runner may still write. An older runner that is alive finds itself superseded at its next
`check()`, and can finish nothing.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from ray_jobs.errors import JobCancelled, JobError, JobPaused, JobSuperseded
from ray_jobs.jobs.events import Event, EventKind, Level, append_event, last_sequence
from ray_jobs.jobs.record import JobRecord, StageRecord, create, load, paused, update, write_stage
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace

CHECK_EVERY_S = 2.0
"""Longest age of the record that `Job.check` uses: a training loop can call it at every step for the cost of a clock
reading."""


@dataclass(frozen=True)
class Launched:
    """Marks a runner that a launcher started: a later pause or cancellation stops it before its first stage."""

    paused_at: str | None = None
    """Time of the pause, or of the failure, that this launch ends. None: the job was neither paused nor failed."""
    submitted: bool = False
    """By `kitae submit`: nothing starts it again, and its local rows and bases are those in the job's record."""


@dataclass(frozen=True)
class Released:
    """Marks a runner of a Helm release. A release that was stopped while it waited stays stopped when it is admitted;
    its next attempt resumes."""

    attempt: int
    """`job.attempt` of the release."""


def start_attempt(
    store: Workspace,
    spec: JobSpec,
    job_id: str | None = None,
    *,
    owner: str | None = None,
    launched: Launched | Released | None = None,
) -> Job:
    """Claim the job's next attempt, which supersedes the runner of an earlier one. `job_id`: as `create`.

    A cancelled, paused or failed job resumes, unless its runner was `launched` before it was stopped; then raises
    JobCancelled, JobPaused or JobError.
    """
    job_id = create(store, spec, job_id).id
    owner = owner or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"

    def claim(record: JobRecord) -> JobRecord:
        if isinstance(launched, Launched):
            _require_startable(record, launched)
        elif launched is not None:
            _require_not_stopped(record, launched)
        return record.reopened(
            attempt=record.attempt + 1,
            spec=spec.model_dump(mode="json"),  # `compute` may differ from the last attempt's
            owner=owner,
            started_at=store.now(),
            release=launched.attempt if isinstance(launched, Released) else None,
        )

    return Job(store, update(store, job_id, claim))


class Job:
    """One attempt, as its runner holds it. Safe to use from several threads."""

    def __init__(self, store: Workspace, record: JobRecord) -> None:
        self.store = store
        self.id = record.id
        self.attempt = record.attempt
        self.record = record
        """As last read: at most `CHECK_EVERY_S` old right after `check()`."""
        self._read_at_s = time.monotonic()
        self._last_event: int | None = None
        self._lock = threading.Lock()

    def check(self, *, fresh: bool = False) -> None:
        """Raise JobCancelled, JobPaused or JobSuperseded if this attempt must stop.

        `fresh` reads the store even if it was just read.
        """
        if fresh or time.monotonic() - self._read_at_s >= CHECK_EVERY_S:
            self.record = load(self.store, self.id)
            self._read_at_s = time.monotonic()
        self._require_current(self.record)

    def event(
        self, level: Level, message: str, data: Mapping[str, Any] | None = None, *, kind: EventKind = "message"
    ) -> None:
        """Write an event. A superseded attempt may write events too: they say what it did."""
        with self._lock:
            last = last_sequence(self.store, self.id) if self._last_event is None else self._last_event
            event = Event(
                attempt=self.attempt,
                sequence=last + 1,
                at=self.store.now(),
                level=level,
                message=message,
                kind=kind,
                data=dict(data or {}),
            )
            self._last_event = append_event(self.store, self.id, event).sequence

    def finish_stage(
        self, name: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], seconds: float
    ) -> StageRecord:
        """Record that the stage is done. Raises if this attempt must stop; then nothing is written."""
        self.check(fresh=True)
        record = StageRecord(
            name=name,
            inputs=dict(inputs),
            outputs=dict(outputs),
            seconds=seconds,
            attempt=self.attempt,
            finished_at=self.store.now(),
        )
        write_stage(self.store, self.id, record)
        return record

    def finish(
        self,
        status: Literal["succeeded", "failed", "cancelled"],
        *,
        error: str | None = None,
        accident: bool = False,
        result: Mapping[str, Any] | None = None,
    ) -> JobRecord:
        """End this attempt; `cancelled` is for a runner that a signal stopped.

        Raises JobCancelled, JobPaused or JobSuperseded if the attempt no longer counts; then nothing is written.
        """
        if (status == "failed") != (error is not None):
            raise ValueError(f"status {status!r} with error {error!r}: a failure, and only a failure, has an error")

        def end(record: JobRecord) -> JobRecord:
            self._require_current(record)
            now = self.store.now()
            return record.model_copy(
                update={
                    "finished_at": now,
                    "error": error,
                    "accident": accident,
                    "result": None if result is None else dict(result),
                    "cancelled_at": now if status == "cancelled" else None,
                }
            )

        self.record = ended = update(self.store, self.id, end)
        return ended

    def pause(self) -> None:
        """Pause the job, to be resumed by a later attempt. Raises as `finish`; then nothing is written."""

        def stop(record: JobRecord) -> JobRecord:
            self._require_current(record)
            return paused(record, self.store.now()).model_copy(update={"saved_itself": True})

        update(self.store, self.id, stop)

    def _require_current(self, record: JobRecord) -> None:
        if record.attempt != self.attempt:
            raise JobSuperseded(
                f"attempt {self.attempt} of job {self.id} stops: attempt {record.attempt}, by {record.owner}, took over"
            )
        if record.status == "cancelled":
            raise JobCancelled(f"job {self.id} was cancelled; `kitae resume {self.id}` resumes it")
        if record.status == "paused":
            raise JobPaused(f"job {self.id} was paused; `kitae resume {self.id}` resumes it")
        if record.over():  # its runner was taken for lost, and the recorded end holds
            raise JobSuperseded(f"attempt {self.attempt} of job {self.id} stops: the job is over ({record.status})")


def stopped(record: JobRecord) -> datetime | None:
    """When a job was paused or failed, which a launch can end. None: it does neither."""
    if record.status == "failed":
        return record.finished_at
    return record.paused_at if record.status == "paused" else None


def ends(record: JobRecord, stopped_at: str | None) -> bool:
    """True if a launch that ends the pause or failure of this time ends the job's."""
    found = stopped(record)
    return found is not None and found.isoformat() == stopped_at


def _require_startable(record: JobRecord, launched: Launched) -> None:
    if ends(record, launched.paused_at):
        return
    if record.over():
        kind = JobCancelled if record.status == "cancelled" else JobError
        raise kind(f"job {record.id} is over ({record.status}), so its launched runner has nothing to do")
    if record.status == "paused":
        raise JobPaused(f"job {record.id} was paused after its runner was launched")


def _require_not_stopped(record: JobRecord, launched: Released) -> None:
    if record.release != launched.attempt or record.saved_itself or record.status not in ("cancelled", "paused"):
        return
    kind = JobCancelled if record.status == "cancelled" else JobPaused
    raise kind(f"job {record.id} was {record.status} while its release waited: raise job.attempt to start it again")
