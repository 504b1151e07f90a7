"""No foreign exception leaves a replica: vLLM's own validators and failures become plain errors, the caller's a 400."""

from __future__ import annotations

import asyncio
import json
import pickle
from typing import Any

import pytest

from ray_jobs.errors import MachineError, StoreUnreachable
from serving.http.errors import from_engine
from serving.inference.engine_errors import plain_errors
from serving.inference.llm import Engine, memory_gib

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "tools": []}


class VLLMValidationError(Exception):
    """Named and shaped as vLLM's."""

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class TemplateError(Exception):
    """Named as Jinja's."""


class Request:
    """A request model that refuses with `failure`."""

    failure: Exception | None = None

    @classmethod
    def model_validate(cls, body: dict[str, Any]) -> Request:
        if cls.failure is not None:
            raise cls.failure
        return cls()


class Answer:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def model_dump(self, mode: str) -> dict[str, Any]:
        return vars(self)


class Server:
    """An LLMServer that sends `items` and then raises `failure`."""

    def __init__(self, items: list[Any], failure: Exception | None = None, *, dead: bool = False) -> None:
        self.items, self.failure = items, failure
        self.engine = Answer(_engine_client=Answer(errored=dead))

    async def chat(self, request: Request) -> Any:
        async def answer() -> Any:
            for item in self.items:
                yield item
            if self.failure is not None:
                raise self.failure

        return answer()

    async def check_health(self) -> None:
        raise VLLMValidationError("EngineDeadError")


def engine_with(server: Server) -> Engine:
    engine = object.__new__(Engine)
    engine._server = server  # type: ignore[assignment]
    engine._context_tokens = 64
    return engine


async def answer_of(server: Server, body: dict[str, Any] = BODY, invalid: Exception | None = None) -> list[Any]:
    schema = type("Invalid", (Request,), {"failure": invalid})
    return [item async for item in engine_with(server)._answer("chat", schema, body)]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("invalid", "param"),
    [
        (VLLMValidationError("`tools` must not be an empty array.", parameter="tools"), "tools"),
        (VLLMValidationError("odd. (parameter=tools, value=a prompt)", parameter="tools"), "tools"),
        (VLLMValidationError("set --enable-auto-tool-choice", parameter="tools"), "tools"),
        (ValueError("function-wrap[__log_extra_fields__()] literal['auto']"), None),
        (TypeError("'NoneType' object is not subscriptable"), None),
        (AttributeError("'str' object has no attribute 'get'"), None),
        (KeyError("function"), None),
    ],
    ids=repr,
)
async def test_a_refusal_of_vllms_request_model_is_the_callers(invalid: Exception, param: str | None) -> None:
    ((error,),) = [item.values() for item in await answer_of(Server([]), invalid=invalid)]
    refused = from_engine(error)
    assert (refused.status, refused.code, refused.param) == (400, "invalid_request", param)
    for inside in ("--", "a prompt", "function-", "literal", "NoneType", "attribute"):
        assert inside not in refused.message


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("failure", "dead", "status"),
    [
        (VLLMValidationError("out-of-vocab", parameter="logit_bias"), False, 400),
        (TemplateError("roles must alternate"), False, 400),
        (ValueError("token ids"), False, 400),
        (RuntimeError("CUDA error"), False, 500),
        (KeyError("x"), False, 500),
        (RuntimeError("EngineDeadError"), True, 503),
        (StoreUnreachable("the store"), False, 503),
    ],
    ids=repr,
)
async def test_a_failure_is_the_callers_or_the_engines(failure: Exception, dead: bool, status: int) -> None:
    """An engine's failure after a part of the answer is never the caller's."""
    (item,) = await answer_of(Server([], failure, dead=dead))
    assert from_engine(item["error"]).status == status
    first, last = await answer_of(Server(["data: {}\n\n"], failure, dead=dead))
    assert first == "data: {}\n\n"
    assert from_engine(last["error"]).status == (503 if status == 503 else 500)
    json.dumps(last)  # plain values


@pytest.mark.anyio
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_error_that_vllm_returns_is_translated(streamed: bool) -> None:
    long = "This model's maximum context length is 64 tokens. However, you requested 8 output tokens and your prompt"
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"message": long, "param": "input_tokens", "code": 400}, (400, "context_length_exceeded", "messages")),
        ({"message": "Traceback: vllm", "param": None, "code": 400}, (400, "invalid_request", None)),
        ({"message": "boom", "type": "InternalServerError", "code": 500}, (500, "engine_failed", None)),
    ]
    for error, expected in cases:
        item = f"data: {json.dumps({'error': error})}\n\n" if streamed else Answer(error=Answer(**error))
        (answer,) = await answer_of(Server([item]))
        found = from_engine(answer["error"])
        assert (found.status, found.code, found.param) == expected
        assert "vllm" not in found.message


@pytest.mark.anyio
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_more_tokens_than_the_context_name_the_field(field: str) -> None:
    body = {"messages": BODY["messages"], field: 64}
    (answer,) = await answer_of(Server([]), body)
    error = from_engine(answer["error"])
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", field)
    assert error.message == f"{field} is 64; this model has 64 tokens for prompt and answer"


@pytest.mark.anyio
async def test_an_engine_that_grows_over_its_bound_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_with(Server([]))
    monkeypatch.setattr(Server, "check_health", lambda self: asyncio.sleep(0))
    engine._memory_gib = memory_gib() + 1
    await engine.check_health()
    engine._memory_gib = memory_gib() / 2
    with pytest.raises(MachineError, match="GiB"):
        await engine.check_health()


@pytest.mark.anyio
async def test_what_leaves_a_replica_needs_no_foreign_package() -> None:
    with pytest.raises(RuntimeError, match="EngineDeadError"):
        await engine_with(Server([])).check_health()
    with pytest.raises(RuntimeError) as raised, plain_errors("a prediction"):
        raise VLLMValidationError("x")
    assert type(raised.value) is RuntimeError
    assert b"VLLM" not in pickle.dumps(type(raised.value))
    with pytest.raises(StoreUnreachable), plain_errors("a prediction"):
        raise StoreUnreachable("the store")
