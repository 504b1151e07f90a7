"""`/v1/fine_tuning/alpha/graders`: checks a grader, and tries it on one answer."""

from __future__ import annotations

import asyncio
import time

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
from serving.access.auth import caller_of
from serving.access.in_process import InProcess
from serving.evals.model_calls import EndpointCalls
from serving.evals.runner import why_not
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

_FLAGS: dict[type[GradingError], str] = {
    UnknownVariable: "invalid_variable_error",
    SampleNotJson: "sample_parse_error",
    FormulaError: "formula_parse_error",
    ModelGraderFailed: "model_grader_server_error",
    ModelGraderRefused: "model_grader_refusal_error",
    ModelGraderUnclear: "model_grader_parse_error",
}


def routes(store: Store, in_process: InProcess) -> APIRouter:
    api = APIRouter(
        prefix="/v1/fine_tuning/alpha/graders", tags=["graders"], route_class=StrictRoute, responses=documented(400)
    )

    @api.post("/validate")
    def validate_grader(body: ValidateGrader) -> ValidatedGrader:
        """Check a grader's form. Whether its models are deployed is not checked."""
        check(body.grader)
        return ValidatedGrader(grader=body.grader)

    @api.post("/run", responses=documented(403))
    async def run_grader(request: Request, body: RunGrader) -> GraderRun:
        """Grade one answer. A grader that cannot is answered with a reward of 0 and its error in `metadata.errors`."""
        check(body.grader)
        caller = caller_of(request)
        if any(models_of(body.grader)):
            problem = await asyncio.to_thread(why_not, store, caller)
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
