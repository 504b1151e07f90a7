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
    return _written(kind, milliseconds << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS))


def id_after(kind: str, other: str, now_s: float) -> str:
    """The identifier of what was made of another thing at a given time: the same, whoever asks."""
    return _written(kind, round(now_s * 1000) << _RANDOM_BITS | _number(other) % 2**_RANDOM_BITS)


def is_id(kind: str, text: str) -> bool:
    """Whether a text from outside has the form of such an identifier, and so is safe within a key."""
    return re.fullmatch(rf"{kind}-[{_ALPHABET}]{{{_CHARACTERS}}}", text) is not None


def made_at_s(identifier: str) -> float:
    """When an identifier was made, as Unix seconds."""
    return (_number(identifier) >> _RANDOM_BITS) / 1000


def _written(kind: str, number: int) -> str:
    text = "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_CHARACTERS)))
    return f"{kind}-{text}"


def _number(identifier: str) -> int:
    number = 0
    for character in identifier.rpartition("-")[2]:
        number = number << 5 | _ALPHABET.index(character)
    return number
