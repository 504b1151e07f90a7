"""Boilerplate: lines that stand in many rows, such as signatures and disclaimers. Pure.

Counting comes first, over all rows and in as many processes as there are (`LineCounts` add up); removing follows.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection

from ray_jobs.data.clean.samples import is_written
from ray_jobs.data.clean.walker import Row, walk

LEAST_CHARACTERS = 12
LEAST_ROWS = 20
LEAST_SHARE = 0.01
"""A line counts as boilerplate from `LEAST_ROWS` rows and this share of all rows on."""
_PATH = re.compile(r"messages\[(\d+)\]\.content")
_NOT_COMPARED = frozenset({"system", "developer"})
"""Roles whose messages are the same in many rows on purpose."""


class LineCounts:
    """Number of rows that contain each line. Counts of parts add up with `merge`."""

    def __init__(self) -> None:
        self._rows = 0
        self._counts: Counter[bytes] = Counter()

    def add(self, row: Row, label_column: str | None) -> None:
        """Count the lines of a row."""
        found = set[bytes]()

        def visit(text: str, path: str, label: str) -> tuple[str, bool]:
            if _is_compared(row, path, label_column):
                found.update(digest for line in text.split("\n") if (digest := _digest(line)) is not None)
            return text, True

        walk(row, visit, names_and_numbers=False)
        self._rows += 1
        self._counts.update(found)

    def merge(self, other: LineCounts) -> None:
        self._rows += other._rows
        self._counts.update(other._counts)

    def boilerplate(self) -> frozenset[bytes]:
        """Digests of the lines that stand in many rows."""
        least = max(LEAST_ROWS, LEAST_SHARE * self._rows)
        return frozenset(digest for digest, rows in self._counts.items() if rows >= least)


def without_boilerplate(row: Row, lines: Collection[bytes], label_column: str | None) -> Row:
    """The row without these lines. A text that has no other line stays unchanged."""

    def visit(text: str, path: str, label: str) -> tuple[str, bool]:
        if not _is_compared(row, path, label_column):
            return text, True
        kept = [line for line in text.split("\n") if _digest(line) not in lines]
        if len(kept) == text.count("\n") + 1 or not any(map(str.strip, kept)):
            return text, True
        return "\n".join(kept).rstrip(), True

    return walk(row, visit, names_and_numbers=False)


def _is_compared(row: Row, path: str, label_column: str | None) -> bool:
    message = _PATH.match(path)
    if message is None:
        return not path.startswith("messages[") and is_written(path, label_column)
    return is_written(path, label_column) and row["messages"][int(message[1])].get("role") not in _NOT_COMPARED


def _digest(line: str) -> bytes | None:
    """A line without differences of case and white space. None: it is too short to be judged."""
    plain = " ".join(line.casefold().split())
    return None if len(plain) < LEAST_CHARACTERS else hashlib.sha256(plain.encode()).digest()[:8]
