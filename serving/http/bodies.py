"""Parses requests strictly: JSON bodies, forms with one file and a few short fields, filters by metadata, and the
official client's retries.

FastAPI accepts more by default: NaN and 1e999, which JSON cannot express, lone surrogates, UTF-16, and forms with a
thousand files. Does not know the maximum length of a body (`access.auth`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response
from fastapi.routing import APIRoute

from ray_jobs.storage.unreadable import strict_json
from serving.http.errors import bad_request


class StrictRoute(APIRoute):
    """A route that parses bodies strictly: `APIRouter(route_class=StrictRoute)`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


class StrictRequest(Request):
    """A request that raises ApiError 400 for invalid JSON or forms."""

    async def json(self) -> Any:
        return parse_json(await self.body())

    def form(self, **_: Any) -> Any:  # Starlette's type for it is private
        return super().form(max_files=1, max_fields=16, max_part_size=64 * 2**10)


def parse_json(raw: bytes) -> Any:
    """Parse JSON by RFC 8259, in UTF-8, with finite numbers. Raises ApiError 400."""
    try:
        return strict_json(raw, encoding="utf-8-sig")
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {error}", code="invalid_json") from error


def metadata_filter(request: Request) -> dict[str, str]:
    """Return the filters `metadata[key]=value` of a query. Raises ApiError 400 for another form."""
    found = {}
    for name, value in request.query_params.items():
        if name.startswith("metadata"):
            match = re.fullmatch(r"metadata\[(.+)\]", name)
            if match is None:
                raise bad_request(f"{name} is not a filter: write metadata[key]=value", param="metadata")
            found[match[1]] = value
    return found


async def _is_retry(x_stainless_retry_count: Annotated[str | None, Header()] = None) -> bool:
    return (x_stainless_retry_count or "0").strip() not in ("", "0")


IsRetry = Annotated[bool, Depends(_is_retry)]
"""Parameter of a route: whether the official client repeats a request, answered with the result of the first try.

It repeats after a broken connection, a timeout, 408, 409, 429 and 5xx, and counts the repeats in this header.
"""
