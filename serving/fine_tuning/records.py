"""The API's records of fine-tuning jobs, and the conditional writes that make creating a job idempotent.

    teams/{team}/jobs/{ftjob_id}.json     the request, each launch of a runner, and the final status
    teams/{team}/creates/{hash}.json      the job that a create request made, so that a repeated request makes no other
    open/{key_id}/{ftjob_id}.json         marker of a job that has not ended; written before the job's record
    places/{key_id}.json                  slots of a key with a limit of concurrent jobs; written before the marker

A job's progress is in its own record, `jobs/{job_id}/job.json`, which its runner writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from ray_jobs.errors import ConflictError, ObjectNotFound
from ray_jobs.registry.api_names import JOB_PREFIX
from ray_jobs.spec import JobSpec, Name, parse_spec
from ray_jobs.storage import Store, Workspace
from ray_jobs.storage.documents import Documents
from serving.http import openai_types
from serving.http.errors import ApiError
from serving.http.ids import is_id

KIND = JOB_PREFIX.rstrip("-")
RETRY_WINDOW_S = 600.0
"""Seconds after which a retry counts as a new request. The official client's `timeout` is as long."""
ORPHAN_AFTER_S = 120.0
"""Age in seconds at which a slot or a marker without a record is left from an interrupted create."""


class Launch(BaseModel, frozen=True):
    """One start of a runner for a job."""

    number: int
    at: float
    """Unix seconds."""
    attempt_before: int
    """The job's attempt at the launch; a greater one means that the runner has begun."""
    resumes: str | None = None
    """The `paused_at` of the pause that this launch ends."""


class ClosedJob(BaseModel, frozen=True):
    """Final status of a job, with what is published of its end."""

    status: openai_types.FineTuningJobStatus
    finished_at: int
    error: openai_types.FineTuningJobError | None = None
    has_run: bool = False
    """Whether an attempt of it began."""
    training_s: float = 0.0
    """Seconds for which the job held its workers."""
    trained_tokens: int = 0
    has_result_file: bool | None = None
    """None: closed by a version that did not record it."""


class OpenMarker(BaseModel, frozen=True):
    """Marks a job that has not ended."""

    team: Name


_OPEN = Documents("open/", OpenMarker, "a marker of an open job")


class HeldTime(BaseModel, frozen=True):
    """The time for which the endpoint saw a job's runners run."""

    seconds: float = 0.0
    """Up to the last change."""
    since: float | None = None
    """Unix seconds from which the newest runner is seen to run. None: it does not run."""

    def until(self, now_s: float) -> float:
        """Seconds in total."""
        return self.seconds + (0.0 if self.since is None else max(0.0, now_s - self.since))


class Booked(BaseModel, frozen=True):
    """Usage of a job that an earlier end has booked."""

    training_s: float = 0.0
    trained_tokens: int = 0


class ApiJob(BaseModel, frozen=True):
    """One team's fine-tuning job as the API stores it."""

    id: str
    team: str
    key_id: str
    created_at: int
    model: str
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int
    metadata: dict[str, str] | None
    integrations: list[dict[str, Any]] | None
    method: dict[str, Any]
    hyperparameters: dict[str, Any]
    spec: dict[str, Any]
    """The job file."""
    job_id: str
    """Id of Kitae's own job."""
    most_tokens: int | None = None
    """Most tokens that the job can train on. None: created by a version that did not compute it."""
    launches: tuple[Launch, ...] = ()
    held: HeldTime = HeldTime()
    booked: Booked = Booked()
    """Booked at a failure that was resumed."""
    ending: ClosedJob | None = None
    """The end as the first replica saw it, which all replicas publish. None until the job has ended."""
    closed: ClosedJob | None = None
    """None until the job has ended and its end is published."""

    @property
    def launch(self) -> Launch | None:
        """The newest launch."""
        return self.launches[-1] if self.launches else None

    @property
    def digits(self) -> str:
        """The id without its prefix, part of the names of its model, events and checkpoints."""
        return self.id.removeprefix(JOB_PREFIX)

    def workspace(self, store: Store) -> Workspace:
        """Return where its team's pods work."""
        return Workspace(store, self.team)

    def job_spec(self) -> JobSpec:
        return parse_spec(self.spec, source=f"the job file of {self.id}", stored=True)

    def runner_id(self, launch: Launch) -> str:
        """Return the launcher's id of a launch. Deterministic, so it is not started twice."""
        return f"{self.id}-{launch.number}"


def claimed_before(
    store: Store, team: str, key: str | None, request: str, *, retried: bool, now_s: float
) -> str | None:
    """Return the id of the job that an earlier equal create claimed, without claiming one.

    None: the request is new, or only a claim decides. Raises ApiError as `claim` does.
    """
    if key is None and not retried:
        return None
    try:
        claim = store.get_json(_claim_key(team, key, request))
    except ObjectNotFound:
        return None
    if key is not None:
        return str(_of_equal_request(claim, request)["id"])
    return str(claim["id"]) if now_s - claim["at"] < RETRY_WINDOW_S else None


def claim(store: Store, team: str, key: str | None, request: str, new: str, *, retried: bool, now_s: float) -> str:
    """Claim a job id for a create. Returns `new`, or the id claimed earlier with the same Idempotency-Key `key`.

    Raises ApiError 409 if the key was used with another request. Without a key, the official client repeats an
    unanswered request with `x-stainless-retry-count`: a retry gets the job that an equal request created in the last
    ten minutes. If it overtakes the first try, the retry creates the job and the first try gets it.
    """

    def change(old: dict[str, Any] | None) -> dict[str, Any]:
        if key is not None:
            return {"id": new, "request": request} if old is None else _of_equal_request(old, request)
        if old is not None and now_s - old["at"] < RETRY_WINDOW_S:
            if retried:
                return old
            if old["by_retry"]:
                return {**old, "by_retry": False}
        return {"id": new, "at": now_s, "by_retry": retried}

    return str(store.update_json(_claim_key(team, key, request), change)["id"])


def reserve_slot(store: Store, team: str, key_id: str, identifier: str, most: int | None, now_s: float) -> None:
    """Reserve one of a key's `most` slots for a job before its marker is written. Raises ApiError 429 if none is free.
    None: no limit.

    A slot counts as taken while its job's marker exists. A slot younger than `ORPHAN_AFTER_S` also counts as taken
    without its marker, which its create may be about to write.
    """

    if most is None:
        return

    def held(other: str, taken_at: float) -> bool:
        if now_s - taken_at >= ORPHAN_AFTER_S:
            return False
        job = find(store, team, other)
        return job is None or job.closed is None

    def change(old: dict[str, Any] | None) -> dict[str, Any]:
        slots: dict[str, float] = {} if old is None else old["jobs"]
        marked = set(open_of(store, key_id))  # after the slots were read, so that a marker written meanwhile counts
        kept = {other: at for other, at in slots.items() if other in marked or held(other, at)}
        kept |= dict.fromkeys(marked - kept.keys(), now_s)  # jobs from before the key had a limit
        if identifier not in kept and len(kept) >= most:
            message = f"this key may have {most} jobs at once: wait until one has ended, or cancel one"
            raise ApiError(429, message, code="concurrent_jobs_exceeded", headers={"x-should-retry": "false"})
        return {"jobs": {**kept, identifier: kept.get(identifier, now_s)}}

    store.update_json(f"places/{key_id}.json", change)


def put_new(store: Store, job: ApiJob) -> ApiJob:
    """Store a new job. Returns the stored one if it exists already."""
    try:
        store.put_json(_jobs(job.team).key(job.id), job.model_dump(mode="json"), if_absent=True)
    except ConflictError:
        return load(store, job.team, job.id)
    return job


def find(store: Store, team: str, identifier: str) -> ApiJob | None:
    """Return a team's job; None if it does not exist or its record cannot be read, which is reported."""
    return _jobs(team).find(store, identifier) if is_id(KIND, identifier) else None


def exists(store: Store, team: str, identifier: str) -> bool:
    """Return whether a team's job has a record, readable or not."""
    return store.exists(_jobs(team).key(identifier))


def load(store: Store, team: str, identifier: str) -> ApiJob:
    """Return a team's job. Raises ApiError 404, or CorruptObject if its record cannot be read."""
    job = _jobs(team).read(store, identifier) if is_id(KIND, identifier) else None
    if job is None:
        raise ApiError(404, f"the fine-tuning job {identifier!r} does not exist", code="job_not_found")
    return job


def update(store: Store, job: ApiJob, change: Callable[[ApiJob], ApiJob]) -> ApiJob:
    """Change a job by a conditional write; `change` may run several times."""

    def apply(old: ApiJob | None) -> ApiJob:
        assert old is not None  # no job is deleted
        return change(old)

    return _jobs(job.team).update(store, job.id, apply)


def ids(store: Store, team: str) -> list[str]:
    """List the ids of a team's jobs, oldest first."""
    return [_id_of(info.key) for info in store.list(f"teams/{team}/jobs")]


def mark_open(store: Store, team: str, key_id: str, identifier: str) -> None:
    store.put_json(_open_key(key_id, identifier), OpenMarker(team=team).model_dump(mode="json"))


def unmark_open(store: Store, key_id: str, identifier: str) -> None:
    store.delete(_open_key(key_id, identifier))


def open_of(store: Store, key_id: str) -> list[str]:
    """List the ids of a key's open jobs, oldest first."""
    return [_id_of(info.key) for info in store.list(f"open/{key_id}")]


def all_open(store: Store) -> list[tuple[str, str]]:
    """List (key id, job id) of every open job."""
    return [(info.key.split("/")[1], _id_of(info.key)) for info in store.list("open")]


def team_of_open(store: Store, key_id: str, identifier: str) -> str | None:
    """Return the team of an open job; None if it is not open, or its marker cannot be read."""
    marker = _OPEN.find(store, f"{key_id}/{identifier}")
    return None if marker is None else marker.team


def _of_equal_request(claim: dict[str, Any], request: str) -> dict[str, Any]:
    if claim["request"] != request:
        message = "this Idempotency-Key was used with another request: send a new key with a new request"
        raise ApiError(409, message, code="idempotency_key_reused", headers={"x-should-retry": "false"})
    return claim


def _claim_key(team: str, key: str | None, request: str) -> str:
    name = f"request-{request}" if key is None else f"key-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    return f"teams/{team}/creates/{name}.json"


def _jobs(team: str) -> Documents[ApiJob]:
    return Documents(f"teams/{team}/jobs/", ApiJob, "a fine-tuning job")


def _open_key(key_id: str, identifier: str) -> str:
    return _OPEN.key(f"{key_id}/{identifier}")


def _id_of(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".json")
