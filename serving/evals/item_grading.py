"""A row of a run's data → its output item: sampled by the run's model, if it has one, and judged by each grader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_jobs.errors import GradingError
from ray_jobs.graders.grade import Grade, judge
from ray_jobs.graders.schema import Grader, Messages
from ray_jobs.graders.templates import fill, lookup, parse_path, path_text, sample_of, text_of
from serving.access.in_process import Answer
from serving.evals import records
from serving.evals.model_calls import CHAT, EndpointCalls, tokens_of
from serving.evals.records import StoredRun
from serving.http.eval_types import (
    EvalError,
    ItemMessage,
    ItemResult,
    ItemSample,
    ItemStatus,
    MessagesReference,
    MessagesTemplate,
    ModelQuestion,
    OutputItem,
    RunModelUsage,
    SampleUsage,
    SourceRow,
)

SEED = 42
"""OpenAI's default, so that two runs of one model are equal."""
MAX_ITEM_BYTES = 512 * 2**10
"""Most bytes of a stored output item. A longer one is stored without prompts, and its answer is cut."""
_MAX_ANSWER = 50_000


@dataclass(frozen=True)
class Sampled:
    """A model's answer to a row."""

    namespace: dict[str, Any] | None
    """`sample`. None: there is no answer."""
    shown: ItemSample
    usage: RunModelUsage | None


async def grade_row(
    run: StoredRun,
    graders: list[Grader],
    question: ModelQuestion | None,
    number: int,
    row: SourceRow,
    calls: EndpointCalls,
    now_s: float,
) -> tuple[OutputItem, list[RunModelUsage]]:
    """Return a row's output item, and what it used. `question`: None if rows have their answers."""
    sampled = await _sample(question, row, calls) if question is not None else _given(row)
    usage = [] if sampled.usage is None else [sampled.usage]
    results = list[ItemResult]()
    if sampled.shown.error is None:
        namespaces = {"item": row.item} | ({} if sampled.namespace is None else {"sample": sampled.namespace})
        for grader in graders:
            result, used = await _judge(grader, namespaces, calls)
            results.append(result)
            usage += used
    errors = [sampled.shown.error, *(result.error for result in results)]
    status: ItemStatus = "error" if any(errors) else "pass" if all(result.passed for result in results) else "fail"
    item = OutputItem(
        id=f"{records.item_prefix(run.id)}{number:06d}",
        created_at=int(now_s),
        run_id=run.id,
        eval_id=run.eval_id,
        status=status,
        datasource_item_id=number,
        datasource_item=row.item,
        results=results,
        sample=sampled.shown,
    )
    return _bounded(item), usage


def messages_for(asked: MessagesTemplate | MessagesReference, item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the conversation that a row is. Raises GradingError."""
    namespaces = {"item": item}
    if isinstance(asked, MessagesTemplate):
        return filled(asked.template, namespaces)
    path = parse_path(asked.item_reference)
    found = lookup(path, namespaces)
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise GradingError(f"{path_text(path)} is not a list of messages")
    return found


def filled(templates: Messages, namespaces: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": fill(message.text, namespaces)} for message in templates]


async def _sample(question: ModelQuestion, row: SourceRow, calls: EndpointCalls) -> Sampled:
    assert question.input_messages is not None  # checked with the request
    sampling = {"seed": SEED} | (question.sampling_params or {})
    shown = {name: sampling[name] for name in ItemSample.model_fields.keys() & sampling if sampling[name] is not None}
    model = question.model or ""
    try:
        messages = messages_for(question.input_messages, row.item)
    except GradingError as error:
        return Sampled(None, ItemSample(model=model, error=error_of(error), **shown), None)
    shown["input"] = [_shown(message) for message in messages]
    answer = await calls.post(CHAT, {"model": model, "messages": messages} | sampling)
    if not answer.ok:
        found = answer.body["error"]
        refused = EvalError(code=str(found["code"]), message=str(found["message"]))
        return Sampled(None, ItemSample(model=model, error=refused, **shown), None)
    return _answered(model, messages, answer, shown)


def _answered(model: str, messages: list[dict[str, Any]], answer: Answer, shown: dict[str, Any]) -> Sampled:
    choice = answer.body["choices"][0]
    message, finish = choice["message"], str(choice.get("finish_reason") or "")
    prompt, completion = tokens_of(answer)
    tools = message.get("tool_calls") or []
    namespace = sample_of(message.get("content") or "")
    namespace |= {"output_tools": tools, "model": model, "finish_reason": finish, "input": messages}
    namespace |= {"choices": [{"message": message, "finish_reason": finish}]}
    content = message.get("content")
    sample = ItemSample(
        model=model,
        output=[ItemMessage(role="assistant", content=text_of(tools) if content is None and tools else content)],
        finish_reason=finish,
        usage=SampleUsage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion),
        **shown,
    )
    return Sampled(namespace, sample, _used(model, prompt, completion))


def _given(row: SourceRow) -> Sampled:
    """Return the answer that a row has already."""
    given = row.sample
    if given is None:
        return Sampled(None, ItemSample(), None)
    text = given.get("output_text")
    namespace = (sample_of(text) if isinstance(text, str) else {}) | given
    output = [ItemMessage(role="assistant", content=text)] if isinstance(text, str) else []
    return Sampled(namespace, ItemSample(output=output), None)


async def _judge(
    grader: Grader, namespaces: Mapping[str, Any], calls: EndpointCalls
) -> tuple[ItemResult, list[RunModelUsage]]:
    try:
        grade = await judge(grader, namespaces, calls)
    except GradingError as error:
        result = ItemResult(name=grader.name, type=grader.type, score=0.0, passed=False, error=error_of(error))
        return result, []
    result = ItemResult(name=grade.name, type=grade.type, score=grade.score, passed=grade.passed, sample=_detail(grade))
    return result, [_used(call.model, call.prompt_tokens, call.completion_tokens) for call in grade.calls]


def error_of(error: GradingError) -> EvalError:
    return EvalError(code=_CODES.get(type(error).__name__, "grading_failed"), message=error.message)


_CODES = {
    "UnknownVariable": "unknown_variable",
    "SampleNotJson": "sample_not_json",
    "FormulaError": "formula_error",
    "ModelGraderFailed": "model_grader_failed",
    "ModelGraderRefused": "model_grader_refused",
    "ModelGraderUnclear": "model_grader_unclear",
}


def _detail(grade: Grade) -> dict[str, Any] | None:
    return {"scores": grade.parts} if grade.parts else grade.sample


def _used(model: str, prompt: int, completion: int) -> RunModelUsage:
    return RunModelUsage(
        model_name=model,
        invocation_count=1,
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
    )


def _shown(message: Mapping[str, Any]) -> ItemMessage:
    content = message.get("content")
    return ItemMessage(role=str(message.get("role")), content=None if content is None else text_of(content))


def _bounded(item: OutputItem) -> OutputItem:
    if len(item.model_dump_json().encode()) <= MAX_ITEM_BYTES:
        return item
    output = [each.model_copy(update={"content": (each.content or "")[:_MAX_ANSWER]}) for each in item.sample.output]
    sample = item.sample.model_copy(update={"input": [], "output": output})
    results = [result.model_copy(update={"sample": None}) for result in item.results]
    return item.model_copy(update={"sample": sample, "results": results})
