"""Requests that the endpoint sends to its own routes: the lines of a batch, the samples of an evaluation.

They pass the same handlers as a client's requests, as a caller that was admitted before, and are measured and counted
for usage as theirs. They take no place of a key's rate limits. Does not know who sends them, nor the routes.

    answer = await in_process.post("/v1/chat/completions", body, caller, background=True)
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ray_jobs.storage import Store
from ray_jobs.tenancy import api_keys
from serving.access.auth import OPERATOR, REQUEST_ID, Caller


def is_background(request: Request) -> bool:
    """Whether a request waits until nobody else uses the engine, and begins anew when others come."""
    return bool(getattr(request.state, "background", False))


@dataclass(frozen=True)
class Answer:
    """The response to a request."""

    status: int
    request_id: str
    body: dict[str, Any]
    """The route's JSON, or an error in OpenAI's shape."""

    @property
    def ok(self) -> bool:
        return self.status < 400


@dataclass(frozen=True)
class InProcess:
    """Sends requests to an app without a network. Bound to the app's event loop."""

    app: ASGIApp
    """The routes, without the checks of a request's key."""

    async def post(self, path: str, body: dict[str, Any], caller: Caller, *, background: bool = False) -> Answer:
        """Send one request and wait for its whole response; a stream is not possible.

        `background`: it waits until nobody else uses the engine, and begins anew when others come. Raises what a
        route raises that is not an answer.
        """
        request_id = uuid.uuid4().hex
        transport = httpx.ASGITransport(app=_Admitted(self.app, caller, background=background))
        async with httpx.AsyncClient(transport=transport, base_url="http://in-process") as client:
            response = await client.post(path, json=body, headers={REQUEST_ID: request_id})
        return Answer(response.status_code, request_id, json.loads(response.content))


@dataclass(frozen=True)
class _Admitted:
    """An app whose requests have a caller already."""

    app: ASGIApp
    caller: Caller
    background: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = {"caller": self.caller, "background": self.background, "reserve_tokens": lambda tokens: None}
        await self.app({**scope, "state": state}, receive, send)


def key_problem(store: Store, caller: Caller) -> str | None:
    """Return why the key of a caller that was admitted before may not call models now. None: it may.

    Raises StoreError.
    """
    if caller.key_id == OPERATOR.key_id:
        return None
    key = api_keys.read_or_report(store, caller.key_id)
    if key is None or (state := key.state(store.now())) == "revoked":
        return "its API key is revoked"
    if state == "expired":
        return "its API key has expired"
    if caller.admin != ("admin" in key.scopes) or (not caller.admin and key.team != caller.team):
        return "its API key has other rights now"
    if not caller.admin and "inference" not in key.scopes:
        return f"its API key has the scope {', '.join(key.scopes)}; calling models needs inference too"
    return None
