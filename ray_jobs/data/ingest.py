"""Rows from a file: JSONL, CSV, TSV or Parquet, in the task's columns and one canonical form, checked one by one.

Owns the path from a file to checked rows, and the report of everything that is wrong with it in one DataError. How each
format yields records is in `formats`; what a row means is the task's business (`RowRules`). Rows stream: a file is
never held in memory.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ray_jobs.data.formats import Record, Unreadable, read_records
from ray_jobs.errors import DataError, ObjectNotFound, suggestion
from ray_jobs.storage import Store

Row = dict[str, Any]

MOST_DETAILS = 100
"""So many findings are named one by one; the rest are counted."""
_LONGEST_REASON = 500
_MOST_COLUMNS, _MOST_NAMED, _LONGEST_NAME = 100, 20, 40
"""So many columns are remembered to say which there are, so many said, and so much of each."""


class ColumnRule(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def required(self) -> bool: ...


class RowRules(Protocol):
    """What ingest needs to know of a task (`ray_jobs.tasks` implements it)."""

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> Sequence[ColumnRule]: ...

    def check_row(self, row: Row) -> list[str]:
        """Why the row is malformed; empty where it is not."""
        ...

    def normalise(self, row: Row) -> Row:
        """The canonical form of a row that `check_row` passes."""
        ...


@dataclass
class Findings:
    """What is wrong with the files, gathered so that one run shows all of it."""

    details: list[str] = field(default_factory=list)
    count: int = 0
    most: int = MOST_DETAILS

    def add(self, where: str, reason: str) -> None:
        self.count += 1
        if len(self.details) < self.most:
            short = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…"
            self.details.append(f"{where}: {short}")

    def extend(self, other: Findings) -> None:
        self.count += other.count
        self.details += other.details[: self.most - len(self.details)]

    def raise_if_any(self, sources: Sequence[str]) -> None:
        """Raises DataError with everything that was found."""
        if not self.count:
            return
        more = [f"+{self.count - len(self.details)} more"] if self.count > len(self.details) else []
        noun = "problem" if self.count == 1 else "problems"
        raise DataError(f"{self.count} {noun} in {' and '.join(sources)}", details=[*self.details, *more])


@contextmanager
def local_copy(store: Store, source: str) -> Iterator[Path]:
    """The rows' file as a local path: itself, or a download of an `s3://` address. DataError if there is none."""
    if not source.startswith("s3://"):
        path = Path(source).expanduser()
        if not path.is_file():
            kind = "is a directory, not a file of rows" if path.is_dir() else "does not exist"
            seen_from = "" if path.is_absolute() else f" (seen from {Path.cwd()})"
            raise DataError(
                f"{source} {kind}{seen_from}; name a .jsonl, .csv, .tsv or .parquet file, or s3://bucket/key"
            )
        yield path
        return
    bucket, _, key = source.removeprefix("s3://").partition("/")
    with tempfile.TemporaryDirectory(prefix="kitae-rows-") as directory:
        path = Path(directory) / (Path(key).name or "rows")
        try:
            store.at(f"s3://{bucket}").download_file(key, path)
        except ObjectNotFound as error:
            raise DataError(f"no rows at {source}: upload the file there, or correct the address") from error
        yield path


def read_rows(
    path: Path, source: str, rules: RowRules, columns: Mapping[str, str], findings: Findings
) -> Iterator[tuple[int, Row]]:
    """Yield (line, canonical row) of each good row; what is wrong with the others goes to `findings`.

    `columns` names the file's column for each column of the task that is called otherwise. The last finding, if any,
    is about the file as a whole. `source` is how messages call the file.
    """
    names = {column.name: columns.get(column.name, column.name) for column in rules.columns}
    columns_named = set(names.values())
    required = [column.name for column in rules.columns if column.required]
    seen: dict[str, None] = {}  # a set that keeps the order of the file
    # Rows without their columns are told one by one only if other rows do have them; else once, for the file.
    held_back = Findings(most=findings.most)
    records = 0
    for record in read_records(path):
        where = f"{source} {record.unit} {record.number}" if record.number else source
        records += 1
        if isinstance(record, Unreadable):
            findings.add(where, record.reason)
            continue
        for name in record.values:
            if name in columns_named:
                seen[name] = None
            elif len(seen) < _MOST_COLUMNS:
                seen[name[:_LONGEST_NAME]] = None
        absent = [name for name in required if names[name] not in record.values]
        if absent:
            held_back.add(where, ", ".join(f"no column {names[name]!r}" for name in absent))
            continue
        if not any(name in record.values for name in names.values()):
            held_back.add(where, f"none of the columns {_quoted(names.values())}")
            continue
        row, problem = _canonical(record, names, rules)
        if problem:
            findings.add(where, problem)
        else:
            yield record.number, row
    _report_columns(source, names, required, seen, held_back, findings)
    if not records:
        findings.add(source, "it holds no rows")


def check_mapping(rules: RowRules, columns: Mapping[str, str]) -> list[str]:
    """What is wrong with `data.columns` whatever the file holds."""
    known = [column.name for column in rules.columns]
    return [
        f"data.columns: the task {rules.name} has no column {name!r}; {_nearest(name, known)}"
        for name in columns
        if name not in known
    ]


def canonical_line(row: Row) -> str:
    """The row as one line of JSON with sorted keys: equal rows, equal lines. ValueError for NaN and infinity."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical(record: Record, names: Mapping[str, str], rules: RowRules) -> tuple[Row, str]:
    """(row, "") or ({}, why not)."""
    try:
        return _checked(record, names, rules)
    except RecursionError:  # what JSON's reader could just follow, may be too deep for whoever goes through it next
        return {}, "nested too deeply to be read"


def _checked(record: Record, names: Mapping[str, str], rules: RowRules) -> tuple[Row, str]:
    row = {name: record.values[source] for name, source in names.items() if source in record.values}
    problems = rules.check_row(row)
    if problems:
        return {}, "; ".join(problems)
    row = rules.normalise(row)
    try:
        line = canonical_line(row)
        line.encode()
    except UnicodeEncodeError:
        return {}, "a lone surrogate (\\ud800–\\udfff), which is no character; the text was cut inside an emoji"
    except (ValueError, TypeError) as error:
        return {}, f"not expressible as JSON: {error}"
    if "\\u0000" in line and "\x00" in _texts(row):
        return {}, "a NUL character (\\u0000); remove it"
    return row, ""


def _texts(value: Any) -> str:
    """Every text inside a row, joined."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "".join(map(_texts, [*value.keys(), *value.values()]))
    return "".join(map(_texts, value)) if isinstance(value, list) else ""


def _report_columns(
    source: str,
    names: Mapping[str, str],
    required: Sequence[str],
    seen: Mapping[str, None],
    held_back: Findings,
    findings: Findings,
) -> None:
    if not held_back.count:
        return
    missing = [name for name in required if names[name] not in seen]
    if not missing and any(name in seen for name in names.values()):
        findings.extend(held_back)
        return
    for name in missing or list(names):
        if not missing and names[name] == name:
            continue  # none of several optional columns: told below, in one line
        hint = _nearest(names[name], list(seen))
        fix = "correct data.columns" if names[name] != name else f"name it in data.columns: {{{name}: …}}"
        findings.add(source, f"no row has a column {names[name]!r}; {hint}; {fix}")
    if not missing:
        findings.add(
            source,
            f"none of the columns {_quoted(names.values())} is in the file, which has {_quoted(seen)}; "
            "name the right ones in data.columns",
        )


def _nearest(name: str, known: Sequence[str]) -> str:
    return suggestion(name, known, f"known: {_quoted(known) or 'none'}")


def _quoted(names: Collection[str]) -> str:
    told = [repr(name) for name in list(names)[:_MOST_NAMED]]
    return ", ".join([*told, "…"] if len(names) > len(told) else told)
