"""Errors in the shape that OpenAI clients read: `{"error": {message, type, param, code}}`.

Owns the body and the status of every 4xx and 5xx, and the translation of vLLM's errors. Does not know the routes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from ray_jobs.errors import CorruptObject, DiskFull, StoreError, StoreFull
from ray_jobs.spec.problems import problems
from ray_jobs.storage.transfer import is_no_room
from serving.http import absent
from serving.http.openai_types import ErrorBody

logger = logging.getLogger(__name__)

CLIENT_GONE = 499
"""Status of a request whose client disconnected before the response began (nginx's convention)."""
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {
    401: "invalid_api_key", 403: "permission_denied", 404: "not_found", 405: "method_not_allowed", 409: "conflict",
    413: "request_too_large", 429: "rate_limit_exceeded", 503: "unavailable",
}  # fmt: skip
"""Codes of errors without one of their own."""
_MAX_DETAILS = 100
_MAX_QUOTE = 200
CONTEXT_LENGTH_WORDS = ("maximum context length", "max_model_len", "maximum model length")
"""What vLLM says of a request that is longer than the model's context."""


@dataclass(eq=False)
class ApiError(Exception):
    """An error response, raised as an exception."""

    status: int
    message: str
    _: KW_ONLY
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    details: Sequence[Mapping[str, Any]] = ()
    """The single findings, returned as `error.details`."""

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        code = self.code or _CODES.get(self.status, "invalid_request" if self.status < 500 else "internal_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": code}
        return {"error": error | ({"details": self.details} if self.details else {})}

    def response(self) -> Response:
        # backslashreplace writes a lone surrogate of the request, which UTF-8 cannot encode, as its JSON escape.
        content = json.dumps(self.body(), ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
        return Response(content, self.status, self.headers, media_type="application/json")


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request is invalid."""
    return ApiError(400, message, param=param, code=code)


def queue_full(model: str, retry_after_s: int = 1) -> ApiError:
    """429: the model's queue has its maximum length."""
    message = f"the queue of {model!r} is full; try again in {retry_after_s} s"
    return ApiError(429, message, code="queue_full", headers={"Retry-After": str(retry_after_s)})


def not_ready(model: str) -> ApiError:
    """503: the model is deployed but not running."""
    message = f"{model!r} is deployed but not ready; try again in a moment"
    return ApiError(503, message, code="model_not_ready", headers={"Retry-After": "5"})


def internal_error() -> ApiError:
    """A failure of the service itself; the client sees no internals."""
    return ApiError(500, "the service failed to answer; its log has the reason")


def store_unreachable(effect: str | None = None) -> ApiError:
    """503: the object store does not answer. `effect`: what is not possible without it."""
    message = f"the object store does not answer{'' if effect is None else f', so {effect}'}; try again in a moment"
    return ApiError(503, message, code="store_unreachable", headers={"Retry-After": "5"})


def storage_full() -> ApiError:
    """507: the object store, or a disk of the endpoint, has no room."""
    message = "the service has no room to store this: try again later, or ask its operator for room"
    return ApiError(507, message, code="storage_full", headers={"Retry-After": "60"})


def from_os_error(error: OSError) -> ApiError:
    """507 for a full disk; any other failure of the system is logged and says nothing."""
    if is_no_room(error):
        logger.error("a disk of the endpoint is full: %s", error)
        return storage_full()
    logger.error("the system failed", exc_info=error)
    return internal_error()


def from_engine(error: Mapping[str, Any]) -> ApiError:
    """Translate an engine's error: its status, message and param, our types and codes. A 5xx says nothing of it."""
    status = error.get("code")
    status = status if isinstance(status, int) and 400 <= status < 600 else 500
    if status == 503:
        message = "the engine cannot answer now; try again in a moment"
        return ApiError(503, message, code="model_not_ready", headers={"Retry-After": "5"})
    if status >= 500:
        return ApiError(status, "the engine failed; its log has the reason", code="engine_failed")
    message = str(error.get("message", "the model does not accept this request"))
    too_long = any(words in message for words in CONTEXT_LENGTH_WORDS)
    reason = error.get("reason", "context_length_exceeded" if too_long else "invalid_request")
    param = error.get("param")
    return ApiError(status, message, code=str(reason), param=param if isinstance(param, str) else None)


def invalid_fields(found: Sequence[tuple[str | None, str]]) -> ApiError:
    """400 that names the invalid fields, given as (field, message): the first hundred, and the number of the others."""
    shown = found[:_MAX_DETAILS]
    texts = [text if param is None else f"{param}: {text}" for param, text in shown]
    if len(found) > len(shown):
        texts.append(f"and {len(found) - len(shown)} more")
    details = [{"param": param, "message": text} for param, text in shown]
    return ApiError(400, "; ".join(texts), param=found[0][0], code="invalid_request", details=details)


def from_validation(found: Sequence[Mapping[str, Any]], documents: Mapping[str, Any]) -> ApiError:
    """Translate FastAPI's validation errors. `documents`: what the request has of each place (`body`, `query`, …)."""
    fields: list[tuple[str | None, str]] = []
    for place in dict.fromkeys(item["loc"][0] for item in found):
        items = [{**item, "loc": item["loc"][1:]} for item in found if item["loc"][0] == place]
        for name, message in problems(items, documents.get(place)):
            text = "not a file with a name" if "UploadFile" in message else message
            fields.append((name[:_MAX_QUOTE] or None, text if name else f"the {place}: {text}"))
    return invalid_fields(fields)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's `responses` for these error statuses."""
    return {status: {"model": ErrorBody, "description": HTTPStatus(status).phrase} for status in statuses}


def install(app: FastAPI) -> None:
    """Install the exception handlers that answer every error in this shape."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        places = {"path": request.path_params, "query": request.query_params, "header": request.headers}
        return from_validation(error.errors(), {"body": error.body, **places}).response()

    @app.exception_handler(CorruptObject)
    async def damaged(request: Request, error: CorruptObject) -> Response:
        logger.error("%s", error)  # a retry would find the same
        return internal_error().response()

    @app.exception_handler(StoreFull)
    @app.exception_handler(DiskFull)
    async def full(request: Request, error: StoreFull | DiskFull) -> Response:
        logger.error("%s", error)
        return storage_full().response()

    @app.exception_handler(OSError)
    async def system_failed(request: Request, error: OSError) -> Response:
        return from_os_error(error).response()

    @app.exception_handler(StoreError)
    async def store_failed(request: Request, error: StoreError) -> Response:
        logger.warning("the object store failed: %s", error)
        return store_unreachable().response()

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ApiError):  # raised while the body was read, such as 413
            return error.__cause__.response()
        if isinstance(error.__cause__, OSError):  # an upload is spooled to a disk
            return from_os_error(error.__cause__).response()
        path = request.scope["path"]
        if error.status_code in (404, 405) and (found := absent.instead_of(request.method, path)):
            return bad_request(
                f"{found[0][:_MAX_QUOTE]} does not exist here: {found[1]}", code="unsupported_route"
            ).response()
        what = {404: "no such path", 405: "this path does not accept that method"}.get(error.status_code)
        code = "unknown_url" if error.status_code == 404 else None
        # Not request.url: the Host header may be invalid.
        message = error.detail if what is None else f"{what}: {request.method} {path[:_MAX_QUOTE]}"
        return ApiError(error.status_code, message, code=code, headers=dict(error.headers or {})).response()

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return internal_error().response()  # Starlette logs the traceback
