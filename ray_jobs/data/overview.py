"""What a file of rows holds, from its first rows: the columns, the task that they suggest, and what would be wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ray_jobs.data.clean.rows import Cleaning
from ray_jobs.data.findings import Findings
from ray_jobs.data.formats import Item, Notice, Record, Unreadable, read_records
from ray_jobs.data.guess import ColumnSummary, Guess, guess, summarise
from ray_jobs.data.ingest import rows_of
from ray_jobs.data.labels import check_labels, contradictory, doubtful
from ray_jobs.data.row_arrays import digests_of, short_keys
from ray_jobs.data.split import NO_SIDE, Rows, input_digest, split
from ray_jobs.errors import DataError
from ray_jobs.spec.split import SplitSection
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import Row

_READ, _READ_CHARACTERS = 2000, 5_000_000
"""Most records read, and most of their characters: enough to tell labels from texts."""


@dataclass(frozen=True)
class Overview:
    """The first rows of a file."""

    columns: tuple[ColumnSummary, ...]
    records: tuple[Mapping[str, Any], ...]
    """As the file has them."""
    whole: bool
    """No more rows than these are in the file."""
    guess: Guess
    rows: tuple[Row, ...]
    """Those of the records that are valid, in the task's form."""
    findings: Findings
    """What is wrong with the others, and notices."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Values of the task's label column, sorted."""
        column = TASKS[self.guess.task].label_column
        return tuple(sorted({row[column] for row in self.rows})) if column is not None else ()

    @property
    def longest(self) -> int:
        """Characters of the longest row's texts."""
        return max((_characters(row) for row in self.rows), default=0)


def overview(
    path: Path, source: str, *, task: str | None = None, columns: Mapping[str, str] | None = None,
    sheet: str | None = None, encoding: str | None = None,
) -> Overview:  # fmt: skip
    """Read the first rows of a file. `task` and `columns`: what the user says of them; the rest is guessed.

    `source` is the file's name in messages; `sheet` and `encoding` those of `read_records`. Raises DataError where no
    record can be read, and where the columns suggest no task.
    """
    read, whole = _first(path, sheet, encoding)
    records = [each.values for each in read if isinstance(each, Record)]
    unreadable = [f"{each.place}: {each.reason}".removeprefix(": ") for each in read if isinstance(each, Unreadable)]
    if not records:
        raise DataError(f"no row of {source} can be read", details=unreadable[:20] or ["it holds no rows"])
    summaries = summarise(records)
    try:
        found = guess(summaries, task, columns or {})
    except DataError as error:  # the cause may be what was not read
        notices = [each.text for each in read if isinstance(each, Notice)]
        raise DataError(error.message, details=[*error.details, *unreadable[:20], *notices]) from error
    findings = Findings(most=20)
    rows: list[Row] = []
    personal = Cleaning()
    for record, row in rows_of(read, source, TASKS[found.task], found.columns, findings):
        personal.clean(row, record.number)
        rows.append(row)
    for note in personal.notes():
        findings.note(source, note)
    seen = Overview(tuple(summaries), tuple(records), whole, found, tuple(rows), findings)
    _check_together(seen, source)
    return seen


def _first(path: Path, sheet: str | None, encoding: str | None) -> tuple[list[Item], bool]:
    """(the first items of a file, whether they are all)."""
    read: list[Item] = []
    count = characters = 0
    for item in read_records(path, sheet=sheet, encoding=encoding):
        if not isinstance(item, Notice):
            if count == _READ or characters > _READ_CHARACTERS:
                return read, False
            count += 1
            characters += _characters(item.values) if isinstance(item, Record) else 0
        read.append(item)
    return read, True


def _check_together(seen: Overview, source: str) -> None:
    """Add what is wrong with the rows together: one label, or nothing that can be held out; and doubtful labels."""
    if not seen.whole:  # the other rows may be different
        return
    task, findings = TASKS[seen.guess.task], seen.findings
    inputs = digests_of([input_digest(task.input_of(row)) for row in seen.rows])
    labels = [row[task.label_column] if task.label_column is not None else None for row in seen.rows]
    counts = Counter(label for label in labels if label is not None)
    for notice in [*doubtful(counts), *contradictory(inputs, labels, np.arange(len(labels)))]:
        findings.note(source, notice)
    if findings.count:
        return
    try:
        if task.label_column is not None:
            check_labels(set(counts), set())
        keys, no_sides = short_keys(inputs), np.full(len(inputs), NO_SIDE, dtype=np.int64)
        split(Rows(keys, keys.astype(np.int64), labels, no_sides, no_sides), SplitSection().shares(len(inputs)))
    except DataError as error:
        findings.add(source, error.message)


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_characters, values))
