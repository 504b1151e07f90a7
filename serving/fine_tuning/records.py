"""What the API writes down of a job, and how it is written once.

    teams/{team}/jobs/{ftjob_id}.json     what was asked, each launch of a runner, and how it ended
    teams/{team}/creates/{hash}.json      which job a create made, so that it makes one however often it arrives
    open/{key_id}/{ftjob_id}.json         jobs that are not over; written before the job's own record
    places/{key_id}.json                  jobs of a key that may have only so many at once; written before the marker

How far a job is stands in its own record, `jobs/{job_id}/job.json`, which its runner writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict

from ray_jobs.errors import ConflictError, ObjectNotFound
from ray_jobs.registry.api_names import JOB_PREFIX
from ray_jobs.storage import Store
from serving.http import openai_types as wire
from serving.http.errors import ApiError
from serving.http.ids import is_id

KIND = JOB_PREFIX.rstrip("-")
RETRY_WINDOW_S = 600.0
"""A client gives up on a request after as long (its `timeout`), and tries again within seconds of it."""
CUT_OFF_AFTER_S = 120.0
"""A place or a marker without a record is of a create that was cut off, once it is so old."""


class Launch(BaseModel):
    """One runner that was started for a job."""

    model_config = ConfigDict(frozen=True)

    number: int
    at: float
    """Unix seconds."""
    attempt_before: int
    """The attempt of the job's record then: once it is greater, a runner has begun."""
    resumes: str | None = None
    """The `paused_at` of the pause that this launch ends."""


class Closed(BaseModel):
    """How a job ended."""

    model_config = ConfigDict(frozen=True)

    status: wire.JobStatus
    finished_at: int
    error: wire.JobError | None = None


class ApiJob(BaseModel):
    """One job of one team."""

    model_config = ConfigDict(frozen=True)

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
    """Of the job that runs."""
    launches: tuple[Launch, ...] = ()
    closed: Closed | None = None
    """None while it is not over, or not all that follows from its end is done."""

    @property
    def launch(self) -> Launch | None:
        """The newest."""
        return self.launches[-1] if self.launches else None

    @property
    def digits(self) -> str:
        """Of its id: what the names of its model, events and checkpoints end with or have in them."""
        return self.id.removeprefix(JOB_PREFIX)

    def runner_id(self, launch: Launch) -> str:
        """What a launch is called by its launcher: always the same, so that it is not started twice."""
        return f"{self.id}-{launch.number}"


def made_before(store: Store, team: str, key: str | None, request: str, *, retried: bool, now_s: float) -> str | None:
    """The id that a create before this one has claimed for both of them; claims nothing. None: this is a new one, or
    the claim must tell. ApiError as `claim_by_key`."""
    if key is None and not retried:
        return None
    try:
        there = store.get_json(_by_content(team, request) if key is None else _by_key(team, key))
    except ObjectNotFound:
        return None
    if key is not None:
        return _same_request(there, request)
    return str(there["id"]) if now_s - there["at"] < RETRY_WINDOW_S else None


def claim_by_key(store: Store, team: str, key: str, request: str, new: str) -> str:
    """The id of the job that creates with this Idempotency-Key make: `new`, or the one made before.

    ApiError 409 where the key came with another request.
    """
    try:
        store.put_json(_by_key(team, key), {"id": new, "request": request}, if_absent=True)
        return new
    except ConflictError:
        return _same_request(store.get_json(_by_key(team, key)), request)


def claim_by_content(store: Store, team: str, request: str, new: str, *, retried: bool, now_s: float) -> str:
    """The id of the job that a create without a key makes.

    The official client sends a request that got no answer again, with `x-stainless-retry-count` and no key. Such a one
    gets the job that the same request made in the last ten minutes; or, where it overtook the first one, makes it, and
    the first one gets that.
    """

    def change(old: dict[str, Any] | None) -> dict[str, Any]:
        if old is not None and now_s - old["at"] < RETRY_WINDOW_S:
            if retried:
                return old
            if old["by_retry"]:
                return {**old, "by_retry": False}
        return {"id": new, "at": now_s, "by_retry": retried}

    return str(store.update_json(_by_content(team, request), change)["id"])


def take_place(store: Store, team: str, key_id: str, identifier: str, most: int, now_s: float) -> None:
    """Give a job one of its key's `most` places, before it is marked as open. ApiError 429 where none is free.

    A place is held by its job's marker; a moment old, also without one, for whoever took it may be about to write it.
    """

    def held(other: str, taken_at: float) -> bool:
        if now_s - taken_at >= CUT_OFF_AFTER_S:
            return False
        job = find(store, team, other)
        return job is None or job.closed is None

    def change(old: dict[str, Any] | None) -> dict[str, Any]:
        places: dict[str, float] = {} if old is None else old["jobs"]
        marked = set(open_of(store, key_id))  # after the places were read: who took one of them before is seen
        kept = {other: at for other, at in places.items() if other in marked or held(other, at)}
        kept |= dict.fromkeys(marked - kept.keys(), now_s)  # from before the key had a limit
        if identifier not in kept and len(kept) >= most:
            message = f"this key may have {most} jobs at once: wait until one has ended, or cancel one"
            raise ApiError(429, message, code="concurrent_jobs_exceeded", headers={"x-should-retry": "false"})
        return {"jobs": {**kept, identifier: kept.get(identifier, now_s)}}

    store.update_json(f"places/{key_id}.json", change)


def put_new(store: Store, job: ApiJob) -> ApiJob:
    """Write a job down; what was written before stays, and is returned."""
    try:
        store.put_json(_key(job.team, job.id), job.model_dump(mode="json"), if_absent=True)
    except ConflictError:
        return load(store, job.team, job.id)
    return job


def find(store: Store, team: str, identifier: str) -> ApiJob | None:
    if not is_id(KIND, identifier):
        return None
    try:
        return ApiJob.model_validate(store.get_json(_key(team, identifier)))
    except ObjectNotFound:
        return None


def load(store: Store, team: str, identifier: str) -> ApiJob:
    """ApiError 404 where a team has no such job."""
    job = find(store, team, identifier)
    if job is None:
        raise ApiError(404, f"there is no fine-tuning job {identifier!r}", code="job_not_found")
    return job


def update(store: Store, job: ApiJob, change: Callable[[ApiJob], ApiJob]) -> ApiJob:
    """Change a job by compare-and-swap; `change` may run several times."""

    def apply(old: dict[str, Any] | None) -> dict[str, Any]:
        return change(ApiJob.model_validate(old)).model_dump(mode="json")

    return ApiJob.model_validate(store.update_json(_key(job.team, job.id), apply))


def ids(store: Store, team: str) -> list[str]:
    """Of a team's jobs, the oldest first."""
    return [_id_of(info.key) for info in store.list(f"teams/{team}/jobs")]


def mark_open(store: Store, team: str, key_id: str, identifier: str) -> None:
    store.put_json(_open_key(key_id, identifier), {"team": team})


def unmark_open(store: Store, key_id: str, identifier: str) -> None:
    store.delete(_open_key(key_id, identifier))


def open_of(store: Store, key_id: str) -> list[str]:
    """Ids of a key's jobs that are not over, the oldest first."""
    return [_id_of(info.key) for info in store.list(f"open/{key_id}")]


def all_open(store: Store) -> list[tuple[str, str]]:
    """(key id, job id) of every job that is not over."""
    return [(info.key.split("/")[1], _id_of(info.key)) for info in store.list("open")]


def team_of_open(store: Store, key_id: str, identifier: str) -> str | None:
    """None: it is over by now."""
    try:
        return str(store.get_json(_open_key(key_id, identifier))["team"])
    except ObjectNotFound:
        return None


def _same_request(there: dict[str, Any], request: str) -> str:
    if there["request"] != request:
        message = "this Idempotency-Key came with another request before: send a new key with a new request"
        raise ApiError(409, message, code="idempotency_key_reused", headers={"x-should-retry": "false"})
    return str(there["id"])


def _by_key(team: str, key: str) -> str:
    return f"teams/{team}/creates/key-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _by_content(team: str, request: str) -> str:
    return f"teams/{team}/creates/request-{request}.json"


def _key(team: str, identifier: str) -> str:
    return f"teams/{team}/jobs/{identifier}.json"


def _open_key(key_id: str, identifier: str) -> str:
    return f"open/{key_id}/{identifier}.json"


def _id_of(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".json")
