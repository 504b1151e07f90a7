"""What the endpoint tells of itself: Prometheus metrics, and one line of JSON for every request.

Owns the metrics' names, labels and buckets, and the ASGI layer that measures. Does not know the routes, who keeps the
usage, or where the lines go. No body, prompt, path or key is ever written down.

    metrics = Metrics()
    app = Observed(app, metrics, routes=lambda: fastapi_app.routes, on_end=[ledger.count])
    body, content_type = metrics.render()  # what GET /metrics answers

A route says what only it knows: `request.state.model`, the name that it *resolved* (never the caller's spelling, for a
label must not grow with what callers invent), and `request.state.usage = (prompt_tokens, completion_tokens)`, at any
time before the end of the response, so also when the last piece of a stream has passed.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.errors import CLIENT_GONE

OTHER = "other"
"""The label of what has no name of its own: unknown paths, unknown methods, models beyond `_MAX_MODELS`."""

LOGGER = "serving.requests"
"""The logger of the requests' lines; a line is a whole JSON object."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_MAX_MODELS = 1000
_MAX_ID_CHARACTERS = 128
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_BYTES = tuple(float(4**power) for power in range(4, 16))  # 256 bytes to 1 GiB
_STREAM = "text/event-stream"


@dataclass(frozen=True)
class Finished:
    """A request that is over."""

    request_id: str
    method: str
    route: str
    """The route's template, such as `/v1/files/{file_id}`; `other` where no route has the path."""
    status: int
    complete: bool
    """Whether the whole answer was handed over; False for a stream that broke off."""
    duration_s: float
    first_piece_s: float | None
    """When the first piece of a stream was sent. None: the answer was no stream."""
    response_bytes: int
    team: str | None
    key_id: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None

    def as_line(self, at: datetime) -> str:
        """The log's line; what is not known of the request is left out."""
        fields: dict[str, object] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": "error" if self.status >= 500 else "info",
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "duration_ms": round(1000 * self.duration_s, 1),
            "complete": self.complete,
            "team": self.team,
            "key_id": self.key_id,
            "model": self.model,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }
        return json.dumps({name: value for name, value in fields.items() if value is not None}, ensure_ascii=False)


class Metrics:
    """One process's figures, in a registry of their own. Safe to share between threads."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._models: set[str] = set()
        self._statuses: set[str] = set()
        self.in_progress = Gauge("kitae_requests_in_progress", "Requests being answered.", registry=registry)
        self._requests = Counter(
            "kitae_requests_total", "Requests answered.", ["route", "method", "status"], registry=registry
        )
        self._duration = Histogram(
            "kitae_request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            ["route", "method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first_piece = Histogram(
            "kitae_time_to_first_token_seconds",
            "From a request's arrival to the first piece of a streamed answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._size = Histogram(
            "kitae_response_size_bytes", "Bodies sent.", ["route"], buckets=_BYTES, registry=registry
        )
        self._tokens = Counter(
            "kitae_tokens_total", "Tokens read and generated.", ["model", "kind", "team"], registry=registry
        )
        self._jobs = Gauge("kitae_jobs", "Jobs by what they are doing.", ["status"], registry=registry)
        self._deliveries = Counter(
            "kitae_webhook_deliveries_total", "Attempts to deliver a webhook.", ["outcome"], registry=registry
        )

    def observe(self, done: Finished) -> None:
        """Count a request."""
        self._requests.labels(done.route, done.method, str(done.status)).inc()
        self._duration.labels(done.route, done.method).observe(done.duration_s)
        self._size.labels(done.route).observe(done.response_bytes)
        if done.first_piece_s is not None:
            self._first_piece.labels(done.route).observe(done.first_piece_s)
        if done.model is not None:
            for kind, count in (("prompt", done.prompt_tokens), ("completion", done.completion_tokens)):
                if count is not None:
                    self._tokens.labels(self._label_of(done.model), kind, done.team or OTHER).inc(count)

    def set_jobs(self, counts: Mapping[str, int]) -> None:
        """How many jobs there are of each status; a status that is not named has none.

        Every replica tells the same store's figures: take their `max`, not their sum.
        """
        self._statuses |= set(counts)
        for status in self._statuses:
            self._jobs.labels(status).set(counts.get(status, 0))

    def webhook_delivery(self, outcome: str) -> None:
        """Count an attempt; `outcome` is one of `ray_jobs.tenancy.webhooks.OUTCOMES`."""
        self._deliveries.labels(outcome).inc()

    def render(self) -> tuple[bytes, str]:
        """The page that Prometheus reads, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _label_of(self, model: str) -> str:
        if model not in self._models and len(self._models) >= _MAX_MODELS:
            return OTHER
        self._models.add(model)
        return model


class Observed:
    """The layer around the app that measures every request. Outermost, so that what the Gate refuses counts too."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        routes: Callable[[], Iterable[BaseRoute]] = tuple,
        on_end: Sequence[Callable[[Finished], None]] = (),
        write: Callable[[str], None] | None = None,
    ) -> None:
        """`routes` name the path of a request that was refused before it was routed; `write` takes the log's lines."""
        self._app = app
        self._metrics = metrics
        self.routes = routes
        self._on_end = tuple(on_end)
        self._write = write or logging.getLogger(LOGGER).info

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["state"] = dict(scope.get("state") or {})  # its own: no request may see another's model
        answer = _Answer(send, time.monotonic())
        self._metrics.in_progress.inc()
        failed = True
        try:
            await self._app(scope, receive, answer.send)
            failed = False
        except Exception:
            raise
        except BaseException:  # cancelled: the caller went away
            failed = False
            raise
        finally:
            self._metrics.in_progress.dec()
            self._tell(self._finished(scope, answer, failed=failed))

    def _finished(self, scope: Scope, answer: _Answer, *, failed: bool) -> Finished:
        state = scope["state"]
        caller = state.get("caller")
        prompt_tokens, completion_tokens = state.get("usage") or (None, None)
        request_id = answer.request_id or Headers(scope=scope).get("x-request-id") or ""
        return Finished(
            request_id=request_id[:_MAX_ID_CHARACTERS],
            method=scope["method"] if scope["method"] in _METHODS else OTHER,
            route=self._route(scope),
            status=answer.status or (500 if failed else CLIENT_GONE),
            complete=answer.complete,
            duration_s=time.monotonic() - answer.began_s,
            first_piece_s=answer.first_piece_s,
            response_bytes=answer.size_bytes,
            team=getattr(caller, "team", None),
            key_id=getattr(caller, "key_id", None),
            model=state.get("model"),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )

    def _route(self, scope: Scope) -> str:
        if (template := getattr(scope.get("route"), "path", None)) is not None:
            return str(template)
        for route in self.routes():
            if route.matches(scope)[0] is not Match.NONE:
                return str(getattr(route, "path", OTHER))
        return OTHER

    def _tell(self, done: Finished) -> None:
        self._metrics.observe(done)
        for listener in self._on_end:
            listener(done)
        self._write(done.as_line(datetime.now(UTC)))


def log_requests(stream: TextIO | None = None) -> None:
    """Let the requests' lines go to a stream (stdout) as they are, and nowhere else. Called where a process begins."""
    logger = logging.getLogger(LOGGER)
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


class _Answer:
    """Passes an answer on, and looks at it."""

    def __init__(self, send: Send, began_s: float) -> None:
        self._send = send
        self.began_s = began_s
        self.status: int | None = None
        self.request_id: str | None = None
        self.size_bytes = 0
        self.first_piece_s: float | None = None
        self.complete = False
        self._streams = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(raw=message.get("headers", []))
            self.status = message["status"]
            self.request_id = headers.get("x-request-id")
            self._streams = headers.get("content-type", "").startswith(_STREAM)
        await self._send(message)
        if message["type"] == "http.response.body":
            body_bytes = len(message.get("body", b""))
            if self._streams and body_bytes and self.first_piece_s is None:
                self.first_piece_s = time.monotonic() - self.began_s
            self.size_bytes += body_bytes
            self.complete = not message.get("more_body", False)
