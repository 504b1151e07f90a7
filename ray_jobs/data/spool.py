"""Checked rows on disk while a dataset is prepared; in memory only what the split reads. Knows no store."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from ray_jobs.data.clean.near_duplicates import Signatures, signatures
from ray_jobs.data.clean.samples import text_of
from ray_jobs.data.clean.set_steps import RowTable
from ray_jobs.data.columns import composed
from ray_jobs.data.formats import Record
from ray_jobs.data.ingest import canonical_line
from ray_jobs.data.split import NO_SIDE, SIDE_COLUMN, Ints, input_digest, row_digest, side_named
from ray_jobs.spec.split import SplitSection
from ray_jobs.tasks.base import Row, Task

_BATCH = 2000
_DATE = re.compile(r"(\d{4})[-/.年](\d{1,2})[-/.月](\d{1,2})日?(.*)", re.DOTALL)


@dataclass
class Spool:
    """Rows in the order in which they were read."""

    path: Path
    task: Task[Any]
    split: SplitSection
    files: list[str] = field(default_factory=list)
    """Names of the files that were read, for messages."""
    digests: list[bytes] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    """Side of the file from which the row comes; NO_SIDE for a file of `data.train`."""
    marked: list[int] = field(default_factory=list)
    """Side that the column `split` names; NO_SIDE: none."""
    groups: list[int] = field(default_factory=list)
    """A number for each value of the column `data.split.group`, and for each row without one."""
    times: list[float] = field(default_factory=list)
    """Values of the column `data.split.time`; NaN where it has no time."""
    ids: list[bytes] = field(default_factory=list)
    """The row's id in reports: the first bytes of the digest of the row as it was read."""
    lengths: list[int] = field(default_factory=list)
    """Characters of the row's texts."""
    _places: list[tuple[int, int, str]] = field(default_factory=list)
    """File, number and unit of each row."""
    _offsets: list[int] = field(default_factory=lambda: [0])
    _texts: list[str] = field(default_factory=list)
    _signatures: list[Signatures] = field(default_factory=list)
    _values: dict[str, int] = field(default_factory=dict)
    _file: IO[bytes] | None = None

    def __enter__(self) -> Spool:
        self._file = self.path.open("w+b")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._file is not None
        self._file.close()

    def add(self, row: Row, record: Record, given: int, row_id: str) -> None:
        """Append a row of the last one of `files`."""
        assert self._file is not None
        canonical, text = canonical_line(row), self.task.input_of(row)
        encoded = canonical.encode() + b"\n"
        self._file.write(encoded)
        self._offsets.append(self._offsets[-1] + len(encoded))
        self.digests.append(row_digest(canonical))
        self.inputs.append(input_digest(text))
        self.labels.append(None if self.task.label_column is None else row[self.task.label_column])
        self.ids.append(bytes.fromhex(row_id))
        self.lengths.append(len(text_of(row, self.task.label_column)))
        self.given.append(given)
        side = side_named(record.values.get(SIDE_COLUMN))
        self.marked.append(NO_SIDE if side is None else side)
        self._places.append((len(self.files) - 1, record.number, record.unit))
        if self.split.group is not None:
            value = _value(record, self.split.group)
            known = f"{len(self.groups)}" if value in (None, "") else f"={json.dumps(value, default=str)}"
            self.groups.append(self._values.setdefault(known, len(self._values)))
        if self.split.time is not None:
            self.times.append(time_of(_value(record, self.split.time)))
        self._texts.append(self.task.question_of(row))
        if len(self._texts) == _BATCH:
            self._sign()

    def place(self, number: int) -> str:
        """`reviews.csv line 12`."""
        file, at, unit = self._places[number]
        return f"{self.files[file]} {unit} {at}" if unit else self.files[file]

    def row(self, number: int) -> Row:
        """A row, from the file."""
        return dict(json.loads(self._line(number)))

    def question(self, number: int) -> str:
        """The text by which near duplicates of a row are found."""
        return self.task.question_of(self.row(number))

    def table(self) -> RowTable:
        """What the cleaning steps read of the rows."""
        return RowTable(
            ids=[each.hex() for each in self.ids],
            places=[self.place(number) for number in range(len(self.ids))],
            digests=self.digests,
            inputs=self.inputs,
            labels=self.labels,
            text_of=lambda number: text_of(self.row(number), self.task.label_column),
        )

    @property
    def signatures(self) -> Signatures:
        """MinHash signatures of the questions."""
        self._sign()
        return np.concatenate(self._signatures) if self._signatures else signatures([])

    def write(self, rows: Ints, path: Path) -> Mapping[str, int]:
        """Write rows, sorted by their digests, to a file. Returns how many have each label."""
        ordered = sorted(rows.tolist(), key=lambda i: self.digests[i])
        with path.open("wb") as target:
            target.writelines(map(self._line, ordered))
        return Counter(label for i in ordered if (label := self.labels[i]) is not None)

    def _line(self, number: int) -> bytes:
        assert self._file is not None
        start, end = self._offsets[number], self._offsets[number + 1]
        self._file.seek(start)
        return self._file.read(end - start)

    def _sign(self) -> None:
        if self._texts:
            self._signatures.append(signatures(self._texts))
            self._texts.clear()


def _value(record: Record, column: str) -> object:
    """A record's value, where the file may spell the column in decomposed characters."""
    if column in record.values:
        return record.values[column]
    return next((value for name, value in record.values.items() if composed(name) == composed(column)), None)


def time_of(value: object) -> float:
    """Seconds, or a number as it is; NaN for what is neither a date nor a number."""
    if isinstance(value, bool) or value is None:
        return np.nan
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, datetime):
        return _seconds(value)
    if isinstance(value, date):
        return _seconds(datetime(value.year, value.month, value.day, tzinfo=UTC))
    text = str(value).strip()
    found = _DATE.fullmatch(text)
    if found is not None:
        year, month, day, rest = found.groups()
        text = f"{year}-{int(month):02}-{int(day):02}{_clock(rest)}"
    try:
        return float(text) if found is None else _seconds(datetime.fromisoformat(text))
    except ValueError:
        return np.nan


def _clock(rest: str) -> str:
    """` 9:05` as `T09:05`."""
    rest = rest.strip().removeprefix("T").strip()
    if not rest:
        return ""
    hour, colon, minutes = rest.partition(":")
    return f"T{hour.zfill(2)}{colon}{minutes}"


def _seconds(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def without_time(times: Sequence[float]) -> list[int]:
    """Numbers of the rows without a time."""
    return [number for number, time in enumerate(times) if math.isnan(time)]
