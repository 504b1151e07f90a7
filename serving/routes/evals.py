"""`/v1/evals`: routes and request validation over `serving.evals`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request

from serving.access.auth import caller_of
from serving.evals.service import EvalService
from serving.http import eval_types
from serving.http.bodies import IsRetry, StrictRoute
from serving.http.errors import ApiError, documented
from serving.http.ids import Order
from serving.inference.router import Router
from serving.routes.graders import check_model, check_models

PageLimit = Annotated[int, Query(ge=1, le=eval_types.MAX_EVALS_PAGE)]


def routes(evals: EvalService, router: Router) -> APIRouter:
    api = APIRouter(prefix="/v1/evals", tags=["evals"], route_class=StrictRoute, responses=documented(400, 404))

    @api.post("")
    def create_eval(request: Request, body: eval_types.CreateEval) -> eval_types.Eval:
        """Create an eval: what a row is, and the graders that judge it."""
        return evals.create(body, caller_of(request))

    @api.get("")
    def list_evals(
        request: Request,
        limit: PageLimit = 20,
        after: str | None = None,
        order: Order = "asc",
        order_by: Literal["created_at", "updated_at"] = "created_at",
    ) -> eval_types.EvalList:
        team, by_last_write = caller_of(request).team, order_by == "updated_at"
        data, more = evals.page(team, limit=limit, after=after, order=order, by_last_write=by_last_write)
        first, last = _ends(data)
        return eval_types.EvalList(data=data, has_more=more, first_id=first, last_id=last)

    @api.get("/{eval_id}")
    def get_eval(request: Request, eval_id: str) -> eval_types.Eval:
        return evals.get(caller_of(request).team, eval_id)

    @api.post("/{eval_id}")
    def update_eval(request: Request, eval_id: str, body: eval_types.UpdateEval) -> eval_types.Eval:
        """Change an eval's name or metadata."""
        return evals.update(caller_of(request).team, eval_id, body)

    @api.delete("/{eval_id}")
    def delete_eval(request: Request, eval_id: str, is_retry: IsRetry) -> eval_types.DeletedEval:
        """Delete an eval with its runs and their output items."""
        try:
            evals.delete(caller_of(request).team, eval_id)
        except ApiError as error:
            if not is_retry or error.status != 404:
                raise  # else deleted by the first try
        return eval_types.DeletedEval(eval_id=eval_id)

    @api.post("/{eval_id}/runs", responses=documented(403))
    async def create_run(request: Request, eval_id: str, body: eval_types.CreateEvalRun) -> eval_types.EvalRun:
        """Start a run: each row is answered by the model, if the data source names one, and judged by the graders."""
        caller = caller_of(request)
        found = await asyncio.to_thread(evals.get, caller.team, eval_id)
        if (model := getattr(body.data_source, "model", None)) is not None:
            await check_model(router, "data_source.model", model, caller)
        places = [(f"testing_criteria[{place}]", grader) for place, grader in enumerate(found.testing_criteria)]
        await check_models(router, places, caller)
        return await asyncio.to_thread(evals.create_run, eval_id, body, caller)

    @api.get("/{eval_id}/runs")
    def list_runs(
        request: Request,
        eval_id: str,
        limit: PageLimit = 20,
        after: str | None = None,
        order: Order = "asc",
        status: eval_types.RunStatus | None = None,
    ) -> eval_types.EvalRunList:
        team = caller_of(request).team
        data, more = evals.page_of_runs(team, eval_id, limit=limit, after=after, order=order, status=status)
        first, last = _ends(data)
        return eval_types.EvalRunList(data=data, has_more=more, first_id=first, last_id=last)

    @api.get("/{eval_id}/runs/{run_id}")
    def get_run(request: Request, eval_id: str, run_id: str) -> eval_types.EvalRun:
        return evals.get_run(caller_of(request).team, eval_id, run_id)

    @api.post("/{eval_id}/runs/{run_id}")
    @api.post("/{eval_id}/runs/{run_id}/cancel")
    def cancel_run(request: Request, eval_id: str, run_id: str, is_retry: IsRetry) -> eval_types.EvalRun:
        """Cancel a run. Clients before 3.0 send it without `/cancel`."""
        return evals.cancel_run(caller_of(request).team, eval_id, run_id, retried=is_retry)

    @api.delete("/{eval_id}/runs/{run_id}")
    def delete_run(request: Request, eval_id: str, run_id: str, is_retry: IsRetry) -> eval_types.DeletedRun:
        try:
            evals.delete_run(caller_of(request).team, eval_id, run_id)
        except ApiError as error:
            if not is_retry or error.status != 404:
                raise  # else deleted by the first try
        return eval_types.DeletedRun(run_id=run_id)

    @api.get("/{eval_id}/runs/{run_id}/output_items")
    def list_output_items(
        request: Request,
        eval_id: str,
        run_id: str,
        limit: PageLimit = 20,
        after: str | None = None,
        order: Order = "asc",
        status: eval_types.ItemStatus | None = None,
    ) -> eval_types.OutputItemList:
        """List the output items that are counted so far. `status`: `pass`, `fail`, or `error`."""
        team = caller_of(request).team
        data, more = evals.items(team, eval_id, run_id, limit=limit, after=after, order=order, status=status)
        first, last = _ends(data)
        return eval_types.OutputItemList(data=data, has_more=more, first_id=first, last_id=last)

    @api.get("/{eval_id}/runs/{run_id}/output_items/{item_id}")
    def get_output_item(request: Request, eval_id: str, run_id: str, item_id: str) -> eval_types.OutputItem:
        return evals.item(caller_of(request).team, eval_id, run_id, item_id)

    return api


def _ends(
    data: Sequence[eval_types.Eval | eval_types.EvalRun | eval_types.OutputItem],
) -> tuple[str | None, str | None]:
    return (data[0].id, data[-1].id) if data else (None, None)
