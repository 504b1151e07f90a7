"""Who asks, and whether it may begin: key, size and limits, checked before anything else of a request is read.

Owns the ASGI middleware around the app, the caller it finds, and how large a body may be where. Does not know the
routes beyond their paths, how keys are stored (`keys`) nor how limits are counted (`limits`).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid
from contextlib import ExitStack
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_jobs.registry.api_names import DEFAULT_TEAM
from ray_jobs.tenancy.api_keys import Limits
from serving.access.keys import KeySource
from serving.access.limits import Limiter
from serving.http.errors import ApiError
from serving.settings import Settings

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Answered without a key, and however busy the endpoint is: probes have no key, and must not take it for dead."""
METRICS_PATH = "/metrics"
REQUEST_ID = "x-request-id"

_PART_BYTES = 64 * 2**20  # OpenAI's limit of a part of an upload
_MULTIPART_BYTES = 2**20
"""What a form may add to its file: boundaries, headers, other fields."""
_OPTIONS_ONLY = ("/v1/fine_tuning/", "/v1/uploads")
_OPTIONS_BYTES = 2**20
"""Of a body that has options and no contents: one with a million wrong ones would take long to refuse."""
_UPLOAD_PART = re.compile(r"/v1/uploads/[^/]+/parts")


@dataclass(frozen=True)
class Caller:
    """Who sends a request: a route's `request.state.caller`."""

    key_id: str
    team: str
    limits: Limits
    admin: bool
    """Sees and may everything, and has no limits."""


OPERATOR = Caller("operator", DEFAULT_TEAM, Limits(), admin=True)
"""Of the environment's key; and everybody, where no key is asked for."""


def caller_of(request: Request) -> Caller:
    """Who sent a request that the Gate let through."""
    caller: Caller = request.state.caller
    return caller


def bearer(header: str | None) -> str | None:
    """The key in an Authorization header; None where there is none."""
    scheme, _, given = (header or "").partition(" ")
    return given.strip() or None if scheme.lower() == "bearer" else None


def key_matches(header: str | None, key: str) -> bool:
    """Whether an Authorization header carries the key, in a time that tells nothing of it."""
    return hmac.compare_digest(_digest(bearer(header) or ""), _digest(key))


def body_limit_bytes(method: str, path: str, settings: Settings, limits: Limits) -> int:
    """The longest body a request may have: what its route takes, or less where its key may send less."""
    limit = settings.max_body_bytes
    if path.startswith(_OPTIONS_ONLY):
        limit = min(limit, _OPTIONS_BYTES)
    if method == "POST" and path == "/v1/files":
        limit = settings.max_file_bytes + _MULTIPART_BYTES
    elif method == "POST" and _UPLOAD_PART.fullmatch(path):
        limit = _PART_BYTES + _MULTIPART_BYTES
    return min(limit, limits.max_body_bytes or limit)


class Gate:
    """Outermost layer of the app: request id, key, size of the body, limits."""

    def __init__(
        self, app: ASGIApp, settings: Settings, *, limiter: Limiter, keys: KeySource | None = None, behind_proxy: bool
    ) -> None:
        """`keys`: where keys are looked up besides the operator's; None: there are no others. `behind_proxy`: Serve's
        proxy has put the request id in and puts it on the response itself."""
        self._app = app
        self._settings = settings
        self._limiter = limiter
        self._keys = keys
        self._behind_proxy = behind_proxy
        self._open_paths = OPEN_PATHS | {METRICS_PATH} if settings.metrics_open else OPEN_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not self._behind_proxy:
            send = _naming(send, headers.get(REQUEST_ID) or uuid.uuid4().hex)
        # What a request holds is given back however it ends: answered, refused, failed, or cancelled with its client.
        with ExitStack() as held:
            try:
                scope, limit_bytes = await self._admit(scope, headers, held)
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
            await self._app(scope, _limited(receive, limit_bytes), self._ending(scope, send, held))

    async def _admit(self, scope: Scope, headers: Headers, held: ExitStack) -> tuple[Scope, int]:
        """The request as the app gets it, and the longest body it may have. Raises ApiError where it may not begin."""
        method, path = scope["method"], scope["path"]
        if path in self._open_paths:
            _check_length(headers, self._settings.max_body_bytes)
            return scope, self._settings.max_body_bytes
        if path != METRICS_PATH:  # what is asked most while the endpoint is busy
            held.enter_context(self._limiter.place())
        caller = await self._caller(headers.get("authorization"))
        if path == METRICS_PATH and not caller.admin:
            raise ApiError(403, f"{path} is for the operator's key", code="permission_denied")
        limit_bytes = body_limit_bytes(method, path, self._settings, caller.limits)
        _check_length(headers, limit_bytes)
        held.enter_context(self._limiter.request(caller.key_id, caller.limits))
        # A state of its own: a server may give the same one to every request.
        scope["state"] = {**scope.get("state", {}), "caller": caller}
        return scope, limit_bytes

    async def _caller(self, authorization: str | None) -> Caller:
        if self._settings.api_key is None or key_matches(authorization, self._settings.api_key):
            return OPERATOR
        given = bearer(authorization)
        key = await self._keys.find(given) if given is not None and self._keys is not None else None
        if key is None:
            # The same words for a key that is unknown, revoked or expired: who guesses learns nothing.
            what = "the API key is not valid" if authorization else "no API key was sent"
            message = f"{what}: send the header Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return Caller(key.id, key.team, key.limits, admin=False)

    def _ending(self, scope: Scope, send: Send, held: ExitStack) -> Send:
        """Says in the answer what is left of the limits, and gives back what the request holds with its last piece."""
        caller: Caller | None = scope.get("state", {}).get("caller")

        async def ending(message: Message) -> None:
            if message["type"] == "http.response.start" and caller is not None:
                headers = MutableHeaders(scope=message)
                headers.update(self._limiter.headers(caller.key_id, caller.limits))
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                held.close()  # before it is sent: whoever has it may ask the next at once
            await send(message)

        return ending


def _check_length(headers: Headers, limit_bytes: int) -> None:
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limit_bytes:
        raise _too_large(limit_bytes)


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
