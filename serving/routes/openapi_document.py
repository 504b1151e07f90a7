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


def install(app: FastAPI) -> None:
    """Replace the app's OpenAPI document by this one."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = build_document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to replace it


def build_document(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    components = found["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    key = {"type": "http", "scheme": "bearer", "description": "A team's API key, or the operator's."}
    components["securitySchemes"] = {"key": key}
    for path, item in found["paths"].items():
        is_open = path in OPEN_PATHS
        answers = documented(500) if is_open else documented(401, 413, 429, 500, 503, 507)
        for operation in item.values():
            responses = operation["responses"]
            responses.pop("422", None)  # FastAPI's default; `errors` answers 400
            for status, answer in answers.items():
                body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}}}
                responses.setdefault(str(status), {"description": answer["description"], "content": body})
            if not is_open:
                operation["security"] = [{"key": []}]
    return found
