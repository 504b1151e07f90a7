"""Records of JSONL, CSV, TSV and Parquet files, each with its line number; an unreadable one has the reason.

Owns encodings, line ends, quoting and nesting. Knows no task and no column's meaning. Streams.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray_jobs.errors import DataError

LONGEST_LINE_BYTES = 10_000_000
"""A longer line is refused: nearly always the file has lost its line ends."""

_SAMPLE_BYTES = 1 << 20
"""Bytes of a file that the guess reads."""


@dataclass(frozen=True)
class Record:
    """One record, unchecked. `number` counts from 1 in `unit`s."""

    number: int
    values: dict[str, Any]
    unit: str = "line"


@dataclass(frozen=True)
class Unreadable:
    """A record that cannot be read. `number` is 0 where the reason concerns the whole file."""

    number: int
    reason: str
    unit: str = "line"


_Line = tuple[int, str]
"""(number, text without a byte order mark, with its line end)."""


def read_records(path: Path) -> Iterator[Record | Unreadable]:
    """Every record of the file, in order. Raises DataError where the name's ending is of no known format."""
    ending = path.suffix.lower()
    if ending not in _READERS:
        hint = {
            ".json": "write one object a line and name it .jsonl",
            ".gz": "unpack it first",
            ".xlsx": "export it as .csv in UTF-8",
            ".txt": "write one JSON object a line and name it .jsonl",
        }.get(ending, "name it after what it holds")
        raise DataError(f"{path.name} ends in {ending or 'nothing'!r}, not {', '.join(_READERS)}: {hint}")
    return _READERS[ending](path)


def _read_jsonl(path: Path) -> Iterator[Record | Unreadable]:
    for line in _read_lines(path):
        if isinstance(line, Unreadable):
            yield line
        elif line[1].strip():
            yield _parse_object(*line)


def _parse_object(number: int, text: str) -> Record | Unreadable:
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at character {error.colno}"
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            reason += "; one object a line"
        return Unreadable(number, reason)
    except ValueError as error:
        return Unreadable(number, str(error))
    except RecursionError:
        return Unreadable(number, "nested too deeply to be read")
    if not isinstance(value, dict):
        return Unreadable(number, f"{_json_kind(value)}, not an object of columns")
    return Record(number, value)


def _read_delimited(path: Path, delimiter: str) -> Iterator[Record | Unreadable]:
    """RFC 4180; a quoted field may hold line ends. A row's number is that of its first line."""
    troubles: list[Unreadable] = []
    starts: list[int] = []  # file line of each text line the csv reader was given

    def texts() -> Iterator[str]:
        for line in _read_lines(path):
            if isinstance(line, Unreadable):
                troubles.append(line)
            else:
                starts.append(line[0])
                yield line[1]

    csv.field_size_limit(LONGEST_LINE_BYTES)  # the module's own limit is 128 KiB, and it has no other setting
    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        given = reader.line_num
        reason, fields = "", None
        try:
            fields = next(reader, None)
        except csv.Error as error:
            reason = f"not well quoted: {error}"
        yield from troubles
        troubles.clear()
        if fields is None and not reason:
            return
        number = starts[given] if given < len(starts) else starts[-1]
        if reason:
            yield Unreadable(number, reason)
        elif not fields or (len(fields) == 1 and not fields[0].strip()):
            continue
        elif header is None:
            header = [name.strip() for name in fields]
            twice = _twice(header)
            if twice:
                yield Unreadable(number, f"the header names {', '.join(map(repr, twice))} twice; rename one")
                return
        elif len(fields) != len(header):
            yield Unreadable(number, f"{len(fields)} fields, where the header has {len(header)}")
        else:
            yield Record(number, dict(zip(header, fields, strict=True)))


def _read_parquet(path: Path) -> Iterator[Record | Unreadable]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(number, _without_nulls(values), unit="row")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        yield Unreadable(0, f"not readable as Parquet after {number} rows: {error}")


def _without_nulls(value: Any) -> Any:
    """The value without null keys: Parquet gives every struct every key, and null means absent."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _read_lines(path: Path) -> Iterator[_Line | Unreadable]:
    """Text lines, ended by `\\n`, `\\r\\n` or `\\r`, also mixed. A file that is not UTF-8 is refused at once; a single
    line that is not is refused alone."""
    with path.open("rb") as file:
        sample = file.read(_SAMPLE_BYTES)
    wrong = _by_mark(sample)
    if wrong is not None:
        yield Unreadable(0, f"it is {wrong.name}, not UTF-8; {wrong.fix}")
        return
    number, after_cr = 0, False
    # Without the byte order mark. Bytes that are not UTF-8 become lone surrogates, which `raw` turns back.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        while text := lines.readline(LONGEST_LINE_BYTES + 1):
            if after_cr and text == "\n":  # the second half of a long line's \r\n
                after_cr = False
                continue
            number += 1
            after_cr = False
            raw = text.encode(errors="surrogateescape")
            if len(raw) > LONGEST_LINE_BYTES:
                while text and not text.endswith(("\r", "\n")):
                    text = lines.readline(LONGEST_LINE_BYTES)
                after_cr = text.endswith("\r")
                megabytes = LONGEST_LINE_BYTES // 1_000_000
                yield Unreadable(number, f"longer than {megabytes} MB; is a line end missing?")
                continue
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                found = _guess(sample)
                if found.iconv is not None:
                    yield Unreadable(0, f"it is not UTF-8 (first at line {number}) but seems {found.name}; {found.fix}")
                    return
                byte, at, name = raw[error.start], error.start + 1, _guess(raw).name
                yield Unreadable(number, f"byte 0x{byte:02x} at {at} is not UTF-8; the line seems {name}")
                continue
            if "\x00" in text:
                yield Unreadable(number, f"a NUL byte at character {text.index(chr(0)) + 1}; remove it")
                continue
            yield number, text


@dataclass(frozen=True)
class _Guess:
    name: str
    """Shown in messages: `Shift-JIS (CP932)`."""
    iconv: str | None
    """Name for `iconv -f`. None: no conversion can be recommended."""

    @property
    def fix(self) -> str:
        if self.iconv is None:
            return "save the file as UTF-8"
        return f"convert it: iconv -f {self.iconv} -t UTF-8 IN > OUT"


_JAPANESE = {"cp932": _Guess("Shift-JIS (CP932)", "CP932"), "euc_jp": _Guess("EUC-JP", "EUC-JP")}
_BYTE_ORDER_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),  # first: they begin with UTF-16's
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_FEWEST_ZEROS, _ZERO_SHARE = 8, 0.05
"""Least number and share of zeros in every second byte for UTF-16; fewer are NULs in UTF-8 text."""
_READABLE_SHARE = 0.5
"""Least share of ordinary Japanese characters among the non-ASCII ones for a Japanese encoding."""


def _by_mark(head: bytes) -> _Guess | None:
    """Encoding by its byte order mark or escape sequence. None: UTF-8, or no such mark."""
    for name, marks in _BYTE_ORDER_MARKS.items():
        if head.startswith(marks):
            return _Guess(name, name)
    if any(escape in head for escape in (b"\x1b$B", b"\x1b$@", b"\x1b(J")):
        return _Guess("ISO-2022-JP (JIS)", "ISO-2022-JP")
    # In UTF-16 one byte of every ASCII character is zero, always the same one of the two; UTF-8 text has no zeros.
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if min(even, odd) == 0 and max(even, odd) >= max(_FEWEST_ZEROS, _ZERO_SHARE * len(head) / 2):
        return _Guess("UTF-16 without a byte order mark", "UTF-16LE" if odd else "UTF-16BE")
    return None


def _guess(sample: bytes) -> _Guess:
    """Likely encoding of bytes that are not UTF-8. Only shown, never used to decode."""
    scored = {codec: _japanese_share(sample, codec) for codec in _JAPANESE}
    best = max(scored, key=scored.__getitem__)
    if scored[best] >= _READABLE_SHARE:
        return _JAPANESE[best]
    return _Guess("of an unknown encoding (perhaps Windows-1252)", None)


def _japanese_share(sample: bytes, codec: str) -> float:
    """Share of kana, kanji and full-width punctuation among the non-ASCII characters, as this codec decodes them."""
    decoder = codecs.getincrementaldecoder(codec)("strict")  # incremental: the sample may end inside a character
    try:
        text = decoder.decode(sample)
    except UnicodeDecodeError:
        return 0.0
    foreign = [character for character in text if ord(character) > 0x7F]
    # Half-width katakana do not count: EUC-JP read as Shift-JIS is full of them.
    ordinary = sum(
        "\u3000" <= character <= "\u30ff" or "\u4e00" <= character <= "\u9fff" or "\uff01" <= character <= "\uff60"
        for character in foreign
    )
    # Kana are rare where the wrong codec decodes Japanese text, and common where the right one does.
    kana = sum("\u3040" <= character <= "\u30ff" for character in foreign)
    return (ordinary + kana) / (2 * len(foreign)) + (0.25 if kana else 0.0) if foreign else 0.0


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = _twice(key for key, _ in pairs)
        raise ValueError(f"the key {', '.join(map(repr, twice))} occurs twice in one object")
    return result


def _twice(names: Iterable[str]) -> list[str]:
    """Names that occur more than once, the first few."""
    return sorted(name for name, count in Counter(names).items() if count > 1)[:10]


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write null, or leave the column out")


def _json_kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return {list: "a list", str: "a text", int: "a number", float: "a number"}.get(type(value), "something else")


_READERS: dict[str, Callable[[Path], Iterator[Record | Unreadable]]] = {
    ".jsonl": _read_jsonl,
    ".csv": partial(_read_delimited, delimiter=","),
    ".tsv": partial(_read_delimited, delimiter="\t"),
    ".parquet": _read_parquet,
}
