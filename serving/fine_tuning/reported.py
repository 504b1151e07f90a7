"""What a job's pods report, checked: the only way from `jobs/{id}/` into the endpoint.

A job's pods run with the team's credentials and may write anything below `jobs/`. So the endpoint takes no store key,
name, team, worker count or price from there: they follow from its own record (`ApiJob`), and times, tokens and texts
are bounded by it. Functions that need a checked record take `CheckedRecord`, which only `checked` makes.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NewType

from pydantic import BaseModel, Field, ValidationError

from ray_jobs import jobs
from ray_jobs.errors import CorruptObject, ObjectNotFound
from ray_jobs.jobs import JobRecord
from ray_jobs.storage import Store
from serving.fine_tuning.records import ApiJob

CheckedRecord = NewType("CheckedRecord", JobRecord)
"""A job's record with the endpoint's own job file, and with bounded times and texts."""

MAX_RESULT_FILE_BYTES = 64 * 2**20
_SKEW = timedelta(minutes=10)
"""Difference between the clocks of a job's pods and of the endpoint."""
_MAX_ERROR = 2000
_MAX_VERSION = 9
_MAX_TOKENS = 10**15


class ReportedCheckpoint(BaseModel, frozen=True):
    """A published checkpoint."""

    step: int = Field(ge=0, le=10**9)
    version: str | None = Field(None, max_length=_MAX_VERSION)
    train_loss: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None


class ReportedSearch(BaseModel, frozen=True):
    """The best trial of a search."""

    run: str = Field(max_length=64)
    params: dict[str, Any]
    trials: int = Field(ge=0, le=10**6)
    page: str
    """Key of the search's page."""


class ReportedResult(BaseModel, frozen=True):
    """A job's result, as far as the API answers it."""

    version: str | None = Field(None, max_length=_MAX_VERSION)
    base: dict[str, float] | None = None
    tuned: dict[str, float] | None = None
    base_is: str | None = Field(None, max_length=200)
    search: ReportedSearch | None = None
    checkpoints: tuple[ReportedCheckpoint, ...] = Field((), max_length=1000)
    trained_tokens: int | None = Field(None, ge=0, le=_MAX_TOKENS)
    has_metrics: bool = False
    """Whether the job wrote its metrics file, at the key that follows from its id."""


def load(store: Store, api: ApiJob, now_s: float) -> CheckedRecord:
    """The job's record. Raises JobError if it is not written yet, CorruptObject if it cannot be read."""
    return checked(jobs.load(api.workspace(store), api.job_id), api, now_s)


def checked(record: JobRecord, api: ApiJob, now_s: float) -> CheckedRecord:
    """The record with the endpoint's own facts. Pure.

    A time before the job was created, or later than any clock can be, becomes the time of creation. `paused_at` stays:
    a launch names the pause that it ends by it.
    """
    created_at = datetime.fromtimestamp(api.created_at, UTC)
    latest = datetime.fromtimestamp(now_s, UTC) + _SKEW

    def plausible(at: datetime | None) -> datetime | None:
        return at if at is None or created_at - _SKEW <= at <= latest else created_at

    facts = {
        "id": api.job_id,
        "spec": api.spec,
        "created_at": created_at,
        **{name: plausible(getattr(record, name)) for name in ("started_at", "finished_at", "cancelled_at")},
        "error": None if record.error is None else record.error[:_MAX_ERROR],
    }
    return CheckedRecord(record.model_copy(update=facts))


def result_of(api: ApiJob, record: CheckedRecord) -> ReportedResult:
    """The job's result; an empty one if it has none or an invalid one. Pure."""
    document = record.result or {}
    try:
        result = ReportedResult.model_validate({**document, "has_metrics": document.get("metrics_csv") is not None})
    except ValidationError:
        return ReportedResult()
    most = _MAX_TOKENS if api.most_tokens is None else api.most_tokens
    tokens = None if result.trained_tokens is None else min(result.trained_tokens, most)
    own = f"jobs/{api.job_id}/"
    search = result.search if result.search is not None and result.search.page.startswith(own) else None
    return result.model_copy(update={"trained_tokens": tokens, "search": search})


def metrics_file(store: Store, api: ApiJob) -> bytes | None:
    """The job's metrics file. None: it has none, or one that is too large."""
    try:
        return api.workspace(store).get(f"jobs/{api.job_id}/metrics.csv", max_bytes=MAX_RESULT_FILE_BYTES)
    except (ObjectNotFound, CorruptObject):
        return None
