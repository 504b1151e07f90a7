"""The records of batches, the list of a team's open ones, and the lease by which one process works on a batch.

    teams/{team}/batches/{id}.json   a batch: what was requested, its status, and the lease
    open-batches/{team}.json         the batches that have not ended; written before a batch's record

Owns these documents. What is done of a batch is in its log (`progress`), which alone decides how it ends; the counts in
a record are for its readers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import BaseModel

from ray_jobs.spec import Name
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents
from ray_jobs.tenancy.team_limits import TeamLimits
from serving.http.batch_types import (
    BatchEndpoint,
    BatchError,
    BatchErrorList,
    BatchObject,
    BatchRequestCounts,
    BatchStatus,
    BatchUsage,
)
from serving.http.errors import ApiError
from serving.http.ids import is_id, listed

KIND = "batch"
WINDOW_S = 24 * 3600
"""Seconds from a batch's creation until its open lines expire."""
LEASE_S = 30.0
"""Seconds without a sign of life after which another process takes a batch over."""
ORPHAN_AFTER_S = 120.0
"""Age in seconds at which an entry without a record is left from an interrupted create."""
ENDED: frozenset[BatchStatus] = frozenset({"failed", "completed", "expired", "cancelled"})


class BatchLease(BaseModel, frozen=True):
    """Who works on a batch."""

    worker: str
    until: float
    """Unix seconds."""


class ApiBatch(BaseModel, frozen=True):
    """One team's batch as the API stores it."""

    id: str
    team: Name
    key_id: str
    """The key that created it, as which its lines are sent."""
    admin: bool = False
    """Whether the key had access to every team's models."""
    created_at: int
    expires_at: int
    endpoint: BatchEndpoint
    input_file_id: str
    input_key: str
    """Store key of the input file's content."""
    metadata: dict[str, str] | None = None
    output_lives_s: int | None = None
    """Seconds after which the output files expire. None: they do not."""
    status: BatchStatus = "validating"
    model: str | None = None
    total: int | None = None
    """Lines of the input file. None: not validated."""
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    errors: tuple[BatchError, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    cancelling_at: int | None = None
    ended_at: int | None = None
    lease: BatchLease | None = None

    @property
    def is_over(self) -> bool:
        return self.status in ENDED

    def to_openai(self) -> BatchObject:
        same = ("id", "endpoint", "model", "input_file_id", "status", "output_file_id", "error_file_id", "created_at")
        times = ("in_progress_at", "expires_at", "finalizing_at", "cancelling_at")
        fields = {name: getattr(self, name) for name in (*same, *times, "metadata")}
        if self.is_over:
            fields[f"{self.status}_at"] = self.ended_at
        return BatchObject(
            **fields,
            completion_window="24h",
            errors=BatchErrorList(data=list(self.errors)) if self.errors else None,
            request_counts=BatchRequestCounts(total=self.total or 0, completed=self.completed, failed=self.failed),
            usage=BatchUsage(
                input_tokens=self.input_tokens,
                output_tokens=self.output_tokens,
                total_tokens=self.input_tokens + self.output_tokens,
            ),
        )


class OpenBatch(BaseModel, frozen=True):
    """A batch that has not ended."""

    at: float
    """When it was entered, in Unix seconds."""
    lines: int
    file_id: str
    """Its input file."""


class OpenBatches(BaseModel, frozen=True):
    """The batches of a team that have not ended, by id."""

    batches: dict[str, OpenBatch] = {}


_OPEN = Documents("open-batches/", OpenBatches, "a list of open batches")


def find(store: Store, team: str, identifier: str) -> ApiBatch | None:
    """Return a team's batch; None if it does not exist or its record cannot be read, which is reported."""
    return _batches(team).find(store, identifier) if is_id(KIND, identifier) else None


def exists(store: Store, team: str, identifier: str) -> bool:
    """Return whether a batch has a record, readable or not."""
    return store.exists(_batches(team).key(identifier))


def load(store: Store, team: str, identifier: str) -> ApiBatch:
    """Return a team's batch. Raises ApiError 404, or CorruptObject if its record cannot be read."""
    found = _batches(team).read(store, identifier) if is_id(KIND, identifier) else None
    if found is None:
        raise ApiError(404, f"the batch {identifier!r} does not exist", code="batch_not_found")
    return found


def put_new(store: Store, batch: ApiBatch) -> ApiBatch:
    """Store a new batch. Returns the stored one if it exists already."""
    return _batches(batch.team).get_or_create(store, batch.id, batch)


def update(store: Store, batch: ApiBatch, change: Callable[[ApiBatch], ApiBatch]) -> ApiBatch:
    """Change a batch by a conditional write; `change` may run several times."""
    return _batches(batch.team).change(store, batch.id, change)


def ids(store: Store, team: str, now_s: float, *, after: str | None) -> Iterator[str]:
    """Yield the ids of a team's batches, the newest first, as they are consumed."""
    return listed(store, _batches(team).prefix, KIND, now_s, after=after)


# ---- the lease -------------------------------------------------------------------------------------------------------


def leased(batch: ApiBatch, worker: str, now_s: float) -> ApiBatch:
    """The batch with the lease taken or renewed, unless another worker has it. Pure."""
    if not is_free(batch, worker, now_s):
        return batch
    return batch.model_copy(update={"lease": BatchLease(worker=worker, until=now_s + LEASE_S)})


def is_free(batch: ApiBatch, worker: str, now_s: float) -> bool:
    """Whether a worker may work on a batch."""
    return batch.lease is None or batch.lease.worker == worker or batch.lease.until <= now_s


def released(batch: ApiBatch, worker: str) -> ApiBatch:
    """The batch without this worker's lease. Pure."""
    mine = batch.lease is not None and batch.lease.worker == worker
    return batch.model_copy(update={"lease": None}) if mine else batch


# ---- the open batches ------------------------------------------------------------------------------------------------


def enter(store: Store, team: str, identifier: str, entry: OpenBatch, limits: TeamLimits) -> None:
    """Enter a batch among a team's open ones, before its record is written. Raises ApiError 429 beyond its limits."""

    def change(old: OpenBatches | None) -> OpenBatches:
        others = {name: each for name, each in (old or OpenBatches()).batches.items() if name != identifier}
        if len(others) >= limits.open_batches:
            message = f"team {team} has {len(others)} open batches, and may have {limits.open_batches}"
            raise _exceeded(f"{message}: wait until one has ended, or cancel one", "open_batches_exceeded")
        queued = sum(each.lines for each in others.values())
        if queued + entry.lines > limits.batch_lines:
            message = (
                f"team {team} has {queued} lines in open batches; with these {entry.lines} it would exceed its limit "
                f"of {limits.batch_lines}"
            )
            raise _exceeded(f"{message}: wait until a batch has ended, or send a smaller one", "batch_lines_exceeded")
        return OpenBatches(batches={**others, identifier: entry})

    _OPEN.update(store, team, change)


def leave(store: Store, team: str, identifier: str) -> None:
    """Remove a batch that has ended, or was not created."""

    def change(old: OpenBatches | None) -> OpenBatches:
        kept = (old or OpenBatches()).batches
        return OpenBatches(batches={name: each for name, each in kept.items() if name != identifier})

    _OPEN.update(store, team, change)


def open_of(store: Store, team: str) -> dict[str, OpenBatch]:
    """The open batches of a team."""
    found = _OPEN.find(store, team)
    return {} if found is None else found.batches


class OpenList:
    """The open batches of all teams, as one process lists them: a list that has not changed is not read again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[str, tuple[str, dict[str, OpenBatch]]] = {}
        """Team → the etag that was read, and its open batches."""

    def list(self) -> dict[str, dict[str, OpenBatch]]:
        """Team → its open batches; one request per 1,000 teams, and one per changed team."""
        etags = {
            info.key.removeprefix(_OPEN.prefix).removesuffix(".json"): info.etag
            for info in self._store.list(_OPEN.prefix)
        }
        known = {team: read for team, read in self._read.items() if etags.get(team) == read[0]}
        changed = {team: (etag, open_of(self._store, team)) for team, etag in etags.items() if team not in known}
        self._read = known | changed
        return {team: batches for team, (_, batches) in self._read.items() if batches}


def _exceeded(message: str, code: str) -> ApiError:
    return ApiError(429, message, code=code, headers={"x-should-retry": "false"})


def _batches(team: str) -> Documents[ApiBatch]:
    return Documents(f"teams/{team}/batches/", ApiBatch, "a batch")
