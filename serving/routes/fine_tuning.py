"""`/v1/fine_tuning/jobs`: routes and request checks; `fine_tuning` does the work."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request

from serving.access.auth import caller_of
from serving.fine_tuning.service import FineTuning
from serving.http import openai_types as wire
from serving.http.bodies import StrictRoute
from serving.http.errors import bad_request, documented
from serving.http.retries import is_retry

_LONGEST_KEY = 255
Limit = Annotated[int, Query(ge=1, le=wire.MOST_JOBS_PAGE)]
RetryCount = Annotated[str | None, Header()]


def routes(tuning: FineTuning) -> APIRouter:
    router = APIRouter(
        prefix="/v1/fine_tuning/jobs",
        tags=["fine-tuning"],
        route_class=StrictRoute,
        responses=documented(400, 404),
    )

    @router.post("", response_model=wire.Job, responses=documented(403, 409))
    def create_job(
        request: Request,
        body: wire.CreateJob,
        idempotency_key: Annotated[str | None, Header(max_length=_LONGEST_KEY)] = None,
        x_stainless_retry_count: RetryCount = None,
    ) -> wire.Job:
        """Make a job. The same `Idempotency-Key` makes the same one, and so does the client's own second try of a
        request that got no answer."""
        caller = caller_of(request)
        return tuning.create(
            body,
            caller,
            key=idempotency_key or None,
            retried=is_retry(x_stainless_retry_count),
            most_open=caller.limits.concurrent_jobs,
        )

    @router.get("", response_model=wire.JobList)
    def list_jobs(request: Request, limit: Limit = 20, after: str | None = None) -> wire.JobList:
        """The newest first. `metadata[key]=value`, as often as wanted, narrows it down."""
        data, more = tuning.page(caller_of(request).team, limit=limit, after=after, metadata=_metadata(request))
        return wire.JobList(data=data, has_more=more)

    @router.get("/{job_id}", response_model=wire.Job)
    def get_job(request: Request, job_id: str) -> wire.Job:
        return tuning.get(caller_of(request).team, job_id)

    @router.post("/{job_id}/cancel", response_model=wire.Job)
    def cancel_job(request: Request, job_id: str, x_stainless_retry_count: RetryCount = None) -> wire.Job:
        """End a job; its workers stop within seconds."""
        return tuning.cancel(caller_of(request).team, job_id, retried=is_retry(x_stainless_retry_count))

    @router.post("/{job_id}/pause", response_model=wire.Job)
    def pause_job(request: Request, job_id: str, x_stainless_retry_count: RetryCount = None) -> wire.Job:
        """Let a job write a checkpoint and free what it holds."""
        return tuning.pause(caller_of(request).team, job_id, retried=is_retry(x_stainless_retry_count))

    @router.post("/{job_id}/resume", response_model=wire.Job)
    def resume_job(request: Request, job_id: str, x_stainless_retry_count: RetryCount = None) -> wire.Job:
        """Go on with a paused job from its last checkpoint."""
        return tuning.resume(caller_of(request).team, job_id, retried=is_retry(x_stainless_retry_count))

    @router.get("/{job_id}/events", response_model=wire.EventList)
    def list_events(request: Request, job_id: str, limit: Limit = 20, after: str | None = None) -> wire.EventList:
        """The newest first."""
        data, more = tuning.events(caller_of(request).team, job_id, limit=limit, after=after)
        return wire.EventList(data=data, has_more=more)

    @router.get("/{job_id}/checkpoints", response_model=wire.CheckpointList)
    def list_checkpoints(
        request: Request, job_id: str, limit: Limit = 10, after: str | None = None
    ) -> wire.CheckpointList:
        """Those that can be called, the newest first."""
        data, more = tuning.checkpoints(caller_of(request).team, job_id, limit=limit, after=after)
        return wire.CheckpointList(
            data=data, has_more=more, first_id=data[0].id if data else None, last_id=data[-1].id if data else None
        )

    return router


def _metadata(request: Request) -> dict[str, str]:
    found = {}
    for name, value in request.query_params.items():
        if name.startswith("metadata"):
            match = re.fullmatch(r"metadata\[(.+)\]", name)
            if match is None:
                raise bad_request(f"{name} is no filter: write metadata[key]=value", param="metadata")
            found[match[1]] = value
    return found
