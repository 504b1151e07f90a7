"""Identifiers that sort by the time they were made: `file-01k…`. Pure, but for the clock and the dice.

A store lists keys in order, so a page of the newest is read without reading the rest.
"""

from __future__ import annotations

import re
import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32, lower case, which sorts as its numbers do."""
_CHARACTERS = 26
_RANDOM_BITS = 80


def new_id(kind: str, *, now_s: float | None = None) -> str:
    """`{kind}-{26 characters}`: 48 bits of milliseconds, then 80 random ones (the layout of a ULID)."""
    milliseconds = round((time.time() if now_s is None else now_s) * 1000)
    number = milliseconds << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    text = "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_CHARACTERS)))
    return f"{kind}-{text}"


def is_id(kind: str, text: str) -> bool:
    """Whether a text from outside has the form of such an identifier, and so is safe within a key."""
    return re.fullmatch(rf"{kind}-[{_ALPHABET}]{{{_CHARACTERS}}}", text) is not None


def made_at_s(identifier: str) -> float:
    """When an identifier was made, as Unix seconds."""
    number = 0
    for character in identifier.rpartition("-")[2]:
        number = number << 5 | _ALPHABET.index(character)
    return (number >> _RANDOM_BITS) / 1000
