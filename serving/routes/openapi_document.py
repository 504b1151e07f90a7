"""The OpenAPI document, `/openapi.json`.

Adds to FastAPI's document what the middleware does on every path: the API key, and the errors of any request. Does not
know the routes, which document their own errors.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serving.access.auth import OPEN_PATHS
from serving.http.errors import documented
from serving.http.openai_types import ErrorBody

_ANYWHERE = (500,)
_WITH_A_KEY = (401, 413, 429, 503)
_OF_FASTAPI = ("HTTPValidationError", "ValidationError")
_KEY = {"key": {"type": "http", "scheme": "bearer", "description": "A team's API key, or the operator's."}}


def install(app: FastAPI) -> None:
    """Replace the app's OpenAPI document by this one."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = build_document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to replace it


def build_document(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in _OF_FASTAPI:
        schemas.pop(name, None)
    components["securitySchemes"] = _KEY
    for path, item in found["paths"].items():
        for operation in item.values():
            _complete(path, operation)
    return found


def _complete(path: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's default; `errors` answers 400
    for status, response in documented(*_ANYWHERE, *(() if path in OPEN_PATHS else _WITH_A_KEY)).items():
        body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}}}
        responses.setdefault(str(status), {"description": response["description"], "content": body})
    if path not in OPEN_PATHS:
        operation["security"] = [{"key": []}]
