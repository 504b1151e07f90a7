"""Identifiers that sort by creation time, `file-01k…`, and cursor pages over lists of them.

A store lists keys in order, so the newest page is read without reading the rest.
"""

from __future__ import annotations

import re
import secrets
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Literal, TypeVar

from serving.http.errors import bad_request

T = TypeVar("T")
Order = Literal["asc", "desc"]
Page = tuple[list[T], bool]
"""Items of one page, and whether more follow."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32 in lower case, which sorts numerically."""
_CHARACTERS = 26
_RANDOM_BITS = 80


def new_id(kind: str, *, now_s: float | None = None) -> str:
    """Create `{kind}-{26 characters}`: 48 bits of milliseconds, then 80 random bits (the layout of a ULID)."""
    milliseconds = round((time.time() if now_s is None else now_s) * 1000)
    return _encode(kind, milliseconds << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS))


def derived_id(kind: str, other: str, now_s: float) -> str:
    """Derive an identifier from another one and a time. Deterministic."""
    return _encode(kind, round(now_s * 1000) << _RANDOM_BITS | _decode(other) % 2**_RANDOM_BITS)


def is_id(kind: str, text: str) -> bool:
    """Return whether untrusted text is a well-formed identifier, and so safe within a store key."""
    return re.fullmatch(rf"{kind}-[{_ALPHABET}]{{{_CHARACTERS}}}", text) is not None


def created_at_s(identifier: str) -> float:
    """Return the creation time of an identifier in Unix seconds."""
    return (_decode(identifier) >> _RANDOM_BITS) / 1000


def page(
    ids: Sequence[str], read: Callable[[str], T | None], *, limit: int, after: str | None, order: Order = "desc"
) -> Page[T]:
    """Return up to `limit` items after the id `after`.

    `ids` ascend. `after` may have been deleted. Items for which `read` returns None are skipped.
    """
    if after is not None and ids and after.partition("-")[0] != ids[0].partition("-")[0]:
        raise bad_request(f"after is {after!r}, which is not an id of this list", param="after")
    if order == "asc":
        wanted = list(ids[0 if after is None else bisect_right(ids, after) :])
    else:
        wanted = list(reversed(ids[: len(ids) if after is None else bisect_left(ids, after)]))
    found = (item for item in map(read, wanted) if item is not None)
    items = list(islice(found, limit + 1))
    return items[:limit], len(items) > limit


def _encode(kind: str, number: int) -> str:
    text = "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_CHARACTERS)))
    return f"{kind}-{text}"


def _decode(identifier: str) -> int:
    number = 0
    for character in identifier.rpartition("-")[2]:
        number = number << 5 | _ALPHABET.index(character)
    return number
