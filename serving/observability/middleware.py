"""ASGI middleware that measures every request and writes one JSON line for it.

Owns the measuring and the request log. Does not know the routes or the consumers of finished requests.

    app = ObservabilityMiddleware(app, metrics, routes=lambda: fastapi_app.routes, on_end=[ledger.count])

A route reports what only it knows, at any time before its response ends: `request.state.model`, the *resolved* model
name (never the client's spelling, which would make the label's cardinality unbounded), and
`request.state.usage = (prompt_tokens, completion_tokens)`; and `request.state.stream_status`, the status of an error
that ended a stream.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TextIO

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.errors import CLIENT_GONE
from serving.observability.metrics import OTHER, FinishedRequest, Metrics

logger = logging.getLogger("serving.requests")
"""The request log; each message is a whole JSON object."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_MAX_ID_CHARACTERS = 128


class ObservabilityMiddleware:
    """Measures every request. It is the outermost middleware, so that refusals of `AccessMiddleware` count too."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        routes: Callable[[], Iterable[BaseRoute]] = tuple,
        on_end: Sequence[Callable[[FinishedRequest], None]] = (),
        write: Callable[[str], None] = logger.info,
    ) -> None:
        """`routes`: used to find the route of a request that was refused before routing. `write`: gets log lines."""
        self._app = app
        self._metrics = metrics
        self.routes = routes
        self._on_end = on_end
        self._write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["state"] = dict(scope.get("state") or {})  # copied: no request may see another's model
        response = _MeasuredResponse(send, time.monotonic())
        status_without_response = CLIENT_GONE
        self._metrics.in_progress.inc()
        try:
            await self._app(scope, receive, response.send)
        except Exception:
            status_without_response = 500
            raise
        finally:
            self._metrics.in_progress.dec()
            done = self._finished(scope, response, response.status or status_without_response)
            self._metrics.observe(done)
            for listener in self._on_end:
                listener(done)
            self._write(log_line(done, datetime.now(UTC)))

    def _finished(self, scope: Scope, response: _MeasuredResponse, status: int) -> FinishedRequest:
        state = scope["state"]
        caller = state.get("caller")
        prompt_tokens, completion_tokens = state.get("usage") or (None, None)
        request_id = response.request_id or Headers(scope=scope).get("x-request-id") or ""
        return FinishedRequest(
            request_id=request_id[:_MAX_ID_CHARACTERS],
            method=scope["method"] if scope["method"] in _METHODS else OTHER,
            route=self._route(scope),
            # A stream has begun with 200 before its error is known.
            status=state.get("stream_status", status),
            complete=response.complete and "stream_status" not in state,
            duration_s=time.monotonic() - response.began_s,
            first_chunk_s=response.first_chunk_s,
            response_bytes=response.size_bytes,
            team=getattr(caller, "team", None),
            key_id=getattr(caller, "key_id", None),
            model=state.get("model"),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            background=True if state.get("background") else None,
        )

    def _route(self, scope: Scope) -> str:
        if (template := getattr(scope.get("route"), "path", None)) is not None:
            return str(template)
        for route in self.routes():
            if route.matches(scope)[0] is not Match.NONE:
                return str(getattr(route, "path", OTHER))
        return OTHER


def log_line(done: FinishedRequest, at: datetime) -> str:
    """Return the request's line of the log; unknown fields are omitted."""
    unlogged = ("duration_s", "first_chunk_s", "response_bytes")
    known = {name: value for name, value in vars(done).items() if value is not None and name not in unlogged}
    level = "error" if done.status >= 500 else "info"
    fields = {"time": at.isoformat(timespec="milliseconds"), "level": level, **known}
    return json.dumps(fields | {"duration_ms": round(1000 * done.duration_s, 1)}, ensure_ascii=False)


def log_requests(stream: TextIO | None = None) -> None:
    """Write the request log to a stream (stdout), unformatted, and nowhere else. Call once at an entry point."""
    logger.handlers[:] = [logging.StreamHandler(stream or sys.stdout)]
    logger.setLevel(logging.INFO)
    logger.propagate = False


class _MeasuredResponse:
    """Sends a response and measures it."""

    def __init__(self, send: Send, began_s: float) -> None:
        self._send = send
        self.began_s = began_s
        self.status: int | None = None
        self.request_id: str | None = None
        self.size_bytes = 0
        self.first_chunk_s: float | None = None
        self.complete = False
        self._streams = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(raw=message.get("headers", []))
            self.status = message["status"]
            self.request_id = headers.get("x-request-id")
            self._streams = headers.get("content-type", "").startswith("text/event-stream")
        await self._send(message)
        if message["type"] == "http.response.body":
            body_bytes = len(message.get("body", b""))
            if self._streams and body_bytes and self.first_chunk_s is None:
                self.first_chunk_s = time.monotonic() - self.began_s
            self.size_bytes += body_bytes
            self.complete = not message.get("more_body", False)
