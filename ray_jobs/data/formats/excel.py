"""Excel workbooks (.xlsx): one sheet as a table of texts, as Excel would write it to CSV.

Reads a sheet twice: its structure (merged cells, formulas without a stored value), then its values with openpyxl.
"""

from __future__ import annotations

import datetime
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from xml.parsers import expat

from ray_jobs.data.formats.records import (
    MOST_COLUMNS,
    MOST_LISTED,
    Items,
    Notice,
    RowNumbers,
    Unreadable,
    Unusable,
    listed,
)
from ray_jobs.data.formats.table import TableRow, read_table

_LEAST_LIMIT_BYTES, _MOST_EXPANSION = 100_000_000, 200
_MOST_IN_MEMORY_BYTES = 200_000_000
"""Size of the parts that openpyxl holds in memory: shared texts, styles."""
_MOST_ROWS = 1_048_576
"""Excel's own limit."""
_MOST_WITHOUT_VALUE = 10_000
_CELL = re.compile(r"([A-Z]{1,3})\d{1,7}")
_ESCAPE = re.compile("_x([0-9A-Fa-f]{4})_")
_RANGE = re.compile(r"[A-Z]{1,3}(\d{1,7})(?::[A-Z]{1,3}(\d{1,7}))?")


@dataclass
class _Structure:
    """What openpyxl's values do not show of a sheet."""

    merged: list[str] = field(default_factory=list)
    """Ranges of merged cells, such as `A1:B1`."""
    last_column: int = 0
    """Last column with a value."""
    without_value: dict[int, str] = field(default_factory=dict)
    """First cell of a row that has a formula and no stored value, by the row's number."""
    hidden: RowNumbers = field(default_factory=RowNumbers)
    """Rows that a filter or the user hides."""

    def merged_in(self, row: int) -> list[str]:
        """The ranges that include a row."""
        found = []
        for text in self.merged:
            ends = _RANGE.fullmatch(text)
            if ends is not None and int(ends[1]) <= row <= int(ends[2] or ends[1]):
                found.append(text)
        return found


def read_excel(path: Path, sheet: str | None) -> Items:
    """The records of the sheet `sheet`. None: of the only visible one with rows; Unusable if there are several."""
    try:
        _check_sizes(path)
        yield from _read(path, sheet)
    except Unusable:
        raise
    except Exception as error:
        raise Unusable(f"not readable as an Excel workbook: {type(error).__name__}: {error}") from error


def _check_sizes(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except zipfile.BadZipFile:
        with path.open("rb") as file:
            encrypted = file.read(8) == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
        why = "it has a password, or is an .xls by another name" if encrypted else "it is no .xlsx"
        raise Unusable(f"not readable as an Excel workbook: {why}; save it as .xlsx again") from None
    limit = max(_LEAST_LIMIT_BYTES, _MOST_EXPANSION * path.stat().st_size)
    if sum(part.file_size for part in parts) > limit:
        raise Unusable(f"it unpacks to more than {limit // 1_000_000} MB; save the sheet as .csv")
    in_memory = sum(part.file_size for part in parts if "/worksheets/" not in part.filename)
    if in_memory > _MOST_IN_MEMORY_BYTES:
        raise Unusable(f"its texts are more than {_MOST_IN_MEMORY_BYTES // 1_000_000} MB; save the sheet as .csv")


def _read(path: Path, sheet: str | None) -> Items:
    from openpyxl.reader.excel import ExcelReader

    reader = ExcelReader(str(path), read_only=True, data_only=True, keep_links=False)
    reader.read()
    with zipfile.ZipFile(path) as archive:
        parts = {found.name: relation.target for found, relation in reader.parser.find_sheets()}
        sheets = {found.title: found for found in reader.wb.worksheets}
        chosen = _choose(sheets, parts, archive, sheet)
        with archive.open(parts[chosen]) as part:
            structure = _structure(part)
    if len(sheets) > 1:
        yield Notice(f"the sheet {chosen!r} is read")
    hidden = structure.hidden
    if hidden.count:
        yield Notice(f"{hidden.count} hidden row(s) are read too: {hidden}; delete those that are not meant")
    worksheet: Any = sheets[chosen]
    worksheet.reset_dimensions()  # what the file says about its size may be wrong
    try:
        yield from read_table(_rows(worksheet, structure), "row", pad=True)
    finally:
        reader.wb.close()


def _choose(sheets: dict[str, Any], parts: dict[str, str], archive: zipfile.ZipFile, sheet: str | None) -> str:
    """Title of the sheet to read."""
    if sheet is not None:
        if sheet not in sheets:
            raise Unusable(f"it has no sheet {sheet!r}; its sheets are {listed(map(repr, sheets), len(sheets))}")
        return sheet
    visible = [title for title, found in sheets.items() if found.sheet_state == "visible"]
    filled = []
    for title in visible:
        with archive.open(parts[title]) as part:
            if len(visible) == 1 or _structure(part).last_column:
                filled.append(title)
    if len(filled) == 1:
        return filled[0]
    if not filled:
        raise Unusable(f"it has no visible sheet with rows; its sheets are {listed(map(repr, sheets), len(sheets))}")
    raise Unusable(
        f"rows are in {len(filled)} sheets: {listed(map(repr, filled), len(filled))}; keep one in the file, or name "
        "the one to read: data.sheet, or --sheet"
    )


def _rows(worksheet: Any, structure: _Structure) -> Iterator[TableRow | Unreadable | Notice]:
    header = 0
    for number, cells in enumerate(worksheet.iter_rows(max_col=max(structure.last_column, 1)), 1):
        missing = structure.without_value.get(number)
        texts, problem = _texts(cells, number)
        if missing is not None:
            problem = (
                f"cell {missing} has a formula and no stored value: open the file in Excel or LibreOffice and save it"
            )
        if not header and (problem or any(texts)):
            header = number
            if problem:
                raise Unusable(f"in the header (row {number}), {problem}")
            if merged := structure.merged_in(number):
                ranges = listed(merged, len(merged))
                raise Unusable(f"the header (row {number}) has merged cells, {ranges}: unmerge them")
            if others := [text for text in structure.merged if text not in merged]:
                ranges = listed(others[:MOST_LISTED], len(others))
                yield Notice(f"merged cells, {ranges}: the first of them has the value, the others are empty")
        yield Unreadable(number, problem, "row") if problem else TableRow(number, texts)


def _texts(cells: Sequence[Any], number: int) -> tuple[list[str], str]:
    """(the cells as texts without empty ones at the end, why the row cannot be read)."""
    texts = []
    for cell in cells:
        value = cell.value
        if isinstance(value, str) and cell.data_type == "e":
            return [], f"cell {cell.column_letter}{number} has the error {value}"
        texts.append(_as_text(value))
    while texts and not texts[-1].strip():
        texts.pop()
    return texts, ""


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    # Excel writes some characters as their number: a line end from another program is `_x000D_\n`.
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), str(value)).replace("\r\n", "\n")


def _structure(part: IO[bytes]) -> _Structure:
    """The structure of a sheet's XML. Raises Unusable for places outside Excel's limits."""
    from openpyxl.utils.cell import column_index_from_string, get_column_letter

    found = _Structure()
    row = column = 0
    formula = stored = in_value = False
    at = ""

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal row, column, formula, stored, in_value, at
        tag = name.rpartition(" ")[2]
        if tag == "row":
            before, row, column = row, int(attributes.get("r", row + 1)), 0
            if not before < row <= _MOST_ROWS:
                raise Unusable(f"row {row} follows row {before}; save it again with Excel or LibreOffice")
            if attributes.get("hidden") in ("1", "true"):
                found.hidden.add(row)
        elif tag == "c":
            at = attributes.get("r") or f"{get_column_letter(column + 1)}{row}"
            place = _CELL.fullmatch(at)
            if place is None:
                raise Unusable(f"{at!r} is no cell; save it again with Excel or LibreOffice")
            column = column_index_from_string(place[1])
            formula, in_value, stored = False, False, attributes.get("t") == "str"  # a formula may give an empty text
        elif tag == "f":
            formula = True
        elif tag in ("v", "is"):
            in_value = True
        elif tag == "mergeCell" and len(found.merged) < _MOST_WITHOUT_VALUE:
            found.merged.append(attributes.get("ref", ""))

    def text(data: str) -> None:
        nonlocal stored
        stored = stored or (in_value and bool(data))

    def end(name: str) -> None:
        if name.rpartition(" ")[2] != "c":
            return
        if stored or formula:
            found.last_column = max(found.last_column, column)
            if column > MOST_COLUMNS:
                raise Unusable(f"cell {at} is in column {column}; a table may have {MOST_COLUMNS}")
        if formula and not stored:
            found.without_value.setdefault(row, at)
            if len(found.without_value) > _MOST_WITHOUT_VALUE:
                raise Unusable(
                    f"more than {_MOST_WITHOUT_VALUE} formulas, such as {at}, have no stored value: open the file in "
                    "Excel or LibreOffice and save it"
                )

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.ParseFile(part)
    return found
