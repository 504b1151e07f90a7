"""What reading a file of rows yields: records, unreadable ones, and notices; and the limits of one record. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

LONGEST_LINE_BYTES = 10_000_000
"""A longer line, row or element is refused: nearly always the file has lost its line ends or a closing quote."""
MOST_COLUMNS = 2_000
"""Columns of a row; a file with more is refused."""
MOST_LISTED = 10
"""Lines, names or cells that one message lists."""


@dataclass(frozen=True)
class Record:
    """One record, unchecked. `number` counts from 1 in `unit`s."""

    number: int
    values: dict[str, Any]
    unit: str = "line"
    """`line`, `row` or `record`. Empty: the record is the whole file."""
    ambiguous: frozenset[str] = frozenset()
    """Names that the header has more than once; their columns are not in `values`."""

    @property
    def place(self) -> str:
        """`line 3`; empty for the whole file."""
        return place_of(self.number, self.unit)


@dataclass(frozen=True)
class Unreadable:
    """A record that cannot be read. `number` is 0 where the reason concerns the whole file."""

    number: int
    reason: str
    unit: str = "line"

    @property
    def place(self) -> str:
        """`line 3`; empty for the whole file."""
        return place_of(self.number, self.unit)


@dataclass(frozen=True)
class Notice:
    """What was guessed, skipped or converted while the file was read."""

    text: str


@dataclass
class RowNumbers:
    """Numbers of rows: how many, and the first few, which a message lists."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, number: int) -> None:
        self.count += 1
        if len(self.first) < MOST_LISTED:
            self.first.append(number)

    def __str__(self) -> str:
        return listed(self.first, self.count)


Item = Record | Unreadable | Notice
Items = Iterator[Item]


class Unusable(Exception):
    """The whole file cannot be read; the text says why. `read_records` turns it into an `Unreadable`."""


def place_of(number: int, unit: str) -> str:
    """`line 3`; empty for the whole file."""
    return f"{unit} {number}" if number and unit else ""


def parse_object(number: int, text: str, unit: str = "line") -> Record | Unreadable:
    """The record of a JSON object; Unreadable for anything else, duplicate keys and NaN included."""
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at character {error.colno}"
        if unit != "line" and error.lineno > 1:
            reason += f" of its line {error.lineno}"
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            reason += "; one object a line"
        return Unreadable(number, reason, unit)
    except ValueError as error:
        return Unreadable(number, str(error), unit)
    except RecursionError:
        return Unreadable(number, "nested too deeply to be read", unit)
    if not isinstance(value, dict):
        return Unreadable(number, f"{json_kind(value)}, not an object of columns", unit)
    if len(value) > MOST_COLUMNS:
        return Unreadable(number, f"{len(value)} columns; a row may have {MOST_COLUMNS}", unit)
    return Record(number, value, unit)


def json_kind(value: Any) -> str:
    """`a list`, `a number`, `null`."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return {list: "a list", str: "a text", int: "a number", float: "a number"}.get(type(value), "something else")


def repeated(names: Iterable[str]) -> list[str]:
    """Names that occur more than once, the first few."""
    return sorted(name for name, count in Counter(names).items() if count > 1)[:MOST_LISTED]


def listed(values: Iterable[object], count: int | None = None) -> str:
    """`2, 7 and 3 more`. `count`: number of values, of which the first are given."""
    shown = [str(value) for value in values]
    rest = (count if count is not None else len(shown)) - len(shown[:MOST_LISTED])
    text = ", ".join(shown[:MOST_LISTED])
    return f"{text} and {rest} more" if rest else text


def shortened(text: str, most: int = 60) -> str:
    """The text in quotes, cut after `most` characters."""
    return repr(text if len(text) <= most else text[:most] + "…")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = repeated(key for key, _ in pairs)
        raise ValueError(f"the key {', '.join(map(repr, twice))} occurs twice in one object")
    return result


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write null, or leave the column out")
