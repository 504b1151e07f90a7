"""The rows of `data`, read, checked and cleaned, on disk: what a preparation does before it splits.

Owns the order of the cleaning steps. The steps are in `clean/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs.data.clean.boilerplate import LineCounts
from ray_jobs.data.clean.drop_list import drop_ids
from ray_jobs.data.clean.row_steps import RowSteps
from ray_jobs.data.clean.rows import Cleaning
from ray_jobs.data.clean.samples import row_id
from ray_jobs.data.clean.set_steps import clean_set
from ray_jobs.data.columns import check_mapping
from ray_jobs.data.findings import Findings
from ray_jobs.data.formats import Record
from ray_jobs.data.ingest import read_rows
from ray_jobs.data.preparation import STEPS, DuplicateCluster, Step, StepReport
from ray_jobs.data.sources import find_files, local_copy
from ray_jobs.data.split import NO_SIDE, TEST, VALIDATION
from ray_jobs.data.spool import Spool, without_time
from ray_jobs.spec import DataSection
from ray_jobs.spec.cleaning import CleaningPolicy
from ray_jobs.storage import Workspace
from ray_jobs.tasks.base import Row, Task

Note = Callable[[str], None]


@dataclass(frozen=True)
class Cleaned:
    """What the cleaning did."""

    read: int
    """Rows that were read."""
    removed: Mapping[int, Step]
    """Spooled rows that are left out."""
    steps: tuple[StepReport, ...]
    clusters: tuple[DuplicateCluster, ...]


def read_and_clean(store: Workspace, data: DataSection, spool: Spool, note: Note, salt: bytes | None) -> Cleaned:
    """Spool the checked and cleaned rows of every source. Raises one DataError with every finding in all files."""
    policy, column = data.clean or CleaningPolicy(), spool.task.label_column
    drop = drop_ids(store, policy)
    lines = LineCounts()
    if policy.boilerplate != "off":  # counted over all rows before any is changed
        steps, findings = RowSteps(policy, column), Findings()
        for _, _, given in _read(store, data, spool.task, findings, ()):
            lines.add(steps.repair(given), column)
    steps, findings = RowSteps(policy, column, lines.boilerplate()), Findings()
    personal, gone, read, emptied = Cleaning(data.personal_data, salt), list[str](), 0, 0
    extra = [column for column in (spool.split.group, spool.split.time) if column is not None]
    for address, (side, record), given in _read(store, data, spool.task, findings, extra):
        read += 1
        if not spool.files or spool.files[-1] != address:
            spool.files.append(address)
        number = row_id(given)
        kept = steps.apply(given, f"{address} {record.place}".rstrip())
        row = None if kept is None else personal.clean(kept, record.number)
        if row is not None and row != given and spool.task.check_row(row):  # such as a text of zero-width spaces
            row, emptied = None, emptied + 1
        if row is None:
            gone.append(number)
        else:
            spool.add(row, record, side, number)
    for at in without_time(spool.times):
        if spool.given[at] == NO_SIDE:
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
    return Cleaned(read, found.removed, tuple(reports), found.clusters)


def _said(report: StepReport) -> str:
    """A sentence about a step. Empty where another sentence says it, or there is nothing to say."""
    if not report.rows or report.step == "personal_data":
        return ""
    if report.action == "report" and report.step in ("exact_duplicates", "conflicts"):
        return ""
    what = {"report": "found, and kept", "list": "listed, and kept", "change": "changed", "drop": "left out"}
    return f"cleaning, {report.step.replace('_', ' ')}: {report.rows:,} row(s) {what[report.action]}"


def _read(
    store: Workspace, data: DataSection, task: Task[Any], findings: Findings, extra: Sequence[str]
) -> Iterator[tuple[str, tuple[int, Record], Row]]:
    """(address of the file, (its side, record), row) of each valid row of every source."""
    check_mapping(task, data.columns)
    sources = [(NO_SIDE, source) for source in data.train_sources]
    sources += [
        (side, source) for side, source in ((VALIDATION, data.held_out), (TEST, data.test)) if source is not None
    ]
    for side, source in sources:
        found = find_files(store, source)
        for notice in found.notices:
            findings.note(source, notice)
        for file in found.files:
            with local_copy(store, file) as path:
                rows = read_rows(
                    path, file.address, task, data.columns, findings,
                    encoding=data.encoding, sheet=data.sheet, also_used=extra if side == NO_SIDE else (),
                )  # fmt: skip
                yield from ((file.address, (side, record), row) for record, row in rows)
