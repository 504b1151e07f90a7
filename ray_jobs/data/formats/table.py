"""Rows of a table as records: the header's names, and what people's tables have besides. Knows no file format.

Skips empty rows, and a header that is repeated; leaves out columns without a name and those whose name occurs twice.
Refuses a table without a header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ray_jobs.data.formats.records import (
    MOST_COLUMNS,
    Items,
    Notice,
    Record,
    RowNumbers,
    Unreadable,
    listed,
    repeated,
    shortened,
)

_LOOKED_AT = 50
"""Rows after the header that are compared with it."""
_LOOKED_AT_CHARACTERS = 1_000_000
_LONGEST_NAME = 200
_SENTENCE = re.compile(r"[。！]|[.!]$")
_ASKED = re.compile(r"(ください|下さい|ますか|ですか|でしょうか)[。．]?$")
"""Ends of a question in a form, which names its column."""
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d+)?|\d{1,3}(,\d{3})+)")


@dataclass(frozen=True)
class TableRow:
    """Cells of one row, as text."""

    number: int
    cells: Sequence[str]


def read_table(rows: Iterator[TableRow | Unreadable | Notice], unit: str, *, pad: bool = False) -> Items:
    """The records of a table, whose first row with text is its header. `pad`: short rows get empty cells."""
    waiting: list[TableRow | Unreadable | Notice] = []
    empty, headers = RowNumbers(), RowNumbers()
    header: TableRow | None = None
    for row in rows:
        if not isinstance(row, TableRow):
            yield row
        elif _is_empty(row):
            empty.add(row.number)
        else:
            header = row
            break
    if header is not None:
        columns = _columns(header)
        if isinstance(columns, Unreadable):
            yield Unreadable(columns.number, columns.reason, unit)
            return
        characters = 0
        for row in rows:
            waiting.append(row)
            characters += sum(map(len, row.cells)) if isinstance(row, TableRow) else 0
            if len(waiting) >= _LOOKED_AT or characters > _LOOKED_AT_CHARACTERS:
                break
        first = [row for row in waiting if isinstance(row, TableRow) and not _is_empty(row)]
        if wider := _first_wider(columns, first):
            yield Unreadable(
                header.number,
                f"the first row has {_cells(header)}, and most rows have more, such as {unit} {wider.number} with "
                f"{_cells(wider)}: delete what is above the names of the columns, or name every column",
                unit,
            )
            return
        evidence = _is_data(columns, first)
        if evidence:
            shown = ", ".join(shortened(cell) for cell in columns.names[:5])
            yield Unreadable(
                header.number,
                f"no header: the first row is {shown}{', …' if len(columns.names) > 5 else ''} ({evidence}); add a "
                "first row with the names of the columns, such as text,label",
                unit,
            )
            return
        yield from columns.notices()
        for source in (waiting, rows):
            for row in source:
                if not isinstance(row, TableRow):
                    yield row
                elif _is_empty(row):
                    empty.add(row.number)
                elif columns.is_header(row):
                    headers.add(row.number)
                else:
                    yield columns.record(row, unit, pad=pad)
    if headers.count:
        yield Notice(f"the header is repeated and skipped at {unit} {headers}")
    if empty.count:
        yield Notice(f"{empty.count} empty row(s) skipped: {unit} {empty}")


@dataclass(frozen=True)
class _Columns:
    names: Sequence[str]
    """Names of all columns; empty for one without a name."""
    ambiguous: frozenset[str]

    def notices(self) -> Iterator[Notice]:
        if self.names[0] == "" and any(self.names):
            yield Notice("column 1 has no name and is not read")
        if self.ambiguous:
            named = listed(map(repr, sorted(self.ambiguous)))
            yield Notice(f"the header names {named} twice; these columns are not read")

    def is_header(self, row: TableRow) -> bool:
        return len(row.cells) == len(self.names) and all(
            cell.strip() == name for cell, name in zip(row.cells, self.names, strict=True)
        )

    def record(self, row: TableRow, unit: str, *, pad: bool) -> Record | Unreadable:
        """The record of a row; Unreadable with a cell in a column without a name, but for the first."""
        cells, width = row.cells, len(self.names)
        if pad and len(cells) < width:
            cells = [*cells, *[""] * (width - len(cells))]
        if len(cells) > width and not any(cell.strip() for cell in cells[width:]):
            cells = cells[:width]
        if len(cells) != width:
            return Unreadable(row.number, f"{len(cells)} fields, where the header has {width}", unit)
        for at in range(1, width):
            if not self.names[at] and cells[at].strip():
                reason = f"{shortened(cells[at])} is in column {at + 1}, which has no name in the header: name it"
                return Unreadable(row.number, reason, unit)
        values = {
            name: cell for name, cell in zip(self.names, cells, strict=True) if name and name not in self.ambiguous
        }
        return Record(row.number, values, unit, self.ambiguous)


def _columns(header: TableRow) -> _Columns | Unreadable:
    names = [name.strip() for name in header.cells]
    if len(names) > MOST_COLUMNS:
        return Unreadable(header.number, f"{len(names)} columns; a table may have {MOST_COLUMNS}")
    return _Columns(names, frozenset(repeated(name for name in names if name)))


def _is_empty(row: TableRow) -> bool:
    return not any(cell.strip() for cell in row.cells)


def _first_wider(columns: _Columns, rows: Sequence[TableRow]) -> TableRow | None:
    """The first of the rows with texts beside the named columns, if most of several rows have some."""
    width = len(columns.names)
    wider = [row for row in rows if any(cell.strip() for cell in row.cells[width:])]
    return wider[0] if len(wider) > 1 and 2 * len(wider) > len(rows) else None


def _cells(row: TableRow) -> str:
    """`1 cell ('Sales')`, `3 cells ('id', 'text', …)`."""
    texts = [cell for cell in row.cells if cell.strip()]
    shown = [shortened(cell, 20) for cell in texts[:3]] + ["…"] * (len(texts) > 3)
    return f"{len(texts)} cell{'' if len(texts) == 1 else 's'} ({', '.join(shown)})"


def _is_data(columns: _Columns, rows: Sequence[TableRow]) -> str:
    """Why the first row is a row of data and no header; empty if it may be a header."""
    names = [name for name in columns.names if name]
    for name in names:
        if len(name) > _LONGEST_NAME:
            return f"{shortened(name, 30)} has {len(name)} characters"
        if _ASKED.search(name):
            continue
        if _SENTENCE.search(name) and (len(name.split()) > 2 or not name.isascii()):
            return f"{shortened(name, 30)} is a sentence"
    if names and names != [str(number) for number in range(len(names))] and all(map(_NUMBER.fullmatch, names)):
        return "all of it are numbers"
    for row in rows:
        if columns.is_header(row):
            continue
        for name, cell in zip(columns.names, row.cells, strict=False):
            if name and len(columns.names) > 1 and cell.strip() == name:
                return f"{shortened(name, 30)} is also in row {row.number}, in the same column"
    return ""
