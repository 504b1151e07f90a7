"""ASGI middleware that reads a request's path as its client meant it, before any route is chosen.

`//v1/models` and `/v1/files/` come from a base URL that ends or begins with a slash, `/openai/v1/…` from Azure's
client, and `HEAD` is a `GET` without the body. Below `/v1/models/` only leading slashes are removed: a model's id may
have slashes of its own, and its route compares it exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_AZURE = "/openai/v1/"
_EXACT = "/v1/models/"


@dataclass(frozen=True)
class CanonicalPaths:
    """Wraps an app; the scope is changed in place, so that middleware outside sees the route that was chosen."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["path"] = canonical(scope["path"])
        if scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        scope["method"] = "GET"

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app(scope, receive, without_body)


def canonical(path: str) -> str:
    """The path that the routes know. Pure."""
    path = "/" + path.lstrip("/")
    if path.startswith(_AZURE):
        path = "/v1/" + path.removeprefix(_AZURE).lstrip("/")
    if path.startswith(_EXACT) and path != _EXACT:
        return path
    return path.rstrip("/") or "/"
