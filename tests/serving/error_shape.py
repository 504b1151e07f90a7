"""The shape of every error response of the endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

MAX_BYTES = 4 * 2**20
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass(frozen=True)
class Refusal:
    """An error response in the expected shape."""

    status: int
    message: str
    param: str | None
    code: str | None
    details: list[dict[str, Any]]


def check_error(response: httpx.Response) -> Refusal:
    """Return a response's error. Fails if it is not a 4xx in OpenAI's shape, or if it reveals internals."""
    status = response.status_code
    assert 400 <= status < 500, (status, response.text[:500])
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert len(response.content) < MAX_BYTES
    body = response.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert set(error) - {"details"} == {"message", "type", "param", "code"}
    assert error["type"] == _TYPES.get(status, "invalid_request_error")
    assert error["message"]
    assert error["code"]
    for inside in ("Traceback", "/tmp/", "site-packages", "<class", "botocore"):
        assert inside not in error["message"], error["message"][:500]
    return Refusal(status, error["message"], error["param"], error["code"], error.get("details", []))
