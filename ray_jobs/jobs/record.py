"""The record of a job: `jobs/{id}/job.json` and the records of its finished stages.

Owns the status a record amounts to, and every change of it by a conditional write. Does not know what a stage does, nor
how a job is launched. Cancelling ends an attempt in the record at once, whether or not its runner is alive to notice;
so does pausing, after which the job can be resumed.

A job's pods may write anything into these documents. Reading bounds each field; whether a field is true is for the
reader to decide (`serving.fine_tuning.reported`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, Field, computed_field

from ray_jobs.digests import canonical_digest
from ray_jobs.errors import CorruptObject, JobError, suggestion
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.storage.documents import Documents

_MAX_ATTEMPTS = 10**6
_MAX_SECONDS = 10.0**9
Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]


class JobRecord(BaseModel, frozen=True):
    """`job.json`: the facts, and the status they amount to."""

    id: str
    spec: dict[str, Any]
    """The resolved job file."""
    attempt: int = Field(0, ge=0, le=_MAX_ATTEMPTS)
    """Number of the newest attempt; 0: never started."""
    owner: str | None = None
    """The runner of the newest attempt: host, process and a random part."""
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    """Start of the newest attempt."""
    finished_at: AwareDatetime | None = None
    cancelled_at: AwareDatetime | None = None
    paused_at: AwareDatetime | None = None
    saved_itself: bool = False
    """The pause is its runner's own, before its machines went: nobody asked for it, so a new start ends it."""
    release: int | None = None
    """The attempt of the Helm release (`job.attempt`) that started the newest attempt. None: another way in."""
    error: str | None = None
    """Why the newest attempt failed."""
    accident: bool = False
    """The newest attempt failed because a worker could not start or died: the job can be resumed as it is."""
    result: dict[str, Any] | None = None
    """The job's result: the model's version, metrics, endpoint."""
    submitted: dict[str, str] = Field(default_factory=dict)
    """Fingerprints of the local rows and bases that `kitae submit` put into the store, by path."""

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy cannot express
    @property
    def status(self) -> Status:
        """A cancellation holds, whatever the runner did before it noticed; a pause holds unless the job was over."""
        if self.cancelled_at is not None:
            return "cancelled"
        if self.finished_at is not None:
            return "succeeded" if self.error is None else "failed"
        if self.paused_at is not None:
            return "paused"
        return "queued" if self.started_at is None else "running"

    def over(self) -> bool:
        """True once the job has ended, in any way. A paused job has not: it can be resumed."""
        return self.status not in ("queued", "running", "paused")

    def reopened(self, **changes: object) -> JobRecord:
        """The record without its end, pause and result, and with these changes."""
        ended = dict.fromkeys(("finished_at", "cancelled_at", "paused_at", "error", "release", "result"))
        return self.model_copy(update=ended | {"accident": False, "saved_itself": False} | changes)


class StageRecord(BaseModel, frozen=True):
    """A finished stage: the same stage with the same inputs need not run again."""

    name: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    seconds: float = Field(ge=0, le=_MAX_SECONDS)
    attempt: int = Field(ge=0, le=_MAX_ATTEMPTS)
    finished_at: AwareDatetime


def _why_misplaced(name: str, record: JobRecord) -> str | None:
    return None if name == _name(record.id) else "it has the id of another job"


_JOBS = Documents("jobs/", JobRecord, "a job record", _why_misplaced)


def create(store: Workspace, spec: JobSpec, job_id: str | None = None) -> JobRecord:
    """Record the job as queued, or return its existing record. `job_id`: as `jobs.id_of` finds it; None: the spec's."""
    record = JobRecord(id=job_id or spec.job_id, spec=spec.model_dump(mode="json"), created_at=store.now())
    return _JOBS.get_or_create(store, _name(record.id), record)


def queue(store: Workspace, spec: JobSpec, job_id: str, submitted: Mapping[str, str]) -> JobRecord:
    """Record the job as queued for the runner that `kitae submit` starts. A running job keeps running until then."""
    create(store, spec, job_id)
    changes = {"spec": spec.model_dump(mode="json"), "submitted": dict(submitted)}

    def queued(record: JobRecord) -> JobRecord:
        if record.status == "running":
            return record.model_copy(update=changes)
        return record.reopened(started_at=None, **changes)

    return update(store, job_id, queued)


def load(store: Workspace, job_id: str) -> JobRecord:
    """The record. Raises JobError with the nearest known id, CorruptObject if it cannot be read."""
    try:
        record = _JOBS.read(store, _name(job_id))
    except CorruptObject as error:
        store.unreadable.report(_JOBS.kind, store.path(_JOBS.key(_name(job_id))), error.message)
        raise
    if record is None:
        raise _unknown(store, job_id)
    store.unreadable.clear(_JOBS.kind, [store.path(_JOBS.key(_name(job_id)))])
    return record


def exists(store: Workspace, job_id: str) -> bool:
    """Whether the job has a record, readable or not."""
    return store.exists(_JOBS.key(_name(job_id)))


def find(store: Workspace, job: str) -> str | None:
    """The id of a job, given by it or by its id in the API (the job's name); None if it does not exist."""
    if store.exists(_JOBS.key(_name(job))):
        return job
    named = [each for each in store.list_dirs("jobs/") if each.rpartition("-")[0] == job]
    return named[0] if len(named) == 1 else None


def list_jobs(store: Workspace) -> list[JobRecord]:
    """Every job with a readable record, the newest first."""
    # A prefix without a record holds stages or checkpoints of a deleted job.
    found = _JOBS.read_some(store, [_name(job_id) for job_id in store.list_dirs("jobs/")])
    return sorted(found.values(), key=lambda record: record.created_at, reverse=True)


def update(store: Workspace, job_id: str, change: Callable[[JobRecord], JobRecord]) -> JobRecord:
    """Replace the record by a conditional write; `change` may be called again. Raises JobError for an unknown job."""

    def changed(old: JobRecord | None) -> JobRecord:
        if old is None:
            raise _unknown(store, job_id)
        return change(old)

    return _JOBS.update(store, _name(job_id), changed)


def request_cancel(store: Workspace, job_id: str) -> JobRecord:
    """End the job. Its runner stops at its next `check()`. Raises JobError if it is unknown or already over."""

    def cancel(record: JobRecord) -> JobRecord:
        if record.status == "cancelled":
            return record
        if record.over():
            raise JobError(f"job {job_id} is already over ({record.status}); there is nothing to cancel")
        now = store.now()
        return record.model_copy(update={"cancelled_at": now, "finished_at": now})

    return update(store, job_id, cancel)


def request_pause(store: Workspace, job_id: str, *, ended: str | None = None) -> JobRecord:
    """Pause the job: its runner stops at its next `check()`, and the next attempt resumes where it stopped. A queued
    job can be paused too. Raises JobError if it is unknown or already over.

    `ended`: the `paused_at` of a pause that a launched runner is about to end; the job is then paused anew.
    """
    return update(store, job_id, lambda record: paused(record, store.now(), ended=ended))


def paused(record: JobRecord, now: datetime, *, ended: str | None = None) -> JobRecord:
    """The record with a pause from `now`: unchanged if it has one other than `ended`.

    Raises JobError if the job is over.
    """
    if record.paused_at is not None and record.status == "paused" and record.paused_at.isoformat() != ended:
        return record
    if record.over():
        raise JobError(f"job {record.id} is already over ({record.status}); there is nothing to pause")
    return record.model_copy(update={"paused_at": now, "saved_itself": False})


def give_up(store: Workspace, job_id: str, error: str) -> JobRecord:
    """Record a failure on behalf of a lost runner. A job that is over stays unchanged."""

    def end(record: JobRecord) -> JobRecord:
        return record if record.over() else record.model_copy(update={"finished_at": store.now(), "error": error})

    return update(store, job_id, end)


def stages(store: Workspace, job_id: str) -> list[StageRecord]:
    """Every finished stage with a readable record, in the order they finished."""
    return sorted(_stages(job_id).read_all(store).values(), key=lambda record: record.finished_at)


def read_stage(store: Workspace, job_id: str, name: str, inputs: Mapping[str, Any]) -> StageRecord | None:
    """The stage with exactly these inputs, if it has finished in any attempt and its record can be read."""
    return _stages(job_id).find(store, _stage_name(name, inputs))


def write_stage(store: Workspace, job_id: str, record: StageRecord) -> None:
    """Record a finished stage; replaces the record of an earlier run with the same inputs."""
    key = _stages(job_id).key(_stage_name(record.name, record.inputs))
    store.put_json(key, record.model_dump(mode="json"))


def _unknown(store: Workspace, job_id: str) -> JobError:
    hint = suggestion(job_id, store.list_dirs("jobs/"), "`kitae status` lists the jobs")
    return JobError(f"no job {job_id!r} in {store.uri()}; {hint}")


def _name(job_id: str) -> str:
    return f"{job_id}/job"


def _stages(job_id: str) -> Documents[StageRecord]:
    return Documents(f"jobs/{job_id}/stages/", StageRecord, "a stage record")


def _stage_name(name: str, inputs: Mapping[str, Any]) -> str:
    return f"{name}-{canonical_digest(dict(inputs), 16)}"
