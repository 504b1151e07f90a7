"""Checked rows of a file, in the task's columns and one canonical form.

Owns the path from a file to checked rows, and one DataError with everything that is wrong with it. `formats` yields the
records; the task checks a row. Rows stream: a file is never held in memory.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray_jobs.data.columns import FileColumns
from ray_jobs.data.findings import Findings
from ray_jobs.data.formats import Notice, Record, Unreadable, read_records
from ray_jobs.tasks.base import Row, Task


def read_rows(
    path: Path,
    source: str,
    task: Task[Any],
    columns: Mapping[str, str],
    findings: Findings,
    *,
    encoding: str | None = None,
    sheet: str | None = None,
    also_used: Collection[str] = (),
) -> Iterator[tuple[Record, Row]]:
    """Yield (record, canonical row) of each valid row; problems of the others and notices are added to `findings`.

    `columns` maps a column of the task to the file's column where the names differ. The last finding, if any, is about
    the whole file. `source` is the file's name in messages; `encoding` and `sheet` are those of `read_records`.
    `also_used`: columns of the file that every record must have, besides the task's.
    """
    yield from rows_of(read_records(path, encoding=encoding, sheet=sheet), source, task, columns, findings, also_used)


def rows_of(
    read: Iterable[Record | Unreadable | Notice],
    source: str,
    task: Task[Any],
    columns: Mapping[str, str],
    findings: Findings,
    also_used: Collection[str] = (),
) -> Iterator[tuple[Record, Row]]:
    """`read_rows` of records that are read already."""
    found = FileColumns(task, columns, findings.most, also_used)
    records = 0
    for record in read:
        if isinstance(record, Notice):
            findings.note(source, record.text)
            continue
        where = f"{source} {record.place}".rstrip()
        records += 1
        if isinstance(record, Unreadable):
            findings.add(where, record.reason)
            continue
        if twice := found.named_twice(record.ambiguous):
            findings.add(source, f"the header names {', '.join(map(repr, twice))} twice; rename one")
            return
        given = found.take(record.values, where, findings)
        if given is None:
            continue
        row, problem = _canonical(given, task)
        if problem:
            findings.add(where, problem)
        else:
            yield record, row
    found.report(source, findings)
    if not records:
        findings.add(source, "it holds no rows")


def canonical_line(row: Row) -> str:
    """The row as one line of JSON with sorted keys: equal rows, equal lines. ValueError for NaN and infinity."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical(row: Row, task: Task[Any]) -> tuple[Row, str]:
    """(row, "") or ({}, why not)."""
    try:
        return _checked(row, task)
    except RecursionError:  # JSON's reader has a deeper limit than the code after it
        return {}, "nested too deeply to be read"


def _checked(row: Row, task: Task[Any]) -> tuple[Row, str]:
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
