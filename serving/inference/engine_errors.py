"""What leaves an engine's or a predictor's replica when a request fails: plain dictionaries and built-in exceptions.

An exception of vLLM, torch or pydantic must not leave it: the process that unpickles it imports that package, which
blocks the endpoint's event loop for half a minute. Imports none of them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray_jobs.errors import KitaeError, StoreError
from serving.http.errors import CONTEXT_LENGTH_WORDS

logger = logging.getLogger(__name__)

_CALLERS = {"VLLMClientError", "VLLMValidationError", "TemplateError", "ValueError", "TypeError", "OverflowError"}
"""Classes by which vLLM itself marks a request that it cannot answer (`vllm.entrypoints`, `create_error_response`)."""
_INTERNALS = re.compile(
    r"vllm|pydantic|jinja|torch|xgrammar|traceback|https?:|--[a-z]|/\w+/\w+|\w(Error|Exception|Params)\b|<class|[\[{].*[:(]"
    r"|please file|\n",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"\s*\((?:parameter|value)=.*\)$", re.DOTALL)
"""vLLM's end of a message, which may quote a prompt."""
_MAX_MESSAGE = 300
_NOT_ACCEPTED = "the model does not accept this request"


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Raise every failure but Kitae's own as RuntimeError, which any process can unpickle; log the original."""
    try:
        yield
    except KitaeError:
        raise
    except Exception as failure:
        logger.exception("%s failed", what)
        raise RuntimeError(f"{what} failed: {type(failure).__name__}: {failure}") from None


def invalid_request(failure: Exception, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the error of a body that vLLM's request model refuses; any failure there is the request's."""
    parameter = getattr(failure, "parameter", None)
    if parameter is None and callable(details := getattr(failure, "errors", None)):
        parameter = next((str(found["loc"][0]) for found in details() if found.get("loc")), None)
    logger.info("the engine's request model refused a request: %s", type(failure).__name__)
    return refusal(_message(failure), parameter, body, context_tokens=None)


def failed_request(
    failure: Exception, body: Mapping[str, Any], *, started: bool, dead: bool, context_tokens: int | None
) -> dict[str, Any]:
    """Return the error of a request that failed. `started`: it had a part of its answer; `dead`: so is the engine."""
    if isinstance(failure, StoreError) or dead:
        logger.exception("a request failed")
        return {"message": "the engine cannot answer now", "code": 503}
    names = {kind.__name__ for kind in type(failure).__mro__}
    if not started and names & _CALLERS:
        return refusal(_message(failure), getattr(failure, "parameter", None), body, context_tokens=context_tokens)
    logger.exception("a request failed")
    return {"message": "the engine failed", "code": 500}


def translated(error: Mapping[str, Any], body: Mapping[str, Any], *, context_tokens: int | None) -> dict[str, Any]:
    """Translate an error that vLLM returned."""
    status = error.get("code")
    if status == 503:
        return {"message": "the engine cannot answer now", "code": 503}
    if not isinstance(status, int) or not 400 <= status < 500:
        logger.error("the engine failed: %s", error.get("type"))
        return {"message": "the engine failed", "code": 500}
    return refusal(str(error.get("message", "")), error.get("param"), body, context_tokens=context_tokens)


def refusal(message: str, param: object, body: Mapping[str, Any], *, context_tokens: int | None) -> dict[str, Any]:
    """Return a 400 in the caller's terms: a field of the request, and no internals in the message."""
    if any(words in message for words in CONTEXT_LENGTH_WORDS):
        return over_context(body, context_tokens)
    message = _QUOTED.sub("", message)
    field = str(param).split(".")[0] if isinstance(param, str) else None
    field = field if field in body else None
    public = message if message and len(message) <= _MAX_MESSAGE and not _INTERNALS.search(message) else _NOT_ACCEPTED
    if public == _NOT_ACCEPTED and field is not None:
        public = f"the model does not accept this {field}"
    return {"message": public, "param": field, "code": 400}


def _message(failure: Exception) -> str:
    """Return the message of a class that speaks to callers; Python's own speak of the code that raised them."""
    names = {kind.__name__ for kind in type(failure).__mro__}
    return str(failure) if names & {"VLLMClientError", "VLLMValidationError", "TemplateError"} else ""


def no_tools(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the error of a request that leaves the choice of a tool to a model whose base does not write calls."""
    message = (
        f"{body.get('model')!r} cannot choose tools: the chat template of its base has no tool calls. Set tool_choice "
        "to required, to one function, or to none"
    )
    return {"message": message, "param": "tool_choice", "code": 400, "reason": "unsupported"}


def over_context(body: Mapping[str, Any], context_tokens: int | None) -> dict[str, Any]:
    """Return the error of a request that does not fit the model's context, which names `max_tokens` if that is why."""
    limit = next((name for name in ("max_completion_tokens", "max_tokens") if body.get(name)), None)
    prompt = "messages" if "messages" in body else "prompt"
    whole = "a limited number of" if context_tokens is None else str(context_tokens)
    has = f"this model has {whole} tokens for prompt and answer"
    if limit is None:
        message, param = f"{prompt} is too long: {has}", prompt
    elif context_tokens is not None and body[limit] >= context_tokens:
        message, param = f"{limit} is {body[limit]}; {has}", limit
    else:
        message, param = f"{prompt} is too long with {limit} {body[limit]}: {has}", prompt
    return {"message": message, "param": param, "code": 400, "reason": "context_length_exceeded"}
