"""Parses request bodies strictly: JSON, or a form with one file and a few short fields.

FastAPI accepts more by default: NaN and 1e999, which JSON cannot express, lone surrogates, UTF-16, and forms with a
thousand files. Does not know the maximum length of a body (`access.auth`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from serving.http.errors import ApiError, bad_request

_MAX_FILES = 1
_MAX_FIELDS = 16
_MAX_FIELD_BYTES = 64 * 2**10

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class StrictRoute(APIRoute):
    """A route that parses bodies strictly: `APIRouter(route_class=StrictRoute)`."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


class StrictRequest(Request):
    """A request that raises ApiError 400 for invalid JSON or forms."""

    async def json(self) -> Any:
        return parse_json(await self.body())

    def form(
        self,
        *,
        max_files: float = _MAX_FILES,
        max_fields: float = _MAX_FIELDS,
        max_part_size: int = _MAX_FIELD_BYTES,
    ) -> Any:  # Starlette's type for it is private
        return super().form(max_files=max_files, max_fields=max_fields, max_part_size=max_part_size)


def parse_json(raw: bytes) -> Any:
    """Parse JSON by RFC 8259, in UTF-8, with finite numbers. Raises ApiError 400."""
    try:
        value = json.loads(raw.decode("utf-8-sig"), parse_constant=_refuse, parse_float=_finite)
        if b"\\ud" in raw or b"\\uD" in raw:
            json.dumps(value, ensure_ascii=False).encode()  # fails on a lone surrogate
    except UnicodeEncodeError as error:
        raise _not_json("a lone surrogate is not a character") from error
    except (ValueError, RecursionError) as error:
        raise _not_json(str(error)) from error
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large for a number")
    return number


def _not_json(reason: str) -> ApiError:
    return bad_request(f"the body is not JSON: {reason}", code="invalid_json")
