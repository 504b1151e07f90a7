"""What the endpoint tells of itself: labels that stay few, figures that are right, lines that hold no secret."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from io import StringIO
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access.auth import AccessMiddleware
from serving.access.rate_limiter import RateLimiter
from serving.observability import metrics as module
from serving.observability.finished_request import FinishedRequest
from serving.observability.metrics import Metrics
from serving.observability.middleware import ObservabilityMiddleware, log_requests
from serving.settings import EndpointSettings

KEY = "a-key-of-the-tests"
PROMPT = "the prompt is nobody's business"


@dataclass(frozen=True)
class Caller:
    team: str
    key_id: str


class Named:
    """In the place of the gate: says who asks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["state"]["caller"] = Caller("blue", "key-1")
        await self._app(scope, receive, send)


def make_app() -> FastAPI:
    app = FastAPI()
    files = APIRouter(prefix="/v1/files")

    @files.get("/{file_id}")
    async def file(file_id: str) -> Response:
        return JSONResponse({"id": file_id})

    app.include_router(files)

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        return JSONResponse({"id": model})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        request.state.model = "greeter@1"

        async def chunks() -> AsyncIterator[bytes]:
            yield b"data: one\n\n"
            if body.get("breaks"):
                raise RuntimeError("the engine is gone")
            yield b"data: two\n\n"
            request.state.usage = (11, 2)

        if body.get("stream"):
            return StreamingResponse(chunks(), media_type="text/event-stream")
        request.state.usage = (11, 7)
        return JSONResponse({"answer": "yes"})

    @app.get("/broken")
    async def broken() -> Response:
        raise RuntimeError("boom")

    return app


class Seen:
    """An observed app, and all that it told."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.lines: list[str] = []
        self.done: list[FinishedRequest] = []
        inner = make_app()
        settings = EndpointSettings(api_key=KEY, max_body_bytes=1000)
        gate = AccessMiddleware(
            Named(inner), settings, limiter=RateLimiter(max_ongoing_requests=100), behind_proxy=False
        )
        app = ObservabilityMiddleware(
            gate, self.metrics, routes=lambda: inner.routes, on_end=[self.done.append], write=self.lines.append
        )
        self.client = TestClient(app, headers={"Authorization": f"Bearer {KEY}"}, raise_server_exceptions=False)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def labels(self, family: str, label: str) -> set[str]:
        return {
            sample.labels[label]
            for found in self.metrics.registry.collect()
            if found.name == family
            for sample in found.samples
        }

    @property
    def line(self) -> dict[str, Any]:
        (line,) = self.lines
        loaded: dict[str, Any] = json.loads(line)
        return loaded


@pytest.fixture
def seen() -> Iterator[Seen]:
    made = Seen()
    with made.client:
        yield made


def test_a_request_is_counted_by_its_routes_template(seen: Seen) -> None:
    for name in ("file-1", "file-2"):
        assert seen.client.get(f"/v1/files/{name}").status_code == 200
    assert seen.client.get("/v1/models/org/base").status_code == 200
    assert seen.value("kitae_requests_total", route="/v1/files/{file_id}", method="GET", status="200") == 2
    assert seen.labels("kitae_requests", "route") == {"/v1/files/{file_id}", "/v1/models/{model:path}"}
    assert seen.value("kitae_request_duration_seconds_count", route="/v1/files/{file_id}", method="GET") == 2
    # {"id":"file-1"}, twice
    assert seen.value("kitae_response_size_bytes_sum", route="/v1/files/{file_id}") == 30
    assert seen.value("kitae_requests_in_progress") == 0


@given(
    paths=st.lists(st.text("abc/%.", min_size=1, max_size=20), min_size=1, max_size=8),
    method=st.text("ABZ", min_size=1),
)
def test_no_path_and_no_method_that_a_caller_invents_becomes_a_label(paths: list[str], method: str) -> None:
    seen = Seen()
    for path in paths:
        seen.client.request(method, f"/nowhere/{path}")
    assert seen.labels("kitae_requests", "route") == {"other"}
    assert seen.labels("kitae_requests", "method") == {"other"}
    assert not any("nowhere" in line for line in seen.lines)


def test_what_is_refused_before_routing_still_has_its_route(seen: Seen) -> None:
    assert seen.client.post("/v1/chat/completions", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert seen.client.get("/v1/files/f", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert seen.client.put("/v1/chat/completions").status_code == 405
    assert seen.value("kitae_requests_total", route="/v1/chat/completions", method="POST", status="401") == 1
    assert seen.value("kitae_requests_total", route="/v1/chat/completions", method="PUT", status="405") == 1
    assert seen.value("kitae_requests_total", route="/v1/files/{file_id}", method="GET", status="401") == 1
    assert [done.team for done in seen.done] == [None, None, "blue"]


def test_tokens_are_counted_by_model_kind_and_team(seen: Seen) -> None:
    seen.client.post("/v1/chat/completions", json={"model": "a spelling of the caller"})
    seen.client.post("/v1/chat/completions", json={"stream": True})
    assert seen.value("kitae_tokens_total", model="greeter@1", kind="prompt", team="blue") == 22
    assert seen.value("kitae_tokens_total", model="greeter@1", kind="completion", team="blue") == 9
    assert seen.labels("kitae_tokens", "model") == {"greeter@1"}


def test_models_beyond_a_number_share_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_MODELS", 2)
    metrics = Metrics()
    for name in ("a", "b", "c", "d", "a"):
        metrics.observe(finished(model=name))
    values = {
        sample.labels["model"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "kitae_tokens_total" and sample.labels["kind"] == "prompt"
    }
    assert values == {"a": 6, "b": 3, "other": 6}


def finished(**changes: Any) -> FinishedRequest:
    fields: dict[str, Any] = {
        "request_id": "r",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "complete": True,
        "duration_s": 0.5,
        "first_chunk_s": None,
        "response_bytes": 10,
        "team": "blue",
        "key_id": "key-1",
        "model": "m",
        "prompt_tokens": 3,
        "completion_tokens": 1,
    }
    return FinishedRequest(**(fields | changes))


def test_a_stream_is_measured_to_its_first_piece_and_to_its_end(seen: Seen) -> None:
    seen.client.post("/v1/chat/completions", json={"stream": True})
    seen.client.post("/v1/chat/completions", json={})
    assert seen.value("kitae_time_to_first_token_seconds_count", route="/v1/chat/completions") == 1
    stream, plain = seen.done
    assert plain.first_chunk_s is None
    assert stream.first_chunk_s is not None
    assert 0 < stream.first_chunk_s <= stream.duration_s
    assert (stream.complete, stream.completion_tokens) == (True, 2)


def test_a_stream_that_breaks_off_is_not_complete(seen: Seen) -> None:
    seen.client.post("/v1/chat/completions", json={"stream": True, "breaks": True})
    assert (seen.line["status"], seen.line["complete"]) == (200, False)
    assert "completion_tokens" not in seen.line


def test_an_error_of_ours_is_counted_as_one_and_logged_at_that_level(seen: Seen) -> None:
    assert seen.client.get("/broken").status_code == 500
    assert seen.value("kitae_requests_total", route="/broken", method="GET", status="500") == 1
    assert seen.line["level"] == "error"
    assert seen.value("kitae_requests_in_progress") == 0


def test_the_line_has_what_is_needed_and_no_secret(seen: Seen) -> None:
    answered = seen.client.post("/v1/chat/completions?token=abc", json={"prompt": PROMPT})
    line = seen.line
    assert line.pop("time").endswith("+00:00")
    assert line.pop("duration_ms") >= 0
    assert line == {
        "level": "info",
        "request_id": answered.headers["x-request-id"],
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "complete": True,
        "team": "blue",
        "key_id": "key-1",
        "model": "greeter@1",
        "prompt_tokens": 11,
        "completion_tokens": 7,
    }
    assert not any(secret in seen.lines[0] for secret in (KEY, PROMPT, "abc"))


def test_a_caller_cannot_write_a_line_of_their_own(seen: Seen) -> None:
    seen.client.get("/healthz", headers={"x-request-id": 'x"} {"level": "error' + "y" * 500})
    assert len(seen.lines[0].splitlines()) == 1
    assert len(seen.line["request_id"]) == 128


def test_lines_go_to_the_stream_and_nowhere_else(capsys: pytest.CaptureFixture[str]) -> None:
    stream = StringIO()
    log_requests(stream)
    log_requests(stream)
    client = TestClient(ObservabilityMiddleware(make_app(), Metrics()))
    client.get("/v1/files/f")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["route"] == "/v1/files/{file_id}"
    assert capsys.readouterr() == ("", "")


def scope(**changes: Any) -> Scope:
    return {"type": "http", "method": "GET", "path": "/", "headers": [(b"x-request-id", b"from-the-proxy")]} | changes


async def nothing() -> Message:
    return {"type": "http.disconnect"}


async def swallow(message: Message) -> None:
    pass


def test_a_caller_that_goes_away_before_the_answer_is_no_error_of_ours() -> None:
    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(60)

    async def cancelled() -> None:
        task = asyncio.create_task(app(scope(), nothing, swallow))
        await asyncio.sleep(0)
        assert metrics.registry.get_sample_value("kitae_requests_in_progress") == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    metrics, done = Metrics(), list[FinishedRequest]()
    app = ObservabilityMiddleware(waits, metrics, on_end=[done.append], write=lambda line: None)
    asyncio.run(cancelled())
    assert [(one.status, one.complete, one.request_id) for one in done] == [(499, False, "from-the-proxy")]
    assert metrics.registry.get_sample_value("kitae_requests_in_progress") == 0


def test_an_app_that_raises_before_it_answers_counts_as_500() -> None:
    async def raises(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("boom")

    done: list[FinishedRequest] = []
    app = ObservabilityMiddleware(raises, Metrics(), on_end=[done.append], write=lambda line: None)
    with pytest.raises(RuntimeError, match="boom"):
        asyncio.run(app(scope(), nothing, swallow))
    assert [one.status for one in done] == [500]


def test_a_requests_state_is_its_own() -> None:
    """A server may hand every request the same state."""

    async def names_a_model(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/named":
            scope["state"]["model"] = "greeter@1"

    shared: dict[str, Any] = {"from": "the lifespan"}
    done: list[FinishedRequest] = []
    app = ObservabilityMiddleware(names_a_model, Metrics(), on_end=[done.append], write=lambda line: None)
    for path in ("/named", "/"):
        asyncio.run(app(scope(path=path, state=shared), nothing, swallow))
    assert [one.model for one in done] == ["greeter@1", None]
    assert shared == {"from": "the lifespan"}


def test_what_is_not_http_passes_by() -> None:
    passed: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    asyncio.run(ObservabilityMiddleware(app, Metrics(), write=passed.append)({"type": "lifespan"}, nothing, swallow))
    assert passed == ["lifespan"]


def test_jobs_and_deliveries() -> None:
    metrics = Metrics()
    metrics.set_jobs({"queued": 3, "running": 1})
    metrics.set_jobs({"running": 2, "failed": 1})
    metrics.webhook_delivery("delivered")
    value = metrics.registry.get_sample_value
    assert {status: value("kitae_jobs", {"status": status}) for status in ("queued", "running", "failed")} == {
        "queued": 0,
        "running": 2,
        "failed": 1,
    }
    assert value("kitae_webhook_deliveries_total", {"outcome": "delivered"}) == 1


def test_the_page_is_one_that_prometheus_reads_with_units_in_its_names(seen: Seen) -> None:
    seen.client.post("/v1/chat/completions", json={"stream": True})
    seen.metrics.set_jobs({"running": 1})
    body, content_type = seen.metrics.render()
    assert content_type.startswith("text/plain")
    families = {family.name for family in text_string_to_metric_families(body.decode())}
    families = {name for name in families if not name.endswith("_created")}
    assert families == {
        "kitae_requests",  # the parser takes _total off a counter's name
        "kitae_request_duration_seconds",
        "kitae_time_to_first_token_seconds",
        "kitae_tokens",
        "kitae_requests_in_progress",
        "kitae_response_size_bytes",
        "kitae_jobs",
        "kitae_webhook_deliveries",
    }


def test_two_apps_in_one_process_do_not_share_figures() -> None:
    one, two = Seen(), Seen()
    one.client.get("/v1/files/f")
    assert one.value("kitae_requests_total", route="/v1/files/{file_id}", method="GET", status="200") == 1
    assert two.value("kitae_requests_total", route="/v1/files/{file_id}", method="GET", status="200") is None
