"""Metrics and request log: bounded labels, correct values, and no secrets."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access.auth import AccessMiddleware
from serving.access.rate_limiter import RateLimiter
from serving.observability.metrics import FinishedRequest, Metrics
from serving.observability.middleware import ObservabilityMiddleware, log_requests
from serving.settings import EndpointSettings
from tests.serving.observability.finished_requests import finished

KEY = "a-key-of-the-tests"
PROMPT = "a private prompt"


@dataclass(frozen=True)
class Caller:
    team: str
    key_id: str


class Named:
    """Sets the caller, in place of the access middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["state"]["caller"] = Caller("blue", "k1")
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


class MeasuredApp:
    """An app behind the observability middleware, with its metrics and log lines."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.lines: list[str] = []
        self.done: list[FinishedRequest] = []
        inner = make_app()
        endpoint_settings = EndpointSettings(api_key=KEY, max_body_bytes=1000)
        gate = AccessMiddleware(
            Named(inner), endpoint_settings, limiter=RateLimiter(max_ongoing_requests=100), behind_proxy=False
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
def measured() -> Iterator[MeasuredApp]:
    app = MeasuredApp()
    with app.client:
        yield app


def test_a_request_is_counted_by_its_routes_template(measured: MeasuredApp) -> None:
    for name in ("file-1", "file-2"):
        assert measured.client.get(f"/v1/files/{name}").status_code == 200
    assert measured.client.get("/v1/models/org/base").status_code == 200
    assert measured.value("kitae_requests_total", route="/v1/files/{file_id}", method="GET", status="200") == 2
    assert measured.labels("kitae_requests", "route") == {"/v1/files/{file_id}", "/v1/models/{model:path}"}
    assert measured.value("kitae_request_duration_seconds_count", route="/v1/files/{file_id}", method="GET") == 2
    # {"id":"file-1"}, twice
    assert measured.value("kitae_response_size_bytes_sum", route="/v1/files/{file_id}") == 30
    assert measured.value("kitae_requests_in_progress") == 0


@settings(deadline=None)
@given(
    paths=st.lists(st.text("abc/%.", min_size=1, max_size=20), min_size=1, max_size=8),
    method=st.text("ABZ", min_size=1),
)
def test_unknown_paths_and_methods_do_not_become_labels(paths: list[str], method: str) -> None:
    measured = MeasuredApp()
    for path in paths:
        measured.client.request(method, f"/nowhere/{path}")
    assert measured.labels("kitae_requests", "route") == {"other"}
    assert measured.labels("kitae_requests", "method") == {"other"}
    assert not any("nowhere" in line for line in measured.lines)


def test_a_request_refused_before_routing_has_its_route(measured: MeasuredApp) -> None:
    assert measured.client.post("/v1/chat/completions", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert measured.client.get("/v1/files/f", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert measured.client.put("/v1/chat/completions").status_code == 405
    assert measured.value("kitae_requests_total", route="/v1/chat/completions", method="POST", status="401") == 1
    assert measured.value("kitae_requests_total", route="/v1/chat/completions", method="PUT", status="405") == 1
    assert measured.value("kitae_requests_total", route="/v1/files/{file_id}", method="GET", status="401") == 1
    assert [done.team for done in measured.done] == [None, None, "blue"]


def test_tokens_are_counted_by_model_kind_and_team(measured: MeasuredApp) -> None:
    measured.client.post("/v1/chat/completions", json={"model": "a spelling of the caller"})
    measured.client.post("/v1/chat/completions", json={"stream": True})
    assert measured.value("kitae_tokens_total", model="greeter@1", kind="prompt", team="blue") == 22
    assert measured.value("kitae_tokens_total", model="greeter@1", kind="completion", team="blue") == 9
    assert measured.labels("kitae_tokens", "model") == {"greeter@1"}


def test_models_beyond_the_maximum_share_a_label() -> None:
    metrics = Metrics(max_models=2)
    for name in ("a", "b", "c", "d", "a"):
        metrics.observe(finished(model=name))
    values = {
        sample.labels["model"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "kitae_tokens_total" and sample.labels["kind"] == "prompt"
    }
    assert values == {"a": 6, "b": 3, "other": 6}


def test_a_stream_is_measured_to_its_first_chunk_and_to_its_end(measured: MeasuredApp) -> None:
    measured.client.post("/v1/chat/completions", json={"stream": True})
    measured.client.post("/v1/chat/completions", json={})
    assert measured.value("kitae_time_to_first_token_seconds_count", route="/v1/chat/completions") == 1
    stream, plain = measured.done
    assert plain.first_chunk_s is None
    assert stream.first_chunk_s is not None
    assert 0 < stream.first_chunk_s <= stream.duration_s
    assert (stream.complete, stream.completion_tokens) == (True, 2)


def test_a_stream_that_breaks_off_is_not_complete(measured: MeasuredApp) -> None:
    measured.client.post("/v1/chat/completions", json={"stream": True, "breaks": True})
    assert (measured.line["status"], measured.line["complete"]) == (200, False)
    assert "completion_tokens" not in measured.line


def test_a_server_error_is_counted_and_logged_as_an_error(measured: MeasuredApp) -> None:
    assert measured.client.get("/broken").status_code == 500
    assert measured.value("kitae_requests_total", route="/broken", method="GET", status="500") == 1
    assert measured.line["level"] == "error"
    assert measured.value("kitae_requests_in_progress") == 0


def test_a_log_line_has_all_fields_and_no_secret(measured: MeasuredApp) -> None:
    answered = measured.client.post("/v1/chat/completions?token=abc", json={"prompt": PROMPT})
    line = measured.line
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
        "key_id": "k1",
        "model": "greeter@1",
        "prompt_tokens": 11,
        "completion_tokens": 7,
    }
    assert not any(secret in measured.lines[0] for secret in (KEY, PROMPT, "abc"))


def test_a_client_cannot_inject_log_lines(measured: MeasuredApp) -> None:
    measured.client.get("/healthz", headers={"x-request-id": 'x"} {"level": "error' + "y" * 500})
    assert len(measured.lines[0].splitlines()) == 1
    assert len(measured.line["request_id"]) == 128


def test_log_lines_are_written_to_the_stream_only(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_client_that_disconnects_before_the_response_counts_as_499() -> None:
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


def test_an_app_that_raises_before_its_response_counts_as_500() -> None:
    async def raises(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("boom")

    done: list[FinishedRequest] = []
    app = ObservabilityMiddleware(raises, Metrics(), on_end=[done.append], write=lambda line: None)
    with pytest.raises(RuntimeError, match="boom"):
        asyncio.run(app(scope(), nothing, swallow))
    assert [one.status for one in done] == [500]


def test_requests_do_not_share_state() -> None:
    """A server may pass the same state to every request."""

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


def test_other_protocols_are_passed_through() -> None:
    passed: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    asyncio.run(ObservabilityMiddleware(app, Metrics(), write=passed.append)({"type": "lifespan"}, nothing, swallow))
    assert passed == ["lifespan"]


def test_jobs_and_webhook_deliveries_are_counted() -> None:
    metrics = Metrics()
    metrics.set_jobs({"queued": 3, "running": 1})
    metrics.set_jobs({"running": 2, "failed": 1})
    metrics.webhook_delivery("delivered")
    metrics.stored_answer("failed")
    value = metrics.registry.get_sample_value
    assert {status: value("kitae_jobs", {"status": status}) for status in ("queued", "running", "failed")} == {
        "queued": 0,
        "running": 2,
        "failed": 1,
    }
    assert value("kitae_webhook_deliveries_total", {"outcome": "delivered"}) == 1
    assert value("kitae_stored_answers_total", {"outcome": "failed"}) == 1


def test_prometheus_parses_the_metrics_and_their_names_have_units(measured: MeasuredApp) -> None:
    measured.client.post("/v1/chat/completions", json={"stream": True})
    measured.metrics.set_jobs({"running": 1})
    body, content_type = measured.metrics.render()
    assert content_type.startswith("text/plain")
    families = {family.name for family in text_string_to_metric_families(body.decode())}
    families = {name for name in families if not name.endswith("_created")}
    assert families == {
        "kitae_requests",  # the parser strips _total from a counter's name
        "kitae_request_duration_seconds",
        "kitae_time_to_first_token_seconds",
        "kitae_tokens",
        "kitae_requests_in_progress",
        "kitae_response_size_bytes",
        "kitae_jobs",
        "kitae_webhook_deliveries",
        "kitae_stored_answers",
        "kitae_unreadable_records",
    }


def test_two_apps_in_one_process_do_not_share_metrics() -> None:
    one, two = MeasuredApp(), MeasuredApp()
    one.client.get("/v1/files/f")
    assert one.value("kitae_requests_total", route="/v1/files/{file_id}", method="GET", status="200") == 1
    assert two.value("kitae_requests_total", route="/v1/files/{file_id}", method="GET", status="200") is None
