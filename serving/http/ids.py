"""Identifiers that sort by creation time: `file-01k…`.

A store lists keys in order, so the newest page is read without reading the rest.
"""

from __future__ import annotations

import re
import secrets
import time

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


def _encode(kind: str, number: int) -> str:
    text = "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_CHARACTERS)))
    return f"{kind}-{text}"


def _decode(identifier: str) -> int:
    number = 0
    for character in identifier.rpartition("-")[2]:
        number = number << 5 | _ALPHABET.index(character)
    return number
