"""Judges one answer by one grader.

    grade = await judge(grader, {"item": {"label": "spam"}, "sample": {"output_text": "spam"}}, models)
    grade.score, grade.passed

Models are called through `ModelCalls`; comparing texts runs on a thread.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray_jobs.errors import GradingError, ModelGraderRefused, ModelGraderUnclear
from ray_jobs.graders.formula import parse_formula
from ray_jobs.graders.schema import (
    Grader,
    GraderMessage,
    LabelModelGrader,
    MultiGrader,
    PythonGrader,
    ScoreModelGrader,
    StringCheckGrader,
    TextSimilarityGrader,
)
from ray_jobs.graders.templates import fill
from ray_jobs.graders.text_metrics import similarity

_SCORE = r"-?(0|[1-9][0-9]{0,5})(\.[0-9]{1,6})?"
"""What a scoring model may answer."""

Namespaces = Mapping[str, Any]
"""`item` and `sample`, as JSON."""


@dataclass(frozen=True)
class ModelAnswer:
    """A model's answer to one request."""

    model: str
    text: str
    prompt_tokens: int
    completion_tokens: int
    refusal: str | None = None


class ModelCalls(Protocol):
    """Calls served models. Both raise ModelGraderFailed, or what ends the whole work."""

    async def chat(self, body: dict[str, Any]) -> ModelAnswer: ...

    async def embed(self, model: str, texts: list[str]) -> tuple[list[list[float]], ModelAnswer]: ...


@dataclass(frozen=True)
class Grade:
    """The result of one grader."""

    name: str
    type: str
    score: float
    passed: bool
    sample: dict[str, Any] | None = None
    """What the grader's model was sent and answered."""
    parts: dict[str, float] = field(default_factory=dict)
    """`multi`: the scores of its graders."""
    calls: tuple[ModelAnswer, ...] = ()


async def judge(grader: Grader, namespaces: Namespaces, models: ModelCalls) -> Grade:
    """Return the grade of one answer. Raises GradingError if there is none."""
    if isinstance(grader, StringCheckGrader):
        score = float(
            string_check(grader.operation, fill(grader.input, namespaces), fill(grader.reference, namespaces))
        )
        return Grade(grader.name, grader.type, score, score == 1.0)
    if isinstance(grader, TextSimilarityGrader):
        return await _similarity(grader, namespaces, models)
    if isinstance(grader, LabelModelGrader):
        return await _label(grader, namespaces, models)
    if isinstance(grader, ScoreModelGrader):
        return await _score(grader, namespaces, models)
    if isinstance(grader, MultiGrader):
        return await _multi(grader, namespaces, models)
    assert isinstance(grader, PythonGrader)
    raise GradingError("python graders are not supported")


def string_check(operation: str, text: str, reference: str) -> bool:
    """Compare two texts. `ilike` folds case as Unicode does."""
    if operation in ("eq", "ne"):
        return (text == reference) == (operation == "eq")
    if operation == "ilike":
        text, reference = text.casefold(), reference.casefold()
    return reference in text


async def _similarity(grader: TextSimilarityGrader, namespaces: Namespaces, models: ModelCalls) -> Grade:
    text, reference = fill(grader.input, namespaces), fill(grader.reference, namespaces)
    calls: tuple[ModelAnswer, ...] = ()
    if grader.model is not None:
        (first, second), call = await models.embed(grader.model, [text, reference])
        score, calls = _cosine(first, second), (call,)
    else:
        score = await asyncio.to_thread(similarity, grader.evaluation_metric, text, reference)
    passed = grader.pass_threshold is None or score >= grader.pass_threshold
    return Grade(grader.name, grader.type, score, passed, calls=calls)


async def _label(grader: LabelModelGrader, namespaces: Namespaces, models: ModelCalls) -> Grade:
    messages = _messages(grader.input, namespaces)
    answer = await models.chat(
        {"model": grader.model, "messages": messages, "structured_outputs": {"choice": grader.labels}}
    )
    label = _text_of(answer, grader.name)
    if label not in grader.labels:
        raise ModelGraderUnclear(f"{grader.name}: {grader.model} answered with none of the labels")
    passed = label in grader.passing_labels
    return Grade(grader.name, grader.type, float(passed), passed, _sample(messages, answer), calls=(answer,))


async def _score(grader: ScoreModelGrader, namespaces: Namespaces, models: ModelCalls) -> Grade:
    messages = _messages(grader.input, namespaces)
    sampling = {} if grader.sampling_params is None else grader.sampling_params.fields()
    answer = await models.chat(
        {"model": grader.model, "messages": messages, "structured_outputs": {"regex": _SCORE}} | sampling
    )
    text, (low, high) = _text_of(answer, grader.name), grader.range
    if not re.fullmatch(_SCORE, text) or not low <= float(text) <= high:
        raise ModelGraderUnclear(f"{grader.name}: {grader.model} answered with no number from {low:g} to {high:g}")
    threshold = (low + high) / 2 if grader.pass_threshold is None else grader.pass_threshold
    score = float(text)
    return Grade(grader.name, grader.type, score, score >= threshold, _sample(messages, answer), calls=(answer,))


async def _multi(grader: MultiGrader, namespaces: Namespaces, models: ModelCalls) -> Grade:
    formula = parse_formula(grader.calculate_output, grader.graders)
    grades = {key: await judge(part, namespaces, models) for key, part in grader.graders.items()}
    parts = {key: grade.score for key, grade in grades.items()}
    score = formula(parts)
    calls = tuple(call for grade in grades.values() for call in grade.calls)
    passed = grader.pass_threshold is None or score >= grader.pass_threshold
    return Grade(grader.name, grader.type, score, passed, parts=parts, calls=calls)


def _messages(templates: list[GraderMessage], namespaces: Namespaces) -> list[dict[str, str]]:
    return [{"role": message.role, "content": fill(message.text, namespaces)} for message in templates]


def _text_of(answer: ModelAnswer, name: str) -> str:
    if answer.refusal:
        raise ModelGraderRefused(f"{name}: {answer.model} refused to grade")
    return answer.text.strip()


def _sample(messages: list[dict[str, str]], answer: ModelAnswer) -> dict[str, Any]:
    return {
        "input": messages,
        "output": [{"role": "assistant", "content": answer.text}],
        "model": answer.model,
        "usage": {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens},
    }


def _cosine(first: list[float], second: list[float]) -> float:
    lengths = math.hypot(*first) * math.hypot(*second)
    return sum(a * b for a, b in zip(first, second, strict=True)) / lengths if lengths else 0.0
