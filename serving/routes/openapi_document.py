"""The OpenAPI document, `/openapi.json`: what FastAPI reads off the routes, and what is true of all of them.

Owns what the layers around the routes add: the key, and the refusals that any request may get. Does not know the
routes; what only one of them answers is said there.
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
_KEY = {"key": {"type": "http", "scheme": "bearer", "description": "An API key of a team, or the operator's."}}


def install(app: FastAPI) -> None:
    """Let the app tell this document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = make(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to replace it


def make(app: FastAPI) -> dict[str, Any]:
    """The document of an app."""
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
