"""Authenticates and admits requests: API key, body size and rate limits.

Owns the ASGI middleware, the caller it identifies, and the body limit of each path. Does not know the routes beyond
their paths, how keys are stored (`keys`) or how limits are counted (`rate_limiter`).
"""

from __future__ import annotations

import hmac
import re
import uuid
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_jobs.spec import DEFAULT_TEAM, NAME_RULE, is_name
from ray_jobs.tenancy.api_keys import Limits, digest_of
from ray_jobs.tenancy.audit import Actor
from serving.access import scopes
from serving.access.body_reader import BodyReader
from serving.access.keys import StoredKeys
from serving.access.rate_limiter import RateLimiter
from serving.access.refusals import RefusalPace
from serving.http.errors import ApiError
from serving.settings import EndpointSettings

OPEN_PATHS = frozenset({"/health", "/healthz", "/readyz"})
"""Answered without a key and under any load: probes have no key and must not fail on a busy endpoint."""
METRICS_PATH = "/metrics"
REQUEST_ID = "x-request-id"
AZURE_KEY = "api-key"
TEAM_HEADER = "openai-project"
"""The team on whose behalf a caller acts who has access to every team's."""

_PART_BYTES = 64 * 2**20  # OpenAI's limit for a part of an upload
_MULTIPART_BYTES = 2**20
"""Allowance of a form beyond its file: boundaries, headers, other fields."""
_OPTIONS_ONLY = ("/v1/fine_tuning/", "/v1/uploads", "/v1/batches")
_OPTIONS_BYTES = 2**20
_MAX_QUOTE = 200
"""Limit of a body of options only: validating a million wrong options would take too long."""
_UPLOAD_PART = re.compile(r"/v1/uploads/[^/]+/parts")


@dataclass(frozen=True)
class Caller:
    """Identity of a request's sender, available to routes as `request.state.caller`."""

    key_id: str
    team: str
    limits: Limits
    admin: bool
    """Whether the caller has access to everything."""


OPERATOR = Caller("operator", DEFAULT_TEAM, Limits(), admin=True)
"""The caller with the key from the environment; every caller, if authentication is off."""


def caller_of(request: Request) -> Caller:
    """Return the caller of an admitted request."""
    caller: Caller = request.state.caller
    return caller


def actor_of(request: Request) -> Actor:
    """Return the caller of an admitted request as the audit log names it."""
    return Actor(name=caller_of(request).key_id, via="api")


def key_of(headers: Headers) -> str | None:
    """Return the key of an Authorization header, or without one that of `api-key`, which Azure's clients send."""
    if "authorization" not in headers:
        return headers.get(AZURE_KEY) or None
    scheme, _, given = headers["authorization"].partition(" ")
    return given.strip() or None if scheme.lower() == "bearer" else None


def key_matches(given: str | None, key: str) -> bool:
    """Compare a key in constant time."""
    return hmac.compare_digest(digest_of(given or ""), digest_of(key))


def is_operator(headers: Headers, settings: EndpointSettings) -> bool:
    """Whether a request has the operator's key, or needs none."""
    return settings.api_key is None or key_matches(key_of(headers), settings.api_key)


def _for_team(caller: Caller, headers: Headers) -> Caller:
    """Return the caller, on behalf of the team in `OpenAI-Project` if it has access to every team's."""
    team = headers.get(TEAM_HEADER)
    if not caller.admin or not team:
        return caller
    if not is_name(team):
        raise ApiError(
            400, f"OpenAI-Project is {team[:64]!r}, which cannot be a team: {NAME_RULE}", code="invalid_team"
        )
    return replace(caller, team=team)


def body_limit_bytes(method: str, path: str, settings: EndpointSettings, limits: Limits) -> int:
    """Return the largest body accepted: the path's limit, or the key's if that is smaller."""
    limit = settings.max_body_bytes
    if path.startswith(_OPTIONS_ONLY):
        limit = min(limit, _OPTIONS_BYTES)
    if _is_upload(method, path):
        limit = (settings.max_file_bytes if path == "/v1/files" else _PART_BYTES) + _MULTIPART_BYTES
    return min(limit, limits.max_body_bytes or limit)


@dataclass(frozen=True, repr=False)  # the settings hold the operator's key
class AccessMiddleware:
    """ASGI middleware that adds the request id and enforces key, body size and rate limits."""

    app: ASGIApp
    settings: EndpointSettings
    limiter: RateLimiter
    behind_proxy: bool
    """Whether Serve's proxy sets the request id of request and response."""
    keys: StoredKeys | None = None
    """The teams' keys. None: only the operator's key is accepted."""
    bodies: BodyReader = field(init=False)
    pace: RefusalPace = field(init=False)

    def __post_init__(self) -> None:
        # A quarter: half-sent bodies of one key leave room for those of others.
        object.__setattr__(self, "bodies", BodyReader(max(4, self.settings.max_ongoing_requests // 4)))
        object.__setattr__(self, "pace", RefusalPace(self.settings.refusals_per_s))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not self.behind_proxy:
            send = _with_request_id(send, headers.get(REQUEST_ID) or uuid.uuid4().hex)
        send = self._paced(scope, send)
        # Slots are released however the request ends: answered, refused, failed, or cancelled by its client.
        with ExitStack() as held:
            try:
                admitted = await self._admit(scope, headers, receive, held)
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
            await self.app(scope, admitted, self._releasing(scope, send, held))

    async def _admit(self, scope: Scope, headers: Headers, receive: Receive, held: ExitStack) -> Receive:
        """Set the caller, wait for the body and return it. Raises ApiError if the request is not admitted."""
        method, path = scope["method"], scope["path"]
        if path in OPEN_PATHS or (path == METRICS_PATH and self.settings.metrics_open):
            _check_length(headers, self.settings.max_body_bytes)
            return _limited(receive, self.settings.max_body_bytes)
        busy = path != METRICS_PATH  # metrics matter most while the endpoint is busy
        with self.limiter.slot() if busy else nullcontext():
            caller = _for_team(await self._caller(headers, method, path), headers)
        # Copied: a server may pass the same state to every request.
        scope["state"] = {**scope.get("state", {}), "caller": caller}
        if path == METRICS_PATH and not caller.admin:
            raise ApiError(403, f"{path} is for the operator's key", code="permission_denied")
        limit_bytes = body_limit_bytes(method, path, self.settings, caller.limits)
        _check_length(headers, limit_bytes)
        receive = _limited(receive, limit_bytes)
        if _is_upload(method, path):
            receive = self.bodies.pieces(receive)
        elif method not in ("GET", "HEAD"):
            receive = await self.bodies.whole(receive, caller.key_id)
        if busy:  # not earlier: a body that is half sent must not hold a place
            held.enter_context(self.limiter.slot())
        held.enter_context(self.limiter.request(caller.key_id, caller.limits))
        scope["state"]["reserve_tokens"] = partial(self._reserve, caller, held)
        return receive

    def _reserve(self, caller: Caller, held: ExitStack, tokens: int) -> None:
        """Set tokens of the caller's limit aside until the request ends. Raises ApiError 429."""
        held.enter_context(self.limiter.reserved(caller.key_id, caller.limits, tokens))

    async def _caller(self, headers: Headers, method: str, path: str) -> Caller:
        if is_operator(headers, self.settings):
            return OPERATOR
        given = key_of(headers)
        key = await self.keys.find(given) if given is not None and self.keys is not None else None
        if key is None:
            # One message for unknown, revoked and expired keys, which reveals nothing to an attacker.
            sent = "authorization" in headers or AZURE_KEY in headers
            what = "the API key is not valid" if sent else "no API key was sent"
            message = f"{what}: send the header Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if not scopes.allow(key.scopes, method, path):
            has, wanted = ", ".join(key.scopes), " or ".join(scopes.needed(method, path))
            message = f"this key has the scope {has}, and {method} {path[:_MAX_QUOTE]} needs {wanted}"
            raise ApiError(403, message, code="insufficient_scope")
        limits = key.limits.or_else(self.settings.key_limits)
        return Caller(key.id, key.team, limits, admin="admin" in key.scopes)

    def _paced(self, scope: Scope, send: Send) -> Send:
        """Delay a refusal if the key has been refused often; requests without a valid key count together."""

        async def paced(message: Message) -> None:
            if _is_refusal(message):
                caller: Caller | None = scope.get("state", {}).get("caller")
                await self.pace.wait("" if caller is None else caller.key_id)
            await send(message)

        return paced

    def _releasing(self, scope: Scope, send: Send, held: ExitStack) -> Send:
        """Add the rate limit headers to the response, and release the request's slots with its last chunk."""
        caller: Caller | None = scope.get("state", {}).get("caller")

        async def releasing(message: Message) -> None:
            if message["type"] == "http.response.start" and caller is not None:
                headers = MutableHeaders(scope=message)
                headers.update(self.limiter.headers(caller.key_id, caller.limits))
            ends = message["type"] == "http.response.body" and not message.get("more_body", False)
            if ends or _is_refusal(message):
                held.close()  # before sending: the client may send its next request at once
            await send(message)

        return releasing


def _is_refusal(message: Message) -> bool:
    """Return whether a response begins that refuses the request."""
    status: int = message.get("status", 0)
    return message["type"] == "http.response.start" and 400 <= status < 500


def _is_upload(method: str, path: str) -> bool:
    """Return whether a body is a form with a file, which its route reads piece by piece."""
    return method == "POST" and (path == "/v1/files" or _UPLOAD_PART.fullmatch(path) is not None)


def _check_length(headers: Headers, limit_bytes: int) -> None:
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limit_bytes:
        raise _too_large(limit_bytes)


def _limited(receive: Receive, limit_bytes: int) -> Receive:
    """Enforce the limit while the body arrives: a chunked body declares no length."""
    seen_bytes = 0

    async def counted() -> Message:
        nonlocal seen_bytes
        message = await receive()
        seen_bytes += len(message.get("body", b""))
        if seen_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        return message

    return counted


def _with_request_id(send: Send, request_id: str) -> Send:
    async def with_request_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)[REQUEST_ID] = request_id
        await send(message)

    return with_request_id


def _too_large(limit_bytes: int) -> ApiError:
    return ApiError(413, f"the request is larger than {limit_bytes} bytes: send less at once", code="request_too_large")
