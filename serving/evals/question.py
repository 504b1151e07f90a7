"""What a run asks a model: checked when the run is created, and read back by its runner.

A run of the type `responses` names its sampling as the Responses API does. Its rows, too, are answered by chat
completions. Knows no rows and no store.
"""

from __future__ import annotations

from typing import Any

from ray_jobs.errors import GradingError
from ray_jobs.graders.templates import parse_path, path_text, variables
from serving.evals.records import StoredRun
from serving.http.errors import ApiError, bad_request
from serving.http.eval_types import (
    STORED,
    CompletionsRunSource,
    MessagesTemplate,
    ModelQuestion,
    ResponsesRunSource,
)
from serving.inference.generation_request import parse_chat
from serving.responses import request as responses

_WHERE = "data_source.sampling_params"
_SAME = {"temperature", "top_p", "seed", "max_completion_tokens", "tools", "reasoning_effort"}
_COMPLETIONS = frozenset({*_SAME, "response_format"})
_RESPONSES = frozenset({*_SAME, "text"})


def check_question(data: CompletionsRunSource | ResponsesRunSource) -> None:
    """Raise ApiError 400 if a run's model, messages or sampling cannot work for any row."""
    if data.source.type in STORED and data.model is None and data.input_messages is None:
        return  # graded as they are
    for name in ("model", "input_messages"):
        if getattr(data, name) is None:
            raise bad_request(
                f"data_source.{name} is required for rows that a model answers", param=f"data_source.{name}"
            )
    known = _RESPONSES if isinstance(data, ResponsesRunSource) else _COMPLETIONS
    if unknown := sorted((data.sampling_params or {}).keys() - known):
        param = f"{_WHERE}.{unknown[0][:64]}"
        raise bad_request(f"{param} is unknown; known: {', '.join(sorted(known))}", param=param, code="unknown_field")
    try:
        sampling = _chat_fields(data.type, data.sampling_params or {})
        parse_chat({"model": data.model, "messages": [{"role": "user", "content": ""}]} | sampling)
    except ApiError as error:
        if isinstance(data, ResponsesRunSource) and (error.param or "").startswith(("tools", "response_format")):
            error = responses.replace_names(error, [])
        param = f"{_WHERE}.{error.param}"
        raise ApiError(error.status, f"{_WHERE}: {error}", code=error.code, param=param) from error
    _check_messages(data)


def question_of(run: StoredRun) -> ModelQuestion | None:
    """What a run asks for each row, with the fields of a chat completion. None: the rows have their answers."""
    if not run.model:
        return None
    found = ModelQuestion.model_validate(run.data_source, extra="ignore")
    return found.model_copy(
        update={"sampling_params": _chat_fields(run.data_source["type"], found.sampling_params or {})}
    )


def _chat_fields(kind: str, sampling: dict[str, Any]) -> dict[str, Any]:
    """Sampling as fields of a chat completion. Raises ApiError 400 that names the Responses API's field."""
    if kind != "responses":
        return sampling
    own = {name: sampling[name] for name in ("tools", "text") if name in sampling}
    chat = responses.parse(responses.parse_fields({"model": "m", "input": ""} | own), []).chat
    fields = {name: value for name, value in chat.items() if name not in ("model", "messages")}
    return fields | {name: value for name, value in sampling.items() if name not in own}


def _check_messages(data: ModelQuestion) -> None:
    where, asked = "data_source.input_messages", data.input_messages
    try:
        if isinstance(asked, MessagesTemplate):
            paths = [path for message in asked.template for path in variables(message.text)]
        else:
            paths = [parse_path(asked.item_reference)]  # type: ignore[union-attr]  # checked by the caller
    except GradingError as error:
        raise bad_request(f"{where}: {error.message}", param=where) from error
    if samples := [path for path in paths if path[0] == "sample"]:
        message = f"{where} uses {path_text(samples[0])[:80]}: there is no answer yet; use item"
        raise bad_request(message, param=where)
