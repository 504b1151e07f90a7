"""Inference routes over a fake backend: validation, responses, streams and failures."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serving.http import errors
from serving.inference.backends import Route
from serving.inference.streams import sent_events
from tests.serving.fake_backend import FakeBackend
from tests.serving.routing import ASK, error_of, make_client, make_snapshot, make_version


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_an_invalid_field_is_named(client: TestClient, change: dict[str, Any], param: str) -> None:
    error = error_of(client.post("/v1/chat/completions", json=ASK | change), 400)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_the_engine_gets_the_exact_version_and_a_new_request_id() -> None:
    backend = FakeBackend()
    with make_client(backend) as client:
        answer = client.post("/v1/chat/completions", json=ASK | {"request_id": "theirs"}).json()
    ((route, method, body),) = backend.calls
    assert (route.adapter, method, body["model"]) == ("greeter@10", "chat", "greeter@10")
    assert body["request_id"] != "theirs"
    assert answer["model"] == "greeter@10"
    assert answer["choices"][0]["message"]["content"] == "good day to you"
    assert backend.closed == 1


def test_a_stream_is_forwarded_chunk_by_chunk() -> None:
    backend = FakeBackend()
    with make_client(backend) as client:
        response = client.post("/v1/chat/completions", json=ASK | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    words = [json.loads(event)["choices"][0]["delta"].get("content") for event in events[:-2]]
    assert words == ["good", "day", "to", "you"]
    assert backend.closed == 1


@pytest.mark.anyio
async def test_a_disconnecting_client_ends_the_request() -> None:
    backend = FakeBackend()
    body = ASK | {"stream": True}
    pieces = backend.generate(Route("m", "a", "chat"), "chat", body)
    first = await anext(pieces)
    assert isinstance(first, str)
    async with aclosing(sent_events([first], pieces, lambda error: None)) as stream:
        await anext(stream)
    assert backend.closed == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "code", "retry_after"),
    [
        (errors.queue_full("greeter"), 429, "queue_full", "1"),
        (errors.not_ready("greeter"), 503, "model_not_ready", "5"),
        (RuntimeError("secret internals"), 500, "internal_error", None),
    ],
)
def test_a_failure_before_the_first_chunk_sets_the_status(
    stream: bool, failure: Exception, status: int, code: str | None, retry_after: str | None
) -> None:
    with make_client(FakeBackend(failure=failure)) as client:
        response = client.post("/v1/chat/completions", json=ASK | {"stream": stream})
    error = error_of(response, status)
    assert error["code"] == code
    assert response.headers.get("retry-after") == retry_after
    assert "secret" not in response.text


def test_a_failure_after_the_first_chunk_is_an_event_of_the_stream() -> None:
    with make_client(FakeBackend(failure=RuntimeError("secret internals"), fail_after=2)) as client:
        response = client.post("/v1/chat/completions", json=ASK | {"stream": True})
    last = json.loads(response.text.strip().splitlines()[-1].removeprefix("data: "))
    assert last["error"]["type"] == "server_error"
    assert "secret" not in response.text


def test_an_engines_error_keeps_its_status_and_message() -> None:
    refusal = {"message": "This model's maximum context length is 64 tokens", "code": 400, "param": "messages"}
    with make_client(FakeBackend(refusal=refusal)) as client:
        error = error_of(client.post("/v1/chat/completions", json=ASK), 400)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"
    with make_client(FakeBackend(refusal={"message": "secret internals", "code": 500})) as client:
        assert "secret" not in error_of(client.post("/v1/chat/completions", json=ASK), 500)["message"]
    with make_client(FakeBackend(refusal={"message": "EngineDeadError", "code": 503})) as client:
        assert error_of(client.post("/v1/chat/completions", json=ASK), 503)["code"] == "model_not_ready"


def test_completions_need_a_prompt(client: TestClient) -> None:
    assert error_of(client.post("/v1/completions", json={"model": "base"}), 400)["param"] == "prompt"
    answer = client.post("/v1/completions", json={"model": "base", "prompt": "one two"}).json()
    assert answer["choices"][0]["message"]["content"] == "one two"


CLASSIFIER = make_snapshot(
    make_version("1"), make_version("1", name="spam", task="text_classification", kind="predictor")
)


def test_classification_returns_labels_scores_and_usage() -> None:
    with make_client(snapshot=CLASSIFIER) as client:
        answer = client.post("/v1/classify", json={"model": "spam", "input": ["buy now", "hi"]}).json()
        single = client.post("/v1/classify", json={"model": "spam@1", "input": "buy now"}).json()
    assert answer["object"] == "list"
    assert answer["model"] == "spam@1"
    assert answer["data"][1] == {"index": 1, "label": "spam", "scores": {"ham": 0.25, "spam": 0.75}}
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert len(single["data"]) == 1


@pytest.mark.parametrize("given", [None, [], 3, [1], ["a"] * 1025, {"a": 1}])
def test_classification_needs_texts(given: Any) -> None:
    param = "input[0]" if given == [1] else "input"
    with make_client(snapshot=CLASSIFIER) as client:
        assert error_of(client.post("/v1/classify", json={"model": "spam", "input": given}), 400)["param"] == param


def test_a_request_for_another_task_is_refused() -> None:
    with make_client(snapshot=CLASSIFIER) as client:
        error = error_of(client.post("/v1/chat/completions", json=ASK | {"model": "spam"}), 400)
        assert error["code"] == "wrong_task"
        assert "/v1/classify" in error["message"]
        error = error_of(client.post("/v1/embeddings", json={"model": "greeter", "input": "hi"}), 400)
        assert "instead of /v1/embeddings" in error["message"]
        error = error_of(client.post("/v1/classify", json={"model": "greeter", "input": "hi"}), 400)
        assert "/v1/chat/completions" in error["message"]
