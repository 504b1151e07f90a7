"""A stream never hides an error: before its first token it is the status, later an event of the usual shape, and in
metrics, log and rollouts a failure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serving.inference.backends import Chunks, Route
from serving.observability.metrics import FinishedRequest
from tests.serving.fake_backend import FakeBackend
from tests.serving.inference.rollouts import RecordingTraffic
from tests.serving.routing import ASK, error_of, make_client

ROLE: dict[str, Any] = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
WORD: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": "good"}, "finish_reason": None}]}
END: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
ABORTED: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]}
REFUSED: dict[str, Any] = {"error": {"message": "the prompt is odd", "param": "messages", "code": 400}}
FAILED: dict[str, Any] = {"error": {"message": "EngineCore: secret internals", "type": "X", "code": 500}}
DONE = "[DONE]"


@dataclass
class Script(FakeBackend):
    """Sends these events."""

    events: Sequence[dict[str, Any] | str] = ()
    together: bool = False
    """Whether all events are in one chunk."""

    async def generate(self, route: Route, method: str, body: dict[str, Any]) -> Chunks:
        texts = [f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in self.events]
        for text in ["".join(texts)] if self.together else texts:
            yield text


def ask(client: TestClient, **more: Any) -> Any:
    return client.post("/v1/chat/completions", json=ASK | {"stream": True} | more)


@pytest.mark.parametrize("opening", [[], [ROLE], [ROLE, ROLE]])
@pytest.mark.parametrize(
    ("error", "status", "code"), [(REFUSED, 400, "invalid_request"), (FAILED, 500, "engine_failed")]
)
def test_an_error_before_the_first_token_is_the_status(
    opening: list[Any], error: dict[str, Any], status: int, code: str
) -> None:
    with make_client(Script(events=[*opening, error, DONE])) as client:
        found = error_of(ask(client), status)
    assert found["code"] == code
    assert "secret" not in found["message"]


@pytest.mark.parametrize("events", [[DONE], [ROLE, DONE], [ROLE], [], [ROLE, ABORTED, DONE]])
def test_an_end_without_an_answer_is_a_failure(events: list[Any]) -> None:
    with make_client(Script(events=events)) as client:
        assert error_of(ask(client), 500)["code"] == "engine_failed"


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "events", [[ROLE, WORD, DONE], [ROLE, WORD], [ROLE, WORD, FAILED, DONE], [WORD, ABORTED, DONE]]
)
def test_a_failure_in_mid_stream_is_an_event_and_counts_as_one(
    monkeypatch: pytest.MonkeyPatch, events: list[Any], together: bool
) -> None:
    seen: list[FinishedRequest] = []
    monkeypatch.setattr("serving.observability.metrics.Metrics.observe", lambda self, done: seen.append(done))
    traffic = RecordingTraffic()
    with make_client(Script(events=events, together=together), traffic=traffic) as client:
        answer = ask(client)
    *_, last = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert answer.status_code == 200
    assert "good" in answer.text
    assert json.loads(last)["error"].keys() == {"message", "type", "param", "code"}
    assert json.loads(last)["error"]["code"] == "engine_failed"
    assert "secret" not in answer.text
    assert DONE not in answer.text
    assert [(done.status, done.complete) for done in seen] == [(500, False)]
    assert traffic.outcomes == [False]


def test_every_choice_needs_its_end() -> None:
    two = json.loads(json.dumps(END).replace('"index": 0', '"index": 1'))
    with make_client(Script(events=[WORD, END, DONE])) as client:
        assert "engine_failed" in ask(client, n=2, temperature=1).text
    with make_client(Script(events=[WORD, END, two, DONE])) as client:
        text = ask(client, n=2, temperature=1).text
    assert "error" not in text
    assert text.count("data: ") == 4
