"""JSON documents: an array of objects, or an object of which one member is this array; also pretty-printed.

The text is split into elements by their brackets and quotes, so that one of them is held at a time, and each is parsed
as a JSON line is: duplicate keys and NaN are refused with the record's number, and the next record is read. Which of
JSON lines and a document a file holds is decided by its beginning, whatever its name.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ray_jobs.data.formats.compression import ByteSource
from ray_jobs.data.formats.encodings import Encoding
from ray_jobs.data.formats.jsonl import read_json_lines
from ray_jobs.data.formats.lines import SURROGATE, read_lines
from ray_jobs.data.formats.records import (
    LONGEST_LINE_BYTES,
    Items,
    Notice,
    Record,
    Unreadable,
    Unusable,
    listed,
    parse_object,
)

_PIECE_CHARACTERS = 1 << 16
_SYNTAX = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
"""A whole text, the beginning of one that ends in a later piece, a bracket or a comma."""
_IN_TEXT = re.compile(r'["\\]')
_ESCAPED = re.compile(r".", re.DOTALL)
_CONVERSATIONS = ("messages", "conversations", "conversation")
"""A single object with such a list is one row, whose list has its turns."""
_OF_ROWS = ("rows", "data", "examples", "records", "items", "instances")
"""Members that hold the rows of an object, also in a file that is named .jsonl."""
_MOST_MEMBERS, _LONGEST_NAME = 1_000, 1_000
_AFTER = "text follows after the end of the array or object; one a file"


def read_json(source: ByteSource, encoding: Encoding, ending: str) -> Items:
    """The records of a file that is named `.json` or `.jsonl`, as what it is."""
    kind = _kind(source, encoding)
    if kind == "empty":
        return
    if kind == "lines":
        if ending == ".json":
            yield Notice("it holds an object a line: it is read as JSON lines (.jsonl)")
        yield from read_json_lines(source, encoding)
    elif kind == "array":
        if ending != ".json":
            yield Notice("it holds one array: it is read as a JSON document (.json)")
        yield from _records(_Splitter().elements(_pieces(source, encoding)))
    else:
        yield from _read_object(source, encoding, ending)


def _kind(source: ByteSource, encoding: Encoding) -> Literal["lines", "array", "object", "empty"]:
    """`array` and `object`: one JSON value, on one line or several."""
    first: str | None = None
    for line in read_lines(source, encoding):
        if first is not None:
            if isinstance(line, Unreadable) or line[1].strip():
                break  # a complete first line, and another
            continue
        if isinstance(line, Unreadable):  # too long, or with a broken byte
            begin = next(_pieces(source, encoding), "").lstrip()[:1]
            return "array" if begin == "[" else "lines"
        if not line[1].strip():
            continue
        first = line[1]
        begin = first.lstrip()[0]
        try:
            json.loads(first)
        except RecursionError:
            return "lines"
        except ValueError:
            if begin == "[":
                return "array"
            return "object" if _is_cut(first) else "lines"
    else:
        begin = first.lstrip()[0] if first is not None else ""
        return "empty" if not begin else "array" if begin == "[" else "object" if begin == "{" else "lines"
    return "lines"


def _is_cut(line: str) -> bool:
    """True for the first line of a pretty-printed object, which is open at its end."""
    text = line.strip()
    return text.startswith("{") and (text == "{" or text.endswith((",", "{", "[")))


def _read_object(source: ByteSource, encoding: Encoding, ending: str) -> Items:
    """One object: the rows in its only list of objects, or itself as the only row."""
    outline = _Splitter()
    for _ in outline.elements(_pieces(source, encoding)):
        pass
    lists = outline.lists
    named = len(lists) == 1 and lists[0] in _OF_ROWS
    if not lists or set(lists) & set(_CONVERSATIONS) or (ending != ".json" and not named):
        element = _Element()
        for piece in _pieces(source, encoding):
            element.add(piece)
        record = next(_records(iter([element.take()])))
        if isinstance(record, Record) and _is_by_columns(record.values):
            raise Unusable(
                f"it is one object with the columns {listed(map(repr, record.values))}, and not one a row: write an "
                'array of rows, with pandas by to_json(…, orient="records")'
            )
        yield record
    elif len(lists) == 1:
        yield Notice(f"the rows are the list {lists[0]!r} of one object; its other members are not read")
        yield from _records(_Splitter(lists[0]).elements(_pieces(source, encoding)))
    else:
        raise Unusable(
            f"it is one object with the lists {listed(map(repr, lists))}: write the rows as one array, or as one "
            "object a line named .jsonl"
        )


def _is_by_columns(values: Mapping[str, Any]) -> bool:
    """True for one object whose members are the columns of several rows: lists of values, or values by number."""
    columns = list(values.values())
    lengths = {len(column) if isinstance(column, dict | list) else 0 for column in columns}
    if len(lengths) != 1 or 0 in lengths:
        return False
    if all(isinstance(column, dict) for column in columns):
        return all(key.isdigit() for column in columns for key in column)
    return len(columns) > 1 and all(
        isinstance(column, list) and not isinstance(column[0], list | dict) for column in columns
    )


def _pieces(source: ByteSource, encoding: Encoding) -> Iterator[str]:
    """The text in pieces. Bytes that are not in the encoding are lone surrogates."""
    with source.open() as binary:
        text = io.TextIOWrapper(binary, encoding.codec, errors=encoding.errors)
        first = True
        try:
            while piece := text.read(_PIECE_CHARACTERS):
                yield piece.removeprefix("\ufeff") if first else piece
                first = False
        except UnicodeError as error:
            raise Unusable(f"it is not {encoding.name}; it may be cut off: {error}") from error


def _records(elements: Iterator[str | None]) -> Items:
    for number, element in enumerate(elements, 1):
        if element is None:
            megabytes = LONGEST_LINE_BYTES // 1_000_000
            yield Unreadable(number, f"longer than {megabytes} MB; is a bracket or a quote missing?", "record")
        elif not element.isascii() and SURROGATE.search(element):
            yield Unreadable(number, "it has bytes that are not in the file's encoding", "record")
        elif "\x00" in element:
            yield Unreadable(number, "a NUL byte; remove it", "record")
        else:
            yield parse_object(number, element, "record")


class _Splitter:
    """Splits a JSON text into the elements of one of its arrays, which is the whole text, or the member `member` of the
    outermost object. `member` None of an object: nothing is split, and `lists` names its members that are lists of
    objects.

    Raises Unusable where the text ends inside a value, or has something after it.
    """

    def __init__(self, member: str | None = None) -> None:
        self.lists: list[str] = []
        self._member = member
        self._element = _Element()
        self._level = 0
        """Open brackets."""
        self._begin: int | None = None
        """`_level` within the array that is split. None: outside of it."""
        self._done = False
        self._name: list[str] = []
        """Parts of the last text at level 1, which may be the name of a member."""
        self._list: str | None = None
        """The member whose list has just begun."""

    def elements(self, pieces: Iterator[str]) -> Iterator[str | None]:
        """The text of each element; None for one that is too long."""
        in_text = escaped = False
        for piece in pieces:
            at = 0
            while at < len(piece):
                found = (_ESCAPED if escaped else _IN_TEXT if in_text else _SYNTAX).search(piece, at)
                end = found.end() if found else len(piece)
                sign = found[0] if found else ""
                passed = piece[at:end]
                at = end
                if in_text:
                    self._add_text(passed)
                    in_text, escaped = escaped or sign != '"', not escaped and sign == "\\"
                    continue
                self._outside(passed.removesuffix(sign))
                if sign.startswith('"'):
                    in_text = len(sign) == 1
                    self._begin_text()
                    self._add_text(sign[1:])
                elif sign:
                    yield from self._take(sign)
        if not self._done:
            if self._begin is not None and self._element.is_text:
                yield self._element.take()
            raise Unusable("it ends inside a JSON value; the file may be cut off")

    def _keep(self, text: str) -> None:
        if self._begin is not None:
            self._element.add(text)

    def _begin_text(self) -> None:
        self._list = None
        if self._done:
            raise Unusable(_AFTER)
        if self._level == 1:
            self._name = []
        self._keep('"')

    def _add_text(self, text: str) -> None:
        self._keep(text)
        if self._level == 1 and self._begin is None and sum(map(len, self._name)) < _LONGEST_NAME:
            self._name.append(text)

    def _outside(self, text: str) -> None:
        if text and not text.isspace():
            self._list = None
            if self._done:
                raise Unusable(_AFTER)
        self._keep(text)

    def _take(self, sign: str) -> Iterator[str | None]:
        """A bracket or a comma outside of texts."""
        if self._done:
            raise Unusable(_AFTER)
        if self._list is not None and sign == "{" and len(self.lists) < _MOST_MEMBERS:
            self.lists.append(self._list)
        self._list = None
        if sign in "[{":
            self._level += 1
            if sign == "[" and self._begin is None and self._is_split():
                self._begin, self._element = self._level, _Element()
                return
        elif sign in "]}":
            self._level -= 1
            if self._level < 0:
                raise Unusable("a closing bracket without an opening one")
            self._done = self._level == 0
            if self._begin is not None and self._level < self._begin:
                if self._element.is_text:
                    yield self._element.take()
                self._begin = None
                return
        elif sign == "," and self._level == self._begin:
            yield self._element.take()
            return
        self._keep(sign)

    def _is_split(self) -> bool:
        """True for the array that has just begun, if it is the one to split."""
        if self._level == 1:
            return self._member is None
        name = "".join(self._name).removesuffix('"')
        if self._level == 2 and self._member is None:
            self._list = name
        return self._level == 2 and name == self._member


class _Element:
    """The text of one element, within the limit of a line."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length, self.is_text = 0, False

    def add(self, text: str) -> None:
        self._length += len(text)
        self.is_text = self.is_text or bool(text.strip())
        if self._length <= LONGEST_LINE_BYTES:
            self._parts.append(text)
        else:
            self._parts.clear()

    def take(self) -> str | None:
        """The text, or None if it is too long; the next element begins."""
        text = None if self._length > LONGEST_LINE_BYTES else "".join(self._parts)
        self._parts, self._length, self.is_text = [], 0, False
        return text
