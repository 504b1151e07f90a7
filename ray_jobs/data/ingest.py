"""Checked rows from a JSONL, CSV, TSV or Parquet file, in the task's columns and one canonical form.

Owns the path from a file to checked rows, and one DataError with everything that is wrong with it. `formats` yields the
records; the task checks a row. Rows stream: a file is never held in memory.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_jobs.data.formats import Record, Unreadable, read_records
from ray_jobs.errors import DataError, ObjectNotFound, suggestion
from ray_jobs.storage import Store
from ray_jobs.tasks.base import Row, Task

_MOST_COLUMNS, _MOST_NAMED, _LONGEST_NAME = 100, 20, 40
"""Column names an error can list: remembered, shown, and characters of each."""


@dataclass
class Findings:
    """Problems in the files, gathered so that one run shows all of them."""

    details: list[str] = field(default_factory=list)
    count: int = 0
    most: int = 100
    """Most findings listed one by one; the rest are counted."""

    def add(self, where: str, reason: str) -> None:
        self.count += 1
        if len(self.details) < self.most:
            self.details.append(f"{where}: {reason if len(reason) <= 500 else reason[:500] + '…'}")

    def extend(self, other: Findings) -> None:
        self.count += other.count
        self.details += other.details[: self.most - len(self.details)]

    @property
    def listed(self) -> list[str]:
        """The details, and the number of the others."""
        return [*self.details, *([f"+{self.count - len(self.details)} more"] if self.count > len(self.details) else [])]

    def raise_if_any(self, sources: Sequence[str]) -> None:
        """Raises DataError with everything that was found."""
        if not self.count:
            return
        noun = "problem" if self.count == 1 else "problems"
        raise DataError(f"{self.count} {noun} in {' and '.join(sources)}", details=self.listed)


@contextmanager
def local_copy(store: Store, source: str) -> Iterator[Path]:
    """The rows' file as a local path: itself, or a download of an `s3://` address. Raises DataError without one."""
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
    path: Path, source: str, task: Task[Any], columns: Mapping[str, str], findings: Findings
) -> Iterator[tuple[int, Row]]:
    """Yield (line, canonical row) of each valid row; problems of the others are added to `findings`.

    `columns` maps a column of the task to the file's column where the names differ. The last finding, if any, is about
    the whole file. `source` is the file's name in messages.
    """
    names = {column.name: columns.get(column.name, column.name) for column in task.columns}
    columns_named = set(names.values())
    required = [column.name for column in task.columns if column.required]
    seen: dict[str, None] = {}  # a set that keeps the order of the file
    # Rows without their columns are reported one by one only if other rows have them; else once, for the file.
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
        row, problem = _canonical(record, names, task)
        if problem:
            findings.add(where, problem)
        else:
            yield record.number, row
    _report_columns(source, names, required, seen, held_back, findings)
    if not records:
        findings.add(source, "it holds no rows")


def check_mapping(task: Task[Any], columns: Mapping[str, str]) -> None:
    """Raise DataError for problems of `data.columns` that no file could cure."""
    known, findings = [column.name for column in task.columns], Findings()
    for name in columns:
        if name not in known:
            findings.add(
                "job file", f"data.columns: the task {task.name} has no column {name!r}; {_nearest(name, known)}"
            )
    findings.raise_if_any(["data.columns"])


def canonical_line(row: Row) -> str:
    """The row as one line of JSON with sorted keys: equal rows, equal lines. ValueError for NaN and infinity."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical(record: Record, names: Mapping[str, str], task: Task[Any]) -> tuple[Row, str]:
    """(row, "") or ({}, why not)."""
    try:
        return _checked(record, names, task)
    except RecursionError:  # JSON's reader has a deeper limit than the code after it
        return {}, "nested too deeply to be read"


def _checked(record: Record, names: Mapping[str, str], task: Task[Any]) -> tuple[Row, str]:
    row = {name: record.values[source] for name, source in names.items() if source in record.values}
    problems = task.check_row(row)
    if problems:
        return {}, "; ".join(problems)
    row = task.normalise(row)
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
            continue  # none of several optional columns: reported below, in one line
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
    shown = [repr(name) for name in list(names)[:_MOST_NAMED]]
    return ", ".join([*shown, "…"] if len(names) > len(shown) else shown)
