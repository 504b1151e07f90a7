"""Work per row: cleaning, personal data, digests, signatures. Pure; runs in any process.

A batch of rows that were read becomes lines and columns for the spool, with the counts of its steps, which add up to
those of the whole whatever the number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.clean.boilerplate import LineCounts
from ray_jobs.data.clean.near_duplicates import Signatures, signatures
from ray_jobs.data.clean.outliers import features
from ray_jobs.data.clean.row_steps import RowSteps
from ray_jobs.data.clean.rows import Cleaning
from ray_jobs.data.clean.samples import text_of
from ray_jobs.data.findings import Findings
from ray_jobs.data.formats.records import place_of
from ray_jobs.data.ingest import canonical_line
from ray_jobs.data.row_arrays import Digests, Ids, digests_of, short_keys
from ray_jobs.data.split import NO_SIDE, input_digest, row_digest, side_named
from ray_jobs.data.times import time_of
from ray_jobs.spec.cleaning import CleaningPolicy
from ray_jobs.spec.personal_data import PersonalDataPolicy
from ray_jobs.tasks.base import Row, Task


class ReadRow(NamedTuple):
    """A checked row as it was read, and what the split reads of its record."""

    row: Row
    number: int
    unit: str
    """That of `number`: `line`, `row`, `record`, or empty for a whole file."""
    side: object = None
    """The record's value of the column `split`."""
    group: object = None
    """Its value of the column `data.split.group`."""
    time: object = None
    """Its value of the column `data.split.time`."""

    @property
    def place(self) -> str:
        """`line 3`; empty for the whole file."""
        return place_of(self.number, self.unit)


@dataclass(frozen=True)
class ReadBatch:
    """Rows of one file, in order."""

    file: int
    """Number of the file among all files."""
    address: str
    rows: list[ReadRow]
    findings: Findings | None = None
    """What was found in the file; with its last batch."""


@dataclass(frozen=True)
class Columns:
    """What the split and the steps that compare rows read: every sequence has an entry a row."""

    digests: Digests
    """`row_digest` of each row as it stays."""
    inputs: Digests
    """`input_digest` of each row."""
    ids: Ids
    """The row's id in reports: the first bytes of the digest of the row as it was read."""
    labels: list[str | None]
    numbers: NDArray[np.int64]
    units: list[str]
    marked: NDArray[np.int8]
    """Side that the column `split` names; NO_SIDE: none."""
    groups: list[str]
    """Value of the column `data.split.group` as JSON; empty for a row without one. No entries without the column."""
    times: NDArray[np.float64]
    """Values of the column `data.split.time`; NaN where it has no time. No entries without the column."""
    lengths: NDArray[np.int32]
    """Characters of the row's texts."""
    line_bytes: NDArray[np.int32]
    questions: Signatures
    """Signatures of the texts by which the split finds near duplicates."""
    texts: Signatures | None
    """Signatures of all texts of the rows. None: the policy compares no near duplicates."""
    features: NDArray[np.float32] | None
    """`outliers.features` of the texts. None: the policy looks for no outliers."""

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True)
class CleanedBatch:
    """A batch after its steps."""

    file: int
    address: str
    lines: bytes
    """The canonical lines of the rows that stay."""
    columns: Columns
    read: int
    emptied: int
    """Rows without a text after the cleaning."""
    gone: tuple[str, ...]
    """Ids of the rows that are left out."""
    steps: RowSteps
    personal: Cleaning
    findings: Findings | None


@dataclass(frozen=True)
class LineWork:
    """The first pass where boilerplate is looked for: counts the lines of the repaired rows."""

    policy: CleaningPolicy
    label_column: str | None

    def __call__(self, batch: ReadBatch) -> LineCounts:
        steps, counts = RowSteps(self.policy, self.label_column), LineCounts()
        for each in batch.rows:
            counts.add(steps.repair(each.row), self.label_column)
        return counts


@dataclass(frozen=True)
class RowWork:
    """Cleans a batch and computes its columns."""

    task: Task[Any]
    policy: CleaningPolicy
    boilerplate: frozenset[bytes]
    personal_data: PersonalDataPolicy | None
    salt: bytes | None
    has_groups: bool
    has_times: bool

    def __call__(self, batch: ReadBatch) -> CleanedBatch:
        """Raises DataError for a row that is nested too deeply."""
        column = self.task.label_column
        steps, personal = RowSteps(self.policy, column, self.boilerplate), Cleaning(self.personal_data, self.salt)
        stays, rows, lines, gone = list[ReadRow](), list[Row](), list[bytes](), list[str]()
        digests, ids = list[bytes](), list[bytes]()
        emptied = 0
        for given in batch.rows:
            line = canonical_line(given.row)
            digest = read_digest = row_digest(line)
            kept = steps.apply(given.row, f"{batch.address} {given.place}".rstrip())
            row = None if kept is None else personal.clean(kept, given.number)
            if row is not None and row != given.row:
                line = canonical_line(row)
                digest = row_digest(line)
                if self.task.check_row(row):  # such as a text of zero-width spaces
                    row, emptied = None, emptied + 1
            if row is None:
                gone.append(read_digest[:8].hex())
                continue
            stays.append(given)
            rows.append(row)
            lines.append(f"{line}\n".encode())
            digests.append(digest)
            ids.append(read_digest)
        return CleanedBatch(
            file=batch.file,
            address=batch.address,
            lines=b"".join(lines),
            columns=self._columns(stays, rows, digests_of(digests), short_keys(digests_of(ids)), list(map(len, lines))),
            read=len(batch.rows),
            emptied=emptied,
            gone=tuple(gone),
            steps=steps,
            personal=personal,
            findings=batch.findings,
        )

    def _columns(
        self, given: list[ReadRow], rows: list[Row], digests: Digests, ids: Ids, line_bytes: list[int]
    ) -> Columns:
        task, column = self.task, self.task.label_column
        texts, questions = [text_of(row, column) for row in rows], [task.question_of(row) for row in rows]
        compared = self.policy.near_duplicates != "off"
        of_questions, of_texts = _signed(questions, texts if compared else questions)
        sides = [side_named(each.side) for each in given]
        return Columns(
            digests=digests,
            inputs=digests_of([input_digest(task.input_of(row)) for row in rows]),
            ids=ids,
            labels=[None if column is None else row[column] for row in rows],
            numbers=np.array([each.number for each in given], dtype=np.int64),
            units=[each.unit for each in given],
            marked=np.array([NO_SIDE if side is None else side for side in sides], dtype=np.int8),
            groups=[_group(each.group) for each in given] if self.has_groups else [],
            times=np.array([time_of(each.time) for each in given] if self.has_times else [], dtype=np.float64),
            lengths=np.array([len(text) for text in texts], dtype=np.int32),
            line_bytes=np.array(line_bytes, dtype=np.int32),
            questions=of_questions,
            texts=of_texts if compared else None,
            features=features(texts) if self.policy.outliers != "off" else None,
        )


def _group(value: object) -> str:
    return "" if value in (None, "") else json.dumps(value, default=str)


def _signed(questions: Sequence[str], texts: Sequence[str]) -> tuple[Signatures, Signatures]:
    """Signatures of both; of equal texts once."""
    others = [at for at, (one, other) in enumerate(zip(questions, texts, strict=True)) if one != other]
    of_questions = signatures(questions)
    if not others:
        return of_questions, of_questions
    of_texts = of_questions.copy()
    of_texts[others] = signatures([texts[at] for at in others])
    return of_questions, of_texts
