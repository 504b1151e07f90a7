"""Requests that the endpoint sends to its own routes get what a client gets, and are counted once, as the caller's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ray_jobs.tenancy.api_keys import Limits
from serving.access.auth import Caller
from serving.access.in_process import Answer, InProcess
from serving.http.errors import ApiError
from serving.inference.backends import Chunks, Route
from serving.inference.router import RoutingSnapshot
from serving.observability.metrics import FinishedRequest, Metrics
from serving.observability.middleware import ObservabilityMiddleware
from tests.serving.api_harness import make_app
from tests.serving.fake_backend import FakeBackend
from tests.serving.routing import ADAPTERS, ASK, FixedRouter, make_snapshot, make_version

pytestmark = pytest.mark.anyio
CALLER = Caller("key-of-blue", "blue", Limits(concurrent_requests=1), admin=True)
CHAT = "/v1/chat/completions"


class SlowBackend(FakeBackend):
    """Answers once it is released, and counts what was cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.released = asyncio.Event()
        self.running = 0

    async def generate(self, route: Route, method: str, body: dict[str, Any]) -> Chunks:
        self.running += 1
        try:
            if body["messages"][-1]["content"] != "at once":
                await self.released.wait()
            async for chunk in super().generate(route, method, body):
                yield chunk
        finally:
            self.running -= 1


def in_process(backend: FakeBackend, snapshot: RoutingSnapshot = ADAPTERS) -> tuple[InProcess, list[FinishedRequest]]:
    """The endpoint without its gate, and what it counts."""
    done: list[FinishedRequest] = []
    whole: Any = make_app(FixedRouter(snapshot), backend)
    routes = whole._app.app.app  # within the measuring, the paths and the gate
    return InProcess(ObservabilityMiddleware(routes, Metrics(), on_end=[done.append])), done


async def test_an_answer_is_that_of_the_route_and_is_counted_for_the_caller() -> None:
    requests, done = in_process(FakeBackend())
    answer = await requests.post(CHAT, ASK, CALLER)
    assert (answer.status, answer.ok) == (200, True)
    assert answer.body["choices"][0]["message"]["content"] == "good day to you"
    (counted,) = done
    assert (counted.key_id, counted.team, counted.prompt_tokens, counted.completion_tokens) == (
        *("key-of-blue", "blue"),
        *(4, 4),
    )
    assert (counted.request_id, counted.background) == (answer.request_id, None)


async def test_a_refusal_is_an_answer() -> None:
    requests, done = in_process(FakeBackend())
    unknown = await requests.post(CHAT, ASK | {"model": "nothing"}, CALLER)
    assert (unknown.status, unknown.ok, unknown.body["error"]["code"]) == (404, False, "model_not_found")
    invalid = await requests.post(CHAT, ASK | {"temperature": 9}, CALLER)
    assert (invalid.status, invalid.body["error"]["param"]) == (400, "temperature")
    requests, _ = in_process(FakeBackend(failure=ApiError(503, "no", code="model_not_ready")))
    assert (await requests.post(CHAT, ASK, CALLER)).status == 503
    assert [each.status for each in done] == [404, 400]


async def test_a_background_request_begins_anew_after_an_interactive_one_and_is_counted_once() -> None:
    backend = SlowBackend()
    requests, done = in_process(backend)
    waiting = asyncio.create_task(requests.post(CHAT, ASK, CALLER, background=True))
    while not backend.running:
        await asyncio.sleep(0.001)
    said = [{"role": "user", "content": "at once"}]
    answer = await requests.post(CHAT, ASK | {"messages": said}, CALLER)
    assert answer.ok
    await asyncio.sleep(0.01)
    assert (backend.running, waiting.done()) == (0, False), "interrupted"
    backend.released.set()
    assert (await asyncio.wait_for(waiting, 20)).ok
    assert [(each.background, each.completion_tokens) for each in done] == [(None, 2), (True, 4)]
    asked = [body["request_id"] for _, _, body in backend.calls]
    assert len(set(asked)) == len(asked) == 2, "the interrupted one ended before the fake answered"


class HeldPredictor(FakeBackend):
    """Answers a text once it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = asyncio.Event()
        self.running: list[str] = []

    async def predict(self, route: Route, method: str, texts: list[str]) -> list[dict[str, Any]]:
        self.running += texts
        try:
            await self.released.wait()
            return await super().predict(route, method, texts)
        finally:
            self.running.remove(texts[0])


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/classify"])
async def test_a_predictor_is_left_to_interactive_requests(path: str) -> None:
    backend = HeldPredictor()
    requests, done = in_process(backend, make_snapshot(make_version(task="text_classification")))

    def post(text: str, *, background: bool) -> asyncio.Task[Answer]:
        body = {"model": "greeter", "input": text}
        return asyncio.create_task(requests.post(path, body, CALLER, background=background))

    line = post("line", background=True)
    await asyncio.sleep(0.05)
    assert backend.running == ["line"]
    asked = post("asked", background=False)
    await asyncio.sleep(0.05)
    assert backend.running == ["asked"], "the line is interrupted"
    backend.released.set()
    answers = await asyncio.wait_for(asyncio.gather(line, asked), 20)
    assert [answer.status for answer in answers] == [200, 200]
    assert [each.prompt_tokens for each in done] == [1, 1], "each is counted once"
