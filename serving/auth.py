"""Who may ask: one bearer key, checked before anything else of a request is read. Also the size a body may have.

Owns the ASGI middleware in front of the routes. Does not know them, except the open paths.
"""

from __future__ import annotations

import hashlib
import hmac
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Answered without a key: probes have none."""

REQUEST_ID = "x-request-id"


def key_matches(header: str | None, key: str) -> bool:
    """Whether an Authorization header carries the key, in a time that tells nothing of it."""
    scheme, _, given = (header or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(_digest(given.strip()), _digest(key))


class Gate:
    """Outermost layer of the app: request id, key, size of the body."""

    def __init__(self, app: ASGIApp, *, api_key: str | None, max_body_bytes: int, behind_proxy: bool) -> None:
        """`behind_proxy`: Serve's proxy has put the request id in and puts it on the response itself."""
        self._app = app
        self._api_key = api_key
        self._max_body_bytes = max_body_bytes
        self._behind_proxy = behind_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not self._behind_proxy:
            send = _naming(send, headers.get(REQUEST_ID) or uuid.uuid4().hex)
        try:
            self._check(scope["path"], headers)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, _limited(receive, self._max_body_bytes), send)

    def _check(self, path: str, headers: Headers) -> None:
        if self._api_key is not None and path not in OPEN_PATHS:
            given = headers.get("authorization")
            if not key_matches(given, self._api_key):
                what = "the API key is wrong" if given else "no API key was sent"
                message = f"{what}: send the header Authorization: Bearer KEY"
                challenge = {"WWW-Authenticate": "Bearer"}
                raise ApiError(401, message, code="invalid_api_key", headers=challenge)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_body_bytes:
            raise _too_large(self._max_body_bytes)


def _limited(receive: Receive, limit_bytes: int) -> Receive:
    """Counts what arrives: a chunked body announces no length."""
    seen_bytes = 0

    async def counted() -> Message:
        nonlocal seen_bytes
        message = await receive()
        seen_bytes += len(message.get("body", b""))
        if seen_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        return message

    return counted


def _naming(send: Send, request_id: str) -> Send:
    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)[REQUEST_ID] = request_id
        await send(message)

    return named


def _too_large(limit_bytes: int) -> ApiError:
    return ApiError(413, f"the request is larger than {limit_bytes} bytes: send less at once", code="request_too_large")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
