"""What a request's body may be: strict JSON, or a form with one file and a few short fields.

Owns how bodies are read. FastAPI takes more by itself: NaN and 1e999, which no answer can repeat, halves of surrogate
pairs, which are no text, UTF-16, and forms of a thousand files. How long a body may be is `auth`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from serving.http.errors import ApiError, bad_request

_MOST_FILES = 1
_MOST_FIELDS = 16
_LONGEST_FIELD_BYTES = 64 * 2**10

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class StrictRoute(APIRoute):
    """A route whose body is read as this module says: `APIRouter(route_class=StrictRoute)`."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


class StrictRequest(Request):
    """A request whose JSON and form are refused where they are not what they should be."""

    async def json(self) -> Any:
        return parse_json(await self.body())

    def form(
        self,
        *,
        max_files: float = _MOST_FILES,
        max_fields: float = _MOST_FIELDS,
        max_part_size: int = _LONGEST_FIELD_BYTES,
    ) -> Any:  # what Starlette gives, whose type it keeps to itself
        return super().form(max_files=max_files, max_fields=max_fields, max_part_size=max_part_size)


def parse_json(raw: bytes) -> Any:
    """RFC 8259 in UTF-8, with numbers that a float holds. ApiError 400 for anything else."""
    try:
        value = json.loads(raw.decode("utf-8-sig"), parse_constant=_refuse, parse_float=_finite)
        if b"\\ud" in raw or b"\\uD" in raw:
            json.dumps(value, ensure_ascii=False).encode()  # fails where an escape is half of a pair
    except UnicodeEncodeError as error:
        raise _not_json("half of a surrogate pair is no character") from error
    except (ValueError, RecursionError) as error:
        raise _not_json(str(error)) from error
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _not_json(why: str) -> ApiError:
    return bad_request(f"the body is not JSON: {why}", code="invalid_json")
