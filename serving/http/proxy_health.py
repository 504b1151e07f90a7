"""503 from Serve's proxy while no ingress process answers, instead of requests that wait for one.

A proxy queues requests until a replica of the ingress exists, which takes minutes when a node is lost. This middleware
of the proxy asks for /healthz while there are requests; once that is not answered, waiting and new requests get 503
with `Retry-After`. Does not know Serve: `app` is whatever is behind it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.errors import ApiError

ASK_EVERY_S = 2.0
ANSWER_WITHIN_S = 2.0
"""A later answer counts too, once it comes."""
MISSES = 2
"""Unanswered questions in a row after which no process is taken to answer."""
LOST_AFTER_S = 30.0
"""A question without an answer for so long is lost, e.g. with the process that began it."""
IDLE_S = 60.0
"""Without a request for so long the questions end, until the next one."""
RETRY_AFTER_S = 5


def unavailable() -> ApiError:
    """503: no process of the endpoint answers."""
    message = "the endpoint is starting or restarting; try again in a moment"
    return ApiError(503, message, code="unavailable", headers={"Retry-After": str(RETRY_AFTER_S)})


@dataclass(eq=False)
class _Waiter:
    """A request whose response has not begun."""

    task: asyncio.Task[object]
    arrived_s: float
    given_up: bool = False


class ProxyHealth:
    """The middleware. One for each proxy."""

    def __init__(
        self, app: ASGIApp, *, ask_every_s: float = ASK_EVERY_S, answer_within_s: float = ANSWER_WITHIN_S
    ) -> None:
        self._app, self._every_s, self._within_s = app, ask_every_s, answer_within_s
        self._waiting: set[_Waiter] = set()
        self._asking: asyncio.Task[None] | None = None
        self._misses = 0
        self._asked_at_s = 0.0
        self._last_request_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # Serve's own, which probes read
            await self._app(scope, receive, send)
            return
        self._last_request_s = time.monotonic()
        if self._asking is None or self._asking.done():
            self._misses = 0
            self._asking = asyncio.create_task(self._ask())
        if self._misses >= MISSES:
            await unavailable().response()(scope, receive, send)
            return
        task = asyncio.current_task()
        assert task is not None, "an ASGI server runs each request in a task"
        waiting = _Waiter(task, self._last_request_s)
        self._waiting.add(waiting)

        async def passing(message: Message) -> None:
            if waiting.given_up:
                return
            self._waiting.discard(waiting)
            await send(message)

        try:
            await self._app(scope, receive, passing)
        except asyncio.CancelledError:
            if not waiting.given_up:
                raise
        finally:
            self._waiting.discard(waiting)
        if waiting.given_up:
            task.uncancel()
            await unavailable().response()(scope, receive, send)

    async def _ask(self) -> None:
        """Ask until there was no request for `IDLE_S`."""
        question: asyncio.Task[bool] | None = None
        asked_at_s = 0.0
        while time.monotonic() - self._last_request_s < IDLE_S:
            if question is None:
                question, asked_at_s = asyncio.create_task(self._is_answered()), time.monotonic()
            # An unanswered question stays in the proxy's queue: to cancel it and ask again is no better.
            await asyncio.wait({question}, timeout=self._within_s)
            if question.done() and question.result():
                self._misses, self._asked_at_s = 0, asked_at_s
            else:
                self._misses += 1
            if question.done():
                question = None
            elif time.monotonic() - asked_at_s >= LOST_AFTER_S:
                question.cancel()
                question = None
            if self._misses >= MISSES:
                self._give_up()
            await asyncio.sleep(self._every_s)
        if question is not None:
            question.cancel()

    def _give_up(self) -> None:
        """End the requests that no process can have begun: they arrived after the last answered question."""
        for waiting in list(self._waiting):
            if waiting.arrived_s > self._asked_at_s and not waiting.given_up:
                waiting.given_up = True
                waiting.task.cancel()

    async def _is_answered(self) -> bool:
        status = 0
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if asked:
                await asyncio.Event().wait()  # no disconnect
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)

        try:
            await self._app(_question(), receive, send)
        except Exception:  # noqa: BLE001  # whatever the proxy raises is no answer
            return False
        return 200 <= status < 500 and status != 404  # 404: Serve has no application yet


def _question() -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/healthz",
        "raw_path": b"/healthz",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"kitae")],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 8000),
    }
