"""`/v1/fine_tuning/alpha/graders`: checks a grader, and tries it on one answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from fastapi import APIRouter, Request

from ray_jobs.errors import (
    FormulaError,
    GradingError,
    ModelGraderFailed,
    ModelGraderRefused,
    ModelGraderUnclear,
    SampleNotJson,
    UnknownVariable,
)
from ray_jobs.graders.grade import Grade, judge
from ray_jobs.graders.schema import Grader, models_of, template_findings, unsupported
from ray_jobs.graders.templates import sample_of
from ray_jobs.storage import Store
from serving.access.auth import Caller, caller_of
from serving.access.in_process import InProcess, key_problem
from serving.evals.model_calls import EndpointCalls
from serving.http.bodies import StrictRoute
from serving.http.errors import ApiError, documented, invalid_fields
from serving.http.eval_types import (
    GraderErrors,
    GraderRun,
    GraderRunMetadata,
    RunGrader,
    ValidatedGrader,
    ValidateGrader,
)
from serving.inference.router import Router

PREFIX = "/v1/fine_tuning/alpha/graders"
_FLAGS: dict[type[GradingError], str] = {
    UnknownVariable: "invalid_variable_error",
    SampleNotJson: "sample_parse_error",
    FormulaError: "formula_parse_error",
    ModelGraderFailed: "model_grader_server_error",
    ModelGraderRefused: "model_grader_refusal_error",
    ModelGraderUnclear: "model_grader_parse_error",
}


def routes(store: Store, in_process: InProcess, router: Router) -> APIRouter:
    api = APIRouter(
        prefix="/v1/fine_tuning/alpha/graders",
        tags=["graders"],
        route_class=StrictRoute,
        responses=documented(400, 404),
    )

    @api.post("/validate")
    async def validate_grader(request: Request, body: ValidateGrader) -> ValidatedGrader:
        """Check a grader, and that its models are deployed."""
        check(body.grader)
        await check_models(router, [("grader", body.grader)], caller_of(request))
        return ValidatedGrader(grader=body.grader)

    @api.post("/run", responses=documented(403))
    async def run_grader(request: Request, body: RunGrader) -> GraderRun:
        """Grade one answer. A grader that cannot is answered with a reward of 0 and its error in `metadata.errors`."""
        check(body.grader)
        caller = caller_of(request)
        await check_models(router, [("grader", body.grader)], caller)
        if any(models_of(body.grader)):
            problem = await asyncio.to_thread(key_problem, store, caller)
            if problem is not None:
                raise ApiError(403, problem, code="insufficient_scope")
        calls = EndpointCalls(in_process, caller, background=False)
        namespaces = {"item": body.item, "sample": {"output_tools": []} | sample_of(body.model_sample)}
        began_s = time.monotonic()
        try:
            grade = await judge(body.grader, namespaces, calls)
        except GradingError as error:
            return _run(body.grader, None, errors_of(error), time.monotonic() - began_s)
        return _run(body.grader, grade, GraderErrors(), time.monotonic() - began_s)

    return api


async def check_models(router: Router, graders: Sequence[tuple[str, Grader]], caller: Caller) -> None:
    """Raise the error of a request to a grader's model, with its field. `graders`: each with its own field."""
    for where, grader in graders:
        for model, embeds in models_of(grader):
            await check_model(router, f"{where}.model", model, caller, embeds=embeds)


async def check_model(router: Router, field: str, model: str, caller: Caller, *, embeds: bool = False) -> None:
    """Raise the error with which a request would be refused that calls the model, with the field that names it."""
    path, asked_at = ("/v1/classify", "/v1/embeddings") if embeds else ("/v1/chat/completions", None)
    try:
        await router.resolve(model, path, caller, asked_at=asked_at)
    except ApiError as error:
        raise ApiError(error.status, error.message, code=error.code, param=field, headers=error.headers) from error


def check(grader: Grader) -> None:
    """Raise ApiError 400 with all findings."""
    if refused := list(unsupported(grader, "grader")):
        error = invalid_fields(refused)
        error.code = "unsupported"
        raise error
    if findings := list(template_findings(grader, "grader")):
        raise invalid_fields(findings)


def errors_of(error: GradingError) -> GraderErrors:
    """Return an error as the route reports it."""
    flag = _FLAGS.get(type(error), "other_error")
    details = {"model_grader_server_error_details": error.message} if isinstance(error, ModelGraderFailed) else {}
    return GraderErrors.model_validate({flag: True, "details": error.message} | details)


def _run(grader: Grader, grade: Grade | None, errors: GraderErrors, seconds: float) -> GraderRun:
    tokens: dict[str, int] = {}
    for call in grade.calls if grade is not None else ():
        tokens[call.model] = tokens.get(call.model, 0) + call.prompt_tokens + call.completion_tokens
    scores = {} if grade is None else grade.parts or {grade.name: grade.score}
    metadata = GraderRunMetadata(
        name=grader.name,
        type=grader.type,
        errors=errors,
        execution_time=round(seconds, 6),
        scores=scores,
        token_usage=sum(tokens.values()) if tokens else None,
        sampled_model_name=None,
    )
    return GraderRun(
        reward=0.0 if grade is None else grade.score,
        sub_rewards={} if grade is None else grade.parts,
        metadata=metadata,
        model_grader_token_usage_per_model=tokens,
    )
