"""Records of a file of rows, each with its place; an unreadable one has the reason, and what was guessed a notice.

A module for each kind of file: `jsonl`, `json_array`, `delimited` (with `table`), `excel`, `parquet`, `plain_text`.
Below them `compression` gives bytes, `encodings` finds how they become text, and `lines` gives lines. Owns encodings,
line ends, quoting and nesting. Knows no task and no column's meaning. Streams: memory is bounded for any file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ray_jobs.data.formats.compression import PACKED, ByteSource
from ray_jobs.data.formats.delimited import read_delimited
from ray_jobs.data.formats.encodings import Encoding, detect, named
from ray_jobs.data.formats.excel import read_excel
from ray_jobs.data.formats.json_array import read_json
from ray_jobs.data.formats.parquet import read_parquet
from ray_jobs.data.formats.plain_text import read_text
from ray_jobs.data.formats.records import (
    LONGEST_LINE_BYTES,
    MOST_COLUMNS,
    Item,
    Items,
    Notice,
    Record,
    Unreadable,
    Unusable,
)
from ray_jobs.errors import DataError

__all__ = [
    "ENDINGS",
    "LONGEST_LINE_BYTES",
    "MOST_COLUMNS",
    "PACKED",
    "ROW_FORMATS",
    "TEXTS",
    "Item",
    "Items",
    "Notice",
    "Record",
    "Unreadable",
    "format_of",
    "read_records",
]

TEXTS = (".txt", ".md", ".html", ".htm")
"""Endings of files that are one record each."""
_TEXT_READERS: dict[str, Callable[[ByteSource, Encoding, str], Items]] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".csv": read_delimited,
    ".tsv": read_delimited,
    **dict.fromkeys(TEXTS, read_text),
}
ENDINGS = (*_TEXT_READERS, ".xlsx", ".parquet")
"""Endings of the files that are read; around those of text also `.gz` and `.zst`."""
ROW_FORMATS = ".jsonl, .json, .csv, .tsv, .xlsx, .parquet, .txt, .md or .html; of text also .gz and .zst"
"""The endings, as messages list them."""
_HINTS = {
    ".xls": "save it as .xlsx",
    ".ods": "save it as .xlsx or .csv",
    ".zip": "unpack it first",
    ".bz2": "unpack it first",
    ".xz": "unpack it first",
    ".7z": "unpack it first",
    ".tar": "unpack it first",
    ".pdf": "extract its text first",
    ".docx": "save it as .txt",
    ".ndjson": "name it .jsonl",
}


def format_of(name: str) -> str:
    """The ending that decides how a file of this name is read. Raises DataError for one that is not read."""
    path = Path(name)
    ending = path.suffix.lower()
    if ending in PACKED:
        inner = Path(path.stem).suffix.lower()
        if inner in _TEXT_READERS:
            return inner
        if inner in ENDINGS:
            raise DataError(f"{path.name} ends in {inner}{ending}: {inner} is packed already; unpack it first")
        raise DataError(f"{path.name} does not say what it packs: name it such as rows.jsonl{ending}")
    if ending not in ENDINGS:
        hint = _HINTS.get(ending, "name it after what it holds")
        raise DataError(f"{path.name} ends in {ending or 'nothing'!r}, not {ROW_FORMATS}: {hint}")
    return ending


def read_records(path: Path, *, encoding: str | None = None, sheet: str | None = None) -> Items:
    """Every record of the file, in order, between them the unreadable ones and notices.

    `encoding` of a text, by Python's name. None: found. `sheet` of a workbook. None: the only one with rows.
    Raises DataError where the name's ending is of no known format, or the encoding is unknown.
    """
    ending = format_of(path.name)
    known = None if encoding is None else named(encoding)
    return _guarded(_read(path, ending, known, sheet))


def _read(path: Path, ending: str, encoding: Encoding | None, sheet: str | None) -> Items:
    if ending == ".parquet":
        yield from read_parquet(path)
    elif ending == ".xlsx":
        yield from read_excel(path, sheet)
    else:
        source = ByteSource(path)
        found = encoding or detect(source)
        if found.notice:
            yield Notice(found.notice)
        yield from _TEXT_READERS[ending](source, found, ending)


def _guarded(items: Items) -> Items:
    """The items; a reason against the whole file is the last one."""
    try:
        yield from items
    except Unusable as error:
        yield Unreadable(0, str(error))
