"""`/v1/fine_tuning/jobs`: routes and request validation over `serving.fine_tuning`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request

from serving.access.auth import caller_of
from serving.fine_tuning.service import FineTuningService
from serving.http import openai_types
from serving.http.bodies import IsRetry, StrictRoute, metadata_filter
from serving.http.errors import documented

PageLimit = Annotated[int, Query(ge=1, le=openai_types.MAX_JOBS_PAGE)]


def routes(tuning: FineTuningService) -> APIRouter:
    router = APIRouter(
        prefix="/v1/fine_tuning/jobs",
        tags=["fine-tuning"],
        route_class=StrictRoute,
        responses=documented(400, 404),
    )

    @router.post("", responses=documented(403, 409))
    def create_job(
        request: Request,
        body: openai_types.CreateFineTuningJob,
        is_retry: IsRetry,
        idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
    ) -> openai_types.FineTuningJob:
        """Create a job. A second request with the same `Idempotency-Key`, or the client's retry of an unanswered one,
        returns the job created by the first."""
        return tuning.create(body, caller_of(request), key=idempotency_key or None, retried=is_retry)

    @router.get("")
    def list_jobs(request: Request, limit: PageLimit = 20, after: str | None = None) -> openai_types.FineTuningJobList:
        """List jobs, newest first. `metadata[key]=value`, which may be repeated, filters them."""
        data, more = tuning.page(caller_of(request).team, limit=limit, after=after, metadata=metadata_filter(request))
        return openai_types.FineTuningJobList(data=data, has_more=more)

    @router.get("/{job_id}")
    def get_job(request: Request, job_id: str) -> openai_types.FineTuningJob:
        return tuning.get(caller_of(request).team, job_id)

    @router.post("/{job_id}/cancel")
    def cancel_job(request: Request, job_id: str, is_retry: IsRetry) -> openai_types.FineTuningJob:
        """Cancel a job; its workers stop within seconds."""
        return tuning.cancel(caller_of(request).team, job_id, retried=is_retry)

    @router.post("/{job_id}/pause")
    def pause_job(request: Request, job_id: str, is_retry: IsRetry) -> openai_types.FineTuningJob:
        """Pause a job: it writes a checkpoint and frees its workers."""
        return tuning.pause(caller_of(request).team, job_id, retried=is_retry)

    @router.post("/{job_id}/resume")
    def resume_job(request: Request, job_id: str, is_retry: IsRetry) -> openai_types.FineTuningJob:
        """Resume a paused job from its last checkpoint."""
        return tuning.resume(caller_of(request).team, job_id, retried=is_retry)

    @router.get("/{job_id}/events")
    def list_events(
        request: Request, job_id: str, limit: PageLimit = 20, after: str | None = None
    ) -> openai_types.FineTuningJobEventList:
        """List events, newest first."""
        data, more = tuning.events(caller_of(request).team, job_id, limit=limit, after=after)
        return openai_types.FineTuningJobEventList(data=data, has_more=more)

    @router.get("/{job_id}/checkpoints")
    def list_checkpoints(
        request: Request, job_id: str, limit: PageLimit = 10, after: str | None = None
    ) -> openai_types.FineTuningJobCheckpointList:
        """List the checkpoints that can be used as models, newest first."""
        data, more = tuning.checkpoints(caller_of(request).team, job_id, limit=limit, after=after)
        return openai_types.FineTuningJobCheckpointList(
            data=data, has_more=more, first_id=data[0].id if data else None, last_id=data[-1].id if data else None
        )

    return router
