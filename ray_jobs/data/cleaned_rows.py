"""The rows of `data`, read, checked and cleaned, on disk: what a preparation does before it splits.

Owns the order of the cleaning steps. The steps are in `clean/`, the work on a batch of rows in `row_work`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ray_jobs.data.clean.boilerplate import LineCounts
from ray_jobs.data.clean.drop_list import drop_ids
from ray_jobs.data.clean.row_steps import RowSteps
from ray_jobs.data.clean.rows import Cleaning
from ray_jobs.data.clean.set_steps import clean_set
from ray_jobs.data.columns import check_mapping, composed
from ray_jobs.data.distributed import batches_of, is_worthwhile
from ray_jobs.data.findings import Findings
from ray_jobs.data.formats import Record
from ray_jobs.data.ingest import read_rows
from ray_jobs.data.preparation import STEPS, DuplicateCluster, StepReport
from ray_jobs.data.row_arrays import Ints
from ray_jobs.data.row_work import LineWork, ReadBatch, ReadRow, RowWork
from ray_jobs.data.sources import RowFile, find_files, local_copy
from ray_jobs.data.split import NO_SIDE, SIDE_COLUMN, TEST, VALIDATION
from ray_jobs.data.spool import Spool
from ray_jobs.spec import DataSection
from ray_jobs.spec.cleaning import CleaningPolicy
from ray_jobs.spec.split import SplitSection
from ray_jobs.storage import Workspace
from ray_jobs.tasks.base import Task

Note = Callable[[str], None]
JoinCluster = Callable[[int], None]
"""Joins the Ray cluster, if files of this size (bytes) are worth it and this process may."""
_BATCH_ROWS = 1000


@dataclass(frozen=True)
class Cleaned:
    """What the cleaning did."""

    read: int
    """Rows that were read."""
    kept: Ints
    """Numbers of the spooled rows that stay."""
    steps: tuple[StepReport, ...]
    clusters: tuple[DuplicateCluster, ...]


def read_and_clean(
    store: Workspace, data: DataSection, spool: Spool, note: Note, salt: bytes | None, join_cluster: JoinCluster
) -> Cleaned:
    """Spool the checked and cleaned rows of every source. Raises one DataError with every finding in all files."""
    policy, column = data.clean or CleaningPolicy(), spool.task.label_column
    drop, findings, lines = drop_ids(store, policy), Findings(), LineCounts()
    check_mapping(spool.task, data.columns)
    files = _files(store, data, findings)
    size_bytes, local = sum(each.file.size_bytes for each in files), any(each.file.is_local for each in files)
    join_cluster(size_bytes)
    distributed = is_worthwhile(size_bytes, local=local)
    read = _Reader(store, data, spool.task)
    if policy.boilerplate != "off":  # counted over all rows before any is changed
        for counts in batches_of(files, read, LineWork(policy, column), distributed=distributed):
            lines.merge(counts)
    boilerplate = lines.boilerplate()
    work = RowWork(
        task=spool.task,
        policy=policy,
        boilerplate=boilerplate,
        personal_data=data.personal_data,
        salt=salt,
        has_groups=spool.split.group is not None,
        has_times=spool.split.time is not None,
    )
    steps, personal = RowSteps(policy, column, boilerplate), Cleaning(data.personal_data, salt)
    gone, rows, emptied = list[str](), 0, 0
    for batch in batches_of(files, read, work, distributed=distributed):
        spool.add(batch, files[batch.file].side, files[batch.file].source)
        steps.merge(batch.steps)
        personal.merge(batch.personal)
        if batch.findings is not None:
            findings.extend(batch.findings)
        gone += batch.gone
        rows, emptied = rows + batch.read, emptied + batch.emptied
    spool.finish()
    if spool.split.time is not None:
        for at in np.flatnonzero(np.isnan(spool.columns.times) & (spool.given == NO_SIDE)).tolist():
            findings.add(spool.place(at), f"no date or number in {spool.split.time!r}, the column data.split.time")
    findings.raise_if_any(data.sources)
    personal.raise_if_refused()
    found = clean_set(policy, spool.table(), drop, gone)
    reports = sorted([*steps.reports(), personal.report(), *found.reports], key=lambda each: STEPS.index(each.step))
    if emptied:
        findings.notices.append(f"{emptied:,} row(s) have no text left after the cleaning, and are left out")
    for notice in [*findings.notices, *personal.notes(), *map(_said, reports)]:
        if notice:
            note(notice)
    return Cleaned(rows, found.kept, tuple(reports), found.clusters)


def _said(report: StepReport) -> str:
    """A sentence about a step. Empty where another sentence says it."""
    is_said = report.step == "personal_data" or (
        report.action == "report" and report.step in ("exact_duplicates", "conflicts")
    )
    return "" if is_said else report.sentence


class _SourceFile(NamedTuple):
    """A file of a source."""

    number: int
    side: int
    """NO_SIDE: a file of `data.train`."""
    source: int
    """Place of its source in `data.sources`."""
    address: str
    """Its name in messages."""
    file: RowFile


def _files(store: Workspace, data: DataSection, findings: Findings) -> list[_SourceFile]:
    """The files of every source, in order."""
    sources = [(NO_SIDE, source) for source in data.train_sources]
    sources += [
        (side, source) for side, source in ((VALIDATION, data.held_out), (TEST, data.test)) if source is not None
    ]
    files: list[_SourceFile] = []
    for place, (side, source) in enumerate(sources):
        found = find_files(store, source)
        for notice in found.notices:
            findings.note(source, notice)
        files += [
            _SourceFile(len(files) + at, side, place, file.address, file.located())
            for at, file in enumerate(found.files)
        ]
    return files


@dataclass(frozen=True)
class _Reader:
    """Reads the batches of a file."""

    store: Workspace
    data: DataSection
    task: Task[Any]

    def __call__(self, source: _SourceFile) -> Iterator[ReadBatch]:
        address, split = source.address, self.data.split or SplitSection()
        findings, rows = Findings(), list[ReadRow]()
        extra = [column for column in (split.group, split.time) if column is not None and source.side == NO_SIDE]
        with local_copy(self.store, source.file) as path:
            for record, row in read_rows(
                path, address, self.task, self.data.columns, findings,
                encoding=self.data.encoding, sheet=self.data.sheet, also_used=extra,
            ):  # fmt: skip
                rows.append(
                    ReadRow(
                        row, record.number, record.unit, record.values.get(SIDE_COLUMN), _value(record, split.group),
                        _value(record, split.time),
                    )
                )  # fmt: skip
                if len(rows) == _BATCH_ROWS:
                    yield ReadBatch(source.number, address, rows)
                    rows = []
        yield ReadBatch(source.number, address, rows, findings)


def _value(record: Record, column: str | None) -> object:
    """A record's value, where the file may spell the column in decomposed characters."""
    if column is None:
        return None
    if column in record.values:
        return record.values[column]
    return next((value for name, value in record.values.items() if composed(name) == composed(column)), None)
