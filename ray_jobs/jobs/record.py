"""The durable record of a job: who runs it, how far it is, and who may still write.

Owns `jobs/{id}/job.json`, its events and its finished stages in the store. Does not know what a stage does, nor how a
job is launched.

A job can be started again at any time: every start is an attempt with a number claimed by a conditional write, and only
the newest attempt counts. An older runner that is still alive finds itself superseded at its next `check()`. Cancelling
ends an attempt at once in the record, whether or not its runner is alive to hear of it; so does pausing, which leaves
the job to be gone on with.

A little over 400 lines: the record, its events and its stages are written under the same rules, read in one place.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, computed_field

from ray_jobs.digests import canonical_digest
from ray_jobs.errors import ConflictError, JobCancelled, JobError, JobPaused, JobSuperseded, ObjectNotFound, suggestion
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store

Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
Level = Literal["info", "warning", "error"]
Kind = Literal["message", "metrics"]

CHECK_EVERY_S = 2.0
"""How stale `Job.check` may be: a training loop can call it at every step for the price of a clock reading."""


def status_of(*, started: bool, finished: bool, failed: bool, cancelled: bool, paused: bool) -> Status:
    """What the facts of a record amount to. A cancellation stands, whatever its runner did before it heard of it; a
    pause, unless the job was already over."""
    if cancelled:
        return "cancelled"
    if finished:
        return "failed" if failed else "succeeded"
    if paused:
        return "paused"
    return "running" if started else "queued"


class JobRecord(BaseModel):
    """`job.json`: the facts, and the status they amount to."""

    model_config = ConfigDict(frozen=True)

    id: str
    spec: dict[str, Any]
    """The resolved job file."""
    attempt: int = 0
    """How often the job was started; 0: never."""
    owner: str | None = None
    """The runner of the newest attempt: host, process and a random part."""
    created_at: datetime
    started_at: datetime | None = None
    """When the newest attempt began."""
    finished_at: datetime | None = None
    cancelled_at: datetime | None = None
    paused_at: datetime | None = None
    error: str | None = None
    """Why the newest attempt failed."""
    result: dict[str, Any] | None = None
    """What the job came to: the model's version, metrics, endpoint."""

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy cannot express
    @property
    def status(self) -> Status:
        return status_of(
            started=self.started_at is not None,
            finished=self.finished_at is not None,
            failed=self.error is not None,
            cancelled=self.cancelled_at is not None,
            paused=self.paused_at is not None,
        )

    def over(self) -> bool:
        """Whether it has ended, one way or another. A paused job has not: somebody means to go on with it."""
        return self.status not in ("queued", "running", "paused")


class Event(BaseModel):
    """Something worth telling."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    """Of whoever tells it."""
    sequence: int
    """From 1, over all attempts, in the order in which events were written; none is missing."""
    at: datetime
    level: Level
    message: str
    kind: Kind = "message"
    """`metrics`: figures of training, in `data`."""
    data: dict[str, Any] = {}


class StageRecord(BaseModel):
    """A finished stage: the same stage with the same inputs need not run again."""

    model_config = ConfigDict(frozen=True)

    name: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    seconds: float
    attempt: int
    finished_at: datetime


def create(store: Store, spec: JobSpec) -> JobRecord:
    """Write the job down as queued, or return the record it already has: the same spec is the same job."""
    record = JobRecord(id=spec.job_id, spec=spec.model_dump(mode="json"), created_at=_now())
    try:
        store.put_json(_job_key(record.id), record.model_dump(mode="json"), if_absent=True)
    except ConflictError:
        return load(store, record.id)
    return record


@dataclass(frozen=True)
class Launched:
    """That a runner was started by a launcher, which knew of this pause and no later one (None: of none).

    Whatever was asked for since, before the runner came to its first line, stands.
    """

    paused_at: str | None = None


def start_attempt(store: Store, spec: JobSpec, *, owner: str | None = None, launched: Launched | None = None) -> Job:
    """Claim the job's next attempt, which supersedes the runner of an earlier one. A cancelled, paused or failed job
    goes on, unless it was `launched` before it was stopped; then JobCancelled, JobPaused or JobError is raised."""
    create(store, spec)
    owner = owner or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"

    def claim(record: JobRecord) -> JobRecord:
        if launched is not None:
            _must_begin(record, launched)
        return record.model_copy(
            update={
                "attempt": record.attempt + 1,
                "spec": spec.model_dump(mode="json"),  # `compute` may differ from the last attempt's
                "owner": owner,
                "started_at": _now(),
                "finished_at": None,
                "cancelled_at": None,
                "paused_at": None,
                "error": None,
                "result": None,
            }
        )

    return Job(store, _update(store, spec.job_id, claim))


def request_cancel(store: Store, job_id: str) -> JobRecord:
    """End the job. Its runner stops at its next `check()`. Raises JobError if it is unknown or already over."""

    def cancel(record: JobRecord) -> JobRecord:
        if record.status == "cancelled":
            return record
        if record.over():
            raise JobError(f"job {job_id} is already over ({record.status}); there is nothing to cancel")
        return record.model_copy(update={"cancelled_at": _now(), "finished_at": _now()})

    return _update(store, job_id, cancel)


def request_pause(store: Store, job_id: str, *, ended: str | None = None) -> JobRecord:
    """Stop the job for now: its runner stops at its next `check()`, and the next attempt goes on where it was. One that
    has not begun can be paused too. Raises JobError if it is unknown or already over.

    `ended`: the `paused_at` of a pause that a launched runner is about to end; then this is another one.
    """
    return _update(store, job_id, lambda record: _paused(record, ended=ended))


def _paused(record: JobRecord, *, ended: str | None = None) -> JobRecord:
    """The record with a pause: the one it has, unless that is `ended`. Raises JobError if the job is over."""
    if record.paused_at is not None and record.status == "paused" and record.paused_at.isoformat() != ended:
        return record
    if record.over():
        raise JobError(f"job {record.id} is already over ({record.status}); there is nothing to pause")
    return record.model_copy(update={"paused_at": _now()})


def note(store: Store, job_id: str, level: Level, message: str, data: Mapping[str, Any] | None = None) -> Event:
    """Write an event down from outside of the job's runner. Raises JobError if the job is unknown."""
    attempt = load(store, job_id).attempt
    return _append_event(store, job_id, attempt, _last_event(store, job_id), level, message, "message", data)


def note_changed(store: Store, job_id: str, message: str, *, every_s: float, now_s: float) -> None:
    """An event for what others see of the job's waiting: once for a message, and at most one in `every_s` seconds,
    however many processes say it. Raises JobError if the job is unknown."""
    claimed = False

    def change(old: dict[str, Any] | None) -> dict[str, Any]:
        nonlocal claimed
        last = old or {"message": None, "at": 0.0}
        claimed = last["message"] != message and now_s - last["at"] >= every_s
        return {"message": message, "at": now_s} if claimed else last

    store.update_json(f"jobs/{job_id}/waiting.json", change)
    if claimed:
        note(store, job_id, "info", message)


def note_created(store: Store, job_id: str, message: str) -> None:
    """The first event of a job that others create, written once however often it is called; before `create`, for
    once there is a record somebody else may tell something."""
    event = Event(attempt=0, sequence=1, at=_now(), level="info", message=message)
    with contextlib.suppress(ConflictError):
        store.put_json(_event_key(job_id, 1), event.model_dump(mode="json"), if_absent=True)


def give_up(store: Store, job_id: str, error: str) -> JobRecord:
    """Write down that the job has failed, on behalf of a runner that is no more. Nothing changes if it is over."""

    def end(record: JobRecord) -> JobRecord:
        return record if record.over() else record.model_copy(update={"finished_at": _now(), "error": error})

    return _update(store, job_id, end)


def load(store: Store, job_id: str) -> JobRecord:
    """The record. Raises JobError with the nearest known id."""
    try:
        return JobRecord.model_validate(store.get_json(_job_key(job_id)))
    except ObjectNotFound:
        raise _unknown(store, job_id) from None


def list_jobs(store: Store) -> list[JobRecord]:
    """Every job, the newest first."""
    # Without a record: stages or checkpoints of a job that was deleted.
    found = store.read_json([_job_key(job_id) for job_id in store.list_dirs("jobs/")])
    records = [JobRecord.model_validate(document) for document in found.values()]
    return sorted(records, key=lambda record: record.created_at, reverse=True)


def events(store: Store, job_id: str, *, after: str = "") -> Iterator[tuple[str, Event]]:
    """(key, event) in order; `after` is the key of the last one already seen."""
    for found in store.list(_events_prefix(job_id)):
        if found.key > after:
            yield found.key, Event.model_validate(store.get_json(found.key))


def event_names(store: Store, job_id: str) -> list[str]:
    """Names of a job's events, in order, for `event`."""
    return [info.key.rpartition("/")[2].removesuffix(".json") for info in store.list(_events_prefix(job_id))]


def event(store: Store, job_id: str, name: str) -> Event:
    """One event."""
    return Event.model_validate(store.get_json(f"{_events_prefix(job_id)}{name}.json"))


def stages(store: Store, job_id: str) -> list[StageRecord]:
    """Every finished stage, in the order they finished."""
    found = [StageRecord.model_validate(store.get_json(item.key)) for item in store.list(f"jobs/{job_id}/stages/")]
    return sorted(found, key=lambda record: record.finished_at)


def stage(store: Store, job_id: str, name: str, inputs: Mapping[str, Any]) -> StageRecord | None:
    """The stage with exactly these inputs, if it has finished."""
    try:
        return StageRecord.model_validate(store.get_json(_stage_key(job_id, name, inputs)))
    except ObjectNotFound:
        return None


@dataclass(frozen=True)
class _Seen:
    """The last reading of job.json, and when (monotonic clock)."""

    record: JobRecord
    at_s: float


class Job:
    """One attempt, as its runner holds it. Safe to use from several threads."""

    def __init__(self, store: Store, record: JobRecord) -> None:
        self.store = store
        self.id = record.id
        self.attempt = record.attempt
        self._seen = _Seen(record, time.monotonic())
        self._last_event: int | None = None
        self._lock = threading.Lock()

    @property
    def record(self) -> JobRecord:
        """As last read: at most `CHECK_EVERY_S` old right after `check()`."""
        return self._seen.record

    def check(self, *, fresh: bool = False) -> None:
        """Raise JobCancelled, JobPaused or JobSuperseded if this attempt must stop.

        `fresh` reads the store even if it was just read.
        """
        if fresh or time.monotonic() - self._seen.at_s >= CHECK_EVERY_S:
            self._seen = _Seen(load(self.store, self.id), time.monotonic())
        self._must_go_on(self._seen.record)

    def event(
        self, level: Level, message: str, data: Mapping[str, Any] | None = None, *, kind: Kind = "message"
    ) -> None:
        """Write an event down. Never refused to an older attempt: what it did is worth knowing too."""
        with self._lock:
            last = _last_event(self.store, self.id) if self._last_event is None else self._last_event
            written = _append_event(self.store, self.id, self.attempt, last, level, message, kind, data)
            self._last_event = written.sequence

    def stage(self, name: str, inputs: Mapping[str, Any]) -> StageRecord | None:
        """The stage with exactly these inputs, if it has finished in this or an earlier attempt."""
        return stage(self.store, self.id, name, inputs)

    def finish_stage(
        self, name: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], seconds: float
    ) -> StageRecord:
        """Write down that the stage is done. Raises if this attempt must stop; then nothing is written."""
        self.check(fresh=True)
        record = StageRecord(
            name=name,
            inputs=dict(inputs),
            outputs=dict(outputs),
            seconds=seconds,
            attempt=self.attempt,
            finished_at=_now(),
        )
        # Not if_absent: a stage that had to be done again (its output was deleted) replaces the old record.
        self.store.put_json(_stage_key(self.id, name, inputs), record.model_dump(mode="json"))
        return record

    def finish(
        self,
        status: Literal["succeeded", "failed", "cancelled"],
        *,
        error: str | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> JobRecord:
        """End this attempt; `cancelled` is for a runner that was told to stop by a signal.

        Raises JobCancelled, JobPaused or JobSuperseded if the attempt no longer counts; then nothing is written.
        """
        if (status == "failed") != (error is not None):
            raise ValueError(f"status {status!r} with error {error!r}: a failure, and only a failure, has an error")

        def end(record: JobRecord) -> JobRecord:
            self._must_go_on(record)
            facts: dict[str, Any] = {"finished_at": _now(), "error": error}
            facts["result"] = None if result is None else dict(result)
            facts["cancelled_at"] = facts["finished_at"] if status == "cancelled" else None
            return record.model_copy(update=facts)

        record = _update(self.store, self.id, end)
        self._seen = _Seen(record, time.monotonic())
        return record

    def pause(self) -> None:
        """Leave the job to be gone on with. Raises as `finish`; then nothing is written."""

        def stop(record: JobRecord) -> JobRecord:
            self._must_go_on(record)
            return _paused(record)

        _update(self.store, self.id, stop)

    def _must_go_on(self, record: JobRecord) -> None:
        if record.attempt != self.attempt:
            raise JobSuperseded(
                f"attempt {self.attempt} of job {self.id} stops: attempt {record.attempt}, by {record.owner}, took over"
            )
        if record.status == "cancelled":
            raise JobCancelled(f"job {self.id} was cancelled; `kitae resume {self.id}` goes on where it stopped")
        if record.status == "paused":
            raise JobPaused(f"job {self.id} was paused; `kitae resume {self.id}` goes on where it stopped")
        if record.over():  # its runner was taken for lost, and what was told of its end stands
            raise JobSuperseded(f"attempt {self.attempt} of job {self.id} stops: the job is over ({record.status})")


def _must_begin(record: JobRecord, launched: Launched) -> None:
    if record.over():
        kind = JobCancelled if record.status == "cancelled" else JobError
        raise kind(f"job {record.id} is over ({record.status}), so its launched runner has nothing to do")
    if record.paused_at is not None and record.paused_at.isoformat() != launched.paused_at:
        raise JobPaused(f"job {record.id} was paused after its runner was launched")


def _append_event(
    store: Store,
    job_id: str,
    attempt: int,
    last: int,
    level: Level,
    message: str,
    kind: Kind,
    data: Mapping[str, Any] | None,
) -> Event:
    """Under the first number after `last`, of an event that is there, that nobody has.

    Numbers have no gaps, so it is after every event that anybody can have seen, whoever writes at the same time.
    """
    sequence = last + 1
    while True:
        event = Event(
            attempt=attempt,
            sequence=sequence,
            at=_now(),
            level=level,
            message=message,
            kind=kind,
            data=dict(data or {}),
        )
        try:
            store.put_json(_event_key(job_id, sequence), event.model_dump(mode="json"), if_absent=True)
            return event
        except ConflictError:
            sequence += 1  # another process took the number


def _update(store: Store, job_id: str, change: Callable[[JobRecord], JobRecord]) -> JobRecord:
    """Replace the record by a conditional write; `change` may be called again. Raises JobError if there is no job."""

    def changed(old: dict[str, Any] | None) -> dict[str, Any]:
        if old is None:
            raise _unknown(store, job_id)
        return change(JobRecord.model_validate(old)).model_dump(mode="json")

    return JobRecord.model_validate(store.update_json(_job_key(job_id), changed))


def _unknown(store: Store, job_id: str) -> JobError:
    hint = suggestion(job_id, store.list_dirs("jobs/"), "`kitae status` lists the jobs")
    return JobError(f"no job {job_id!r} in {store.uri()}; {hint}")


def _events_prefix(job_id: str) -> str:
    return f"jobs/{job_id}/events/"


def _event_key(job_id: str, sequence: int) -> str:
    return f"{_events_prefix(job_id)}{sequence:08d}.json"


def _last_event(store: Store, job_id: str) -> int:
    numbers = [int(name) for name in event_names(store, job_id) if name.isdecimal()]  # older ones had other names
    return numbers[-1] if numbers else 0


def _job_key(job_id: str) -> str:
    return f"jobs/{job_id}/job.json"


def _stage_key(job_id: str, name: str, inputs: Mapping[str, Any]) -> str:
    return f"jobs/{job_id}/stages/{name}-{canonical_digest(dict(inputs), 16)}.json"


def _now() -> datetime:
    return datetime.now(UTC)
