"""`/v1/batches`: routes and request validation over `serving.batches`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request

from serving.access.auth import actor_of, caller_of
from serving.batches.service import Batches
from serving.http.batch_types import MAX_BATCHES_PAGE, BatchList, BatchObject, CreateBatch
from serving.http.bodies import IsRetry, StrictRoute
from serving.http.errors import documented


def routes(batches: Batches) -> APIRouter:
    router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=StrictRoute, responses=documented(400, 404))

    @router.post("", responses=documented(409))
    def create_batch(
        request: Request,
        body: CreateBatch,
        is_retry: IsRetry,
        idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
    ) -> BatchObject:
        """Create a batch. A second request with the same `Idempotency-Key`, or the client's retry of an unanswered one,
        returns the batch created by the first."""
        return batches.create(
            body, caller_of(request), actor_of(request), key=idempotency_key or None, retried=is_retry
        )

    @router.get("")
    def list_batches(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=MAX_BATCHES_PAGE)] = 20,
        after: str | None = None,
    ) -> BatchList:
        """List batches, newest first."""
        data, more = batches.page(caller_of(request).team, limit=limit, after=after)
        return BatchList(
            data=data, has_more=more, first_id=data[0].id if data else None, last_id=data[-1].id if data else None
        )

    @router.get("/{batch_id}")
    def get_batch(request: Request, batch_id: str) -> BatchObject:
        return batches.get(caller_of(request).team, batch_id)

    @router.post("/{batch_id}/cancel")
    def cancel_batch(request: Request, batch_id: str, is_retry: IsRetry) -> BatchObject:
        """Cancel a batch; the lines that are answered are in its output file."""
        return batches.cancel(caller_of(request).team, batch_id, actor_of(request), retried=is_retry)

    return router
