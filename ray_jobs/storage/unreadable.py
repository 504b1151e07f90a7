"""Reads JSON that another writer may have damaged or forged, and remembers the records that cannot be read.

Owns the bounds of any document and the list of unreadable records of a process. Does not know what a record means.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

logger = logging.getLogger(__name__)

MAX_DOCUMENT_BYTES = 16 * 2**20
"""Largest document that is read. Kitae's own are below 1 MiB."""
_MAX_NESTING = 64
_MAX_KEPT = 200
"""Unreadable records of a kind that a process remembers: those that a team can write do not displace others."""
_SHOWN_ERRORS = 3
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_document(data: bytes) -> Any:
    """Parse a stored document. Raises ValueError as `strict_json`, and for deep nesting."""
    try:
        document = strict_json(data)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_MAX_NESTING} levels") from None
    if data.count(b"[") + data.count(b"{") > _MAX_NESTING and nested_deeper(document, _MAX_NESTING):
        raise ValueError(f"it is nested deeper than {_MAX_NESTING} levels")
    return document


def strict_json(data: bytes, *, encoding: str | None = None) -> Any:
    """Parse JSON by RFC 8259. Raises ValueError for NaN and infinity and for text that is not Unicode, which would fail
    later: when it is written or answered. `encoding` None: UTF-8, 16 or 32, as detected. Raises RecursionError."""
    text = data if encoding is None else data.decode(encoding)
    value = json.loads(text, parse_constant=_finite, parse_float=_finite)
    if _SURROGATE.search(data):
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return value


def nested_deeper(value: object, depth: int) -> bool:
    """Whether lists and objects are nested deeper than `depth`; stops at the first that is."""
    if not isinstance(value, dict | list):
        return False
    if depth == 0:
        return True
    return any(nested_deeper(each, depth - 1) for each in (value.values() if isinstance(value, dict) else value))


def summary(error: ValidationError) -> str:
    """The first errors by field, without the values, which may be secret."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in found[:_SHOWN_ERRORS]]
    more = len(found) - len(shown)
    return "; ".join([*shown, f"and {more} more"] if more else shown)


@dataclass
class UnreadableRecords:
    """The records that this process could not read when it last tried. Thread-safe."""

    _found: dict[str, dict[str, str]] = field(default_factory=dict)
    """Kind → path in the store → reason."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def report(self, kind: str, key: str, reason: str) -> None:
        """Remember an unreadable record, and log it the first time."""
        with self._lock:
            known = self._found.setdefault(kind, {})
            if key in known or len(known) >= _MAX_KEPT:
                return
            known[key] = reason
        logger.warning("%s is skipped: %s", key, reason)

    def clear(self, kind: str, keys: Collection[str]) -> None:
        """Forget records that were read or deleted."""
        with self._lock:
            for key in keys:
                self._found.get(kind, {}).pop(key, None)

    def keys(self, kind: str | None = None) -> list[str]:
        """Paths of the unreadable records of a kind, relative to the store's root. None: of every kind."""
        with self._lock:
            return sorted(key for each, known in self._found.items() if kind in (None, each) for key in known)

    def counts(self) -> dict[str, int]:
        """Unreadable records by kind, with 0 for a kind whose records became readable."""
        with self._lock:
            return {kind: len(known) for kind, known in self._found.items()}


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is not a finite number")
    return number
