"""Builders for tests of the access middleware: an app behind it, a clock, and a store that can fail."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_jobs.errors import StoreUnreachable
from ray_jobs.storage import Store
from ray_jobs.tenancy import api_keys
from serving.access.auth import AccessMiddleware, Caller
from serving.access.keys import StoredKeys
from serving.access.rate_limiter import RateLimiter
from serving.http.errors import ApiError
from serving.settings import EndpointSettings

KEY = "the-operators-own-key"


MIB = 2**20


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class EchoApp:
    """Answers with the caller's team and the body's size; can wait, fail, or run code after its response."""

    def __init__(self) -> None:
        self.callers: list[Caller | None] = []
        self.waits: asyncio.Event | None = None
        self.entered = asyncio.Event()
        self.fails = False
        self.afterwards: Callable[[], Awaitable[None]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope.get("state", {}).get("caller")
        self.callers.append(caller)
        sent_bytes = 0
        try:
            while True:
                message = await receive()
                sent_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):
                    break
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        self.entered.set()
        if self.waits is not None:
            await self.waits.wait()
        if self.fails:
            raise RuntimeError("the route failed")
        text = f"{caller.team if caller else None} {sent_bytes}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        if self.afterwards is not None:
            await self.afterwards()


def make_gate(app: ASGIApp, source: StoredKeys | None = None, **settings: Any) -> AccessMiddleware:
    made = EndpointSettings(**{"api_key": KEY} | settings)
    limiter = RateLimiter(max_ongoing_requests=made.max_ongoing_requests)
    return AccessMiddleware(app, made, limiter=limiter, keys=source, behind_proxy=False)


def client_of(app: ASGIApp, key: str | None = None) -> httpx.AsyncClient:
    headers = {} if key is None else {b"Authorization": f"Bearer {key}".encode()}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)


async def get(app: ASGIApp, key: str | None = None, path: str = "/v1/models") -> httpx.Response:
    async with client_of(app, key) as client:
        return await client.get(path)


def code_of(response: httpx.Response) -> tuple[int, str | None]:
    assert response.headers["x-request-id"]
    return response.status_code, response.json()["error"]["code"]


class Reads:
    """Counts reads of keys, and makes them fail or hang."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.listings = 0
        self.records = 0
        self.away = False
        self.hangs: threading.Event | None = None
        etags, read = api_keys.etags, api_keys.read_or_report

        def counted_etags(store: Store) -> dict[str, str]:
            self.listings += 1
            self._answer()
            return etags(store)

        def counted_read(store: Store, key_id: str) -> api_keys.ApiKey | None:
            self.records += 1
            self._answer()
            return read(store, key_id)

        monkeypatch.setattr(api_keys, "etags", counted_etags)
        monkeypatch.setattr(api_keys, "read_or_report", counted_read)

    def _answer(self) -> None:
        if self.hangs is not None:
            self.hangs.wait(20)
        if self.away:
            raise StoreUnreachable("no answer")


def make_scope(key: str, method: str = "GET", path: str = "/v1/models") -> Scope:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {key}".encode()), (b"content-type", b"application/json")],
    }


async def only_a_request() -> Message:
    return {"type": "http.request", "body": b""}
