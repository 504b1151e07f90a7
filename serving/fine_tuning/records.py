"""The API's records of fine-tuning jobs, and the conditional writes that make creating a job idempotent.

    teams/{team}/jobs/{ftjob_id}.json     the request, each launch of a runner, and the final status
    teams/{team}/creates/{hash}.json      the job that a create request made, so that a repeated request makes no other
    open/{key_id}/{ftjob_id}.json         marker of a job that has not ended; written before the job's record
    places/{key_id}.json                  slots of a key with a limit of concurrent jobs; written before the marker

A job's progress is in its own record, `jobs/{job_id}/job.json`, which its runner writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ray_jobs.errors import ObjectNotFound
from ray_jobs.registry.api_names import JOB_PREFIX
from ray_jobs.spec import JobSpec, Name, parse_spec
from ray_jobs.storage import Store, Workspace
from ray_jobs.storage.documents import Documents
from ray_jobs.storage.index import Index
from serving.http import openai_types
from serving.http.errors import ApiError
from serving.http.ids import common, is_id
from serving.http.ids import listed as ids_after

KIND = JOB_PREFIX.rstrip("-")
RETRY_WINDOW_S = 600.0
"""Seconds after which a retry counts as a new request. The official client's `timeout` is as long."""
MAX_LAUNCHES_KEPT = 40
"""Launches that a record holds: several times those that end a job (`lifecycle.MAX_LAUNCHES`)."""
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


@dataclass(frozen=True)
class OpenJob:
    """A job that has not ended, as a listing of the markers shows it."""

    key_id: str
    id: str
    marked_s: float
    """When its marker was written, in Unix seconds."""


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

    def with_launch(self, launch: Launch) -> ApiJob:
        """Return the job with a newer launch; of the earlier ones the first and the latest are kept."""
        launches = (*self.launches, launch)
        if len(launches) > MAX_LAUNCHES_KEPT:
            launches = (launches[0], *launches[1 - MAX_LAUNCHES_KEPT :])
        return self.model_copy(update={"launches": launches})

    @property
    def launched(self) -> int:
        """Number of launches so far."""
        return 0 if self.launch is None else self.launch.number

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
    """Reserve one of a key's `most` slots for a job, before its marker is written.

    None: no limit. Raises ApiError 429 if none is free.
    """
    if most is None:
        return
    message = f"this key may have {most} jobs at once: wait until one has ended, or cancel one"
    refusal = _exceeded(message, "concurrent_jobs_exceeded")
    _reserve(store, key_id, team, identifier, most, now_s, lambda: set(open_of(store, key_id)), refusal, adopt=True)


def reserve_team_slot(store: Store, team: str, identifier: str, most: int, now_s: float) -> None:
    """Reserve one of a team's `most` slots, as `reserve_slot`, over all its keys."""
    message = f"team {team} has {most} open jobs, which is its limit: wait until one has ended, or cancel one"
    refusal = _exceeded(message, "open_jobs_exceeded")
    every = lambda: {job.id for job in open_jobs(store)}  # noqa: E731
    _reserve(store, f"team/{team}", team, identifier, most, now_s, every, refusal, adopt=False)


def _reserve(
    store: Store,
    place: str,
    team: str,
    identifier: str,
    most: int,
    now_s: float,
    marked_now: Callable[[], set[str]],
    refusal: ApiError,
    *,
    adopt: bool,
) -> None:
    """Reserve a slot in `places/{place}.json`.

    A slot counts as taken while its job's marker exists. A slot younger than `ORPHAN_AFTER_S` also counts as taken
    without its marker, which its create may be about to write. `adopt`: jobs with a marker and no slot take one;
    otherwise slots of ended jobs are dropped only once they would refuse a job.
    """

    def held(other: str, taken_at: float) -> bool:
        if now_s - taken_at >= ORPHAN_AFTER_S:
            return False
        job = find(store, team, other)
        return job is None or job.closed is None

    def change(old: dict[str, Any] | None) -> dict[str, Any]:
        kept: dict[str, float] = {} if old is None else old["jobs"]
        if adopt or len(kept) >= most:
            marked = marked_now()  # after the slots were read, so that a marker written meanwhile counts
            kept = {other: at for other, at in kept.items() if other in marked or held(other, at)}
            kept |= dict.fromkeys(marked - kept.keys(), now_s) if adopt else {}  # from before the key had a limit
        if identifier not in kept and len(kept) >= most:
            raise refusal
        return {"jobs": {**kept, identifier: kept.get(identifier, now_s)}}

    store.update_json(f"places/{place}.json", change)


def release_slot(store: Store, key_id: str, identifier: str) -> None:
    """Give a key's slot back, of a job that was refused."""

    def change(old: dict[str, Any] | None) -> dict[str, Any]:
        slots: dict[str, float] = {} if old is None else old["jobs"]
        return {"jobs": {other: at for other, at in slots.items() if other != identifier}}

    store.update_json(f"places/{key_id}.json", change)


def _exceeded(message: str, code: str) -> ApiError:
    return ApiError(429, message, code=code, headers={"x-should-retry": "false"})


def put_new(store: Store, job: ApiJob) -> ApiJob:
    """Store a new job. Returns the stored one if it exists already."""
    _by_metadata(job.team).add(store, job.id, _values(job))
    return _jobs(job.team).get_or_create(store, job.id, job)


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
    return _jobs(job.team).change(store, job.id, change)


def ids(store: Store, team: str) -> list[str]:
    """List the ids of a team's jobs, oldest first."""
    return [_id_of(info.key) for info in store.list(f"teams/{team}/jobs")]


def listed(store: Store, team: str, now_s: float, *, after: str | None, metadata: Mapping[str, str]) -> Iterator[str]:
    """List the ids of a team's jobs with this metadata, the newest first, as they are consumed."""
    if not metadata:
        return ids_after(store, _jobs(team).prefix, KIND, now_s, after=after)
    index = _by_metadata(team)
    index.ensure(store, lambda: [(name, _values(job)) for name, job in _jobs(team).read_all(store).items()])
    folders = [index.folder(f"{name}={value}") for name, value in metadata.items()]
    return common([ids_after(store, folder, KIND, now_s, after=after) for folder in folders])


def mark_open(store: Store, team: str, key_id: str, identifier: str) -> None:
    store.put_json(_open_key(key_id, identifier), OpenMarker(team=team).model_dump(mode="json"))


def unmark_open(store: Store, key_id: str, identifier: str) -> None:
    store.delete(_open_key(key_id, identifier))


def open_of(store: Store, key_id: str) -> list[str]:
    """List the ids of a key's open jobs, oldest first."""
    return [_id_of(info.key) for info in store.list(f"open/{key_id}")]


def open_jobs(store: Store) -> list[OpenJob]:
    """List every open job; one request per 1,000."""
    return [OpenJob(info.key.split("/")[1], _id_of(info.key), info.modified_s) for info in store.list("open")]


def all_open(store: Store) -> list[tuple[str, str]]:
    """List (key id, job id) of every open job."""
    return [(job.key_id, job.id) for job in open_jobs(store)]


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


def _by_metadata(team: str) -> Index:
    return Index(f"teams/{team}/index/jobs/")


def _values(job: ApiJob) -> list[str]:
    return [f"{name}={value}" for name, value in (job.metadata or {}).items()]


def _open_key(key_id: str, identifier: str) -> str:
    return _OPEN.key(f"{key_id}/{identifier}")


def _id_of(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".json")
