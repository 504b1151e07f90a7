"""CSV and TSV as people and programs write them: RFC 4180, with the delimiter found where it is another one."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice

from ray_jobs.data.formats.compression import ByteSource
from ray_jobs.data.formats.encodings import Encoding
from ray_jobs.data.formats.lines import read_lines
from ray_jobs.data.formats.records import LONGEST_LINE_BYTES, Items, Notice, Unreadable
from ray_jobs.data.formats.table import TableRow, read_table

_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "，": "full-width commas (，)", "|": "vertical bars"}
_SAMPLE_LINES, _SAMPLE_CHARACTERS = 30, 100_000


def read_delimited(source: ByteSource, encoding: Encoding, ending: str) -> Items:
    """The records of a table in text. A row's number is that of its first line."""
    own = "\t" if ending == ".tsv" else ","
    delimiter = _sniff(_sample(source, encoding), own)
    if delimiter != own:
        yield Notice(f"its columns are separated by {_NAMES[delimiter]}, not {_NAMES[own]}; they are read so")
    yield from read_table(_rows(source, encoding, delimiter), "line")


def _sample(source: ByteSource, encoding: Encoding) -> list[str]:
    texts = (line[1] for line in read_lines(source, encoding) if isinstance(line, tuple) and line[1].strip())
    return [text[:_SAMPLE_CHARACTERS] for text in islice(texts, _SAMPLE_LINES)]


def _sniff(lines: list[str], own: str) -> str:
    """The delimiter of the header; where it has several, the one that most rows have as often."""
    if not lines:
        return own
    scored: dict[str, tuple[float, bool, int]] = {}
    for delimiter in _NAMES:
        rows = _parse(lines, delimiter)
        width = len(rows[0]) if rows else 0
        if width > 1:
            same = sum(len(row) == width for row in rows) / len(rows)
            scored[delimiter] = (round(same, 1), delimiter == own, width)
    return max(scored, key=lambda delimiter: scored[delimiter], default=own)


def _parse(lines: list[str], delimiter: str) -> list[list[str]]:
    rows = []
    try:
        for row in csv.reader(iter(lines), delimiter=delimiter):
            rows.append(row)
    except csv.Error:
        pass
    return [row for row in rows if row]


class _Texts:
    """The lines that the csv reader takes, with a limit on those of one row: a lost quote would take all of them."""

    def __init__(self, source: ByteSource, encoding: Encoding) -> None:
        self._lines = read_lines(source, encoding)
        self.troubles: list[Unreadable] = []
        self.start = 0
        """Number of the row's first line."""
        self._characters = 0

    def begin_row(self) -> None:
        self.start = self._characters = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for line in self._lines:
            if isinstance(line, Unreadable):
                self.troubles.append(line)
                continue
            self.start = self.start or line[0]
            self._characters += len(line[1])
            if self._characters > LONGEST_LINE_BYTES:
                raise csv.Error(f"a row of more than {LONGEST_LINE_BYTES // 1_000_000} MB; is a quote missing?")
            return line[1]
        raise StopIteration


def _rows(source: ByteSource, encoding: Encoding, delimiter: str) -> Iterator[TableRow | Unreadable | Notice]:
    csv.field_size_limit(LONGEST_LINE_BYTES)  # the module's own limit is 128 KiB, and it has no other setting
    texts = _Texts(source, encoding)
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    while True:
        texts.begin_row()
        reason, fields = "", None
        try:
            fields = next(reader, None)
        except csv.Error as error:
            reason = f"not well quoted: {error}"
        yield from texts.troubles
        texts.troubles.clear()
        if reason:
            yield Unreadable(texts.start, reason)
        elif fields is None:
            return
        elif len(fields) > 1 or (fields and fields[0].strip()):  # a blank line is no row
            yield TableRow(texts.start, fields)
