"""Checked and cleaned rows on disk while a dataset is prepared; in memory only their columns. Knows no store."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.clean.samples import text_of
from ray_jobs.data.clean.set_steps import RowTable
from ray_jobs.data.formats.records import place_of
from ray_jobs.data.row_arrays import Ints
from ray_jobs.data.row_work import CleanedBatch, Columns
from ray_jobs.spec.split import SplitSection
from ray_jobs.tasks.base import Row, Task


class Spool:
    """Rows in the order in which they were read: `add` batches, then `finish`, then read."""

    columns: Columns
    given: NDArray[np.int16]
    """Side of the file from which each row comes; NO_SIDE for a file of `data.train`."""
    source: NDArray[np.int16]
    """Place of each row's source in `data.sources`."""
    groups: Ints | None
    """A number for each value of the column `data.split.group`, and for each row without one. None: no such column."""

    def __init__(self, path: Path, task: Task[Any], split: SplitSection) -> None:
        self._path, self.task, self.split = path, task, split
        self._parts: dict[str, list[Any]] = {each.name: [] for each in fields(Columns)}
        self._addresses: dict[int, str] = {}
        self._of_files: dict[int, tuple[int, int]] = {}
        """Side and source of each file."""
        self._file_of: list[NDArray[np.int32]] = []
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Spool:
        self._file = self._path.open("w+b")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._file is not None
        self._file.close()

    def __len__(self) -> int:
        return len(self.columns)

    def add(self, batch: CleanedBatch, side: int, source: int) -> None:
        """Append rows. `side` and `source`: those of their file."""
        assert self._file is not None
        self._file.write(batch.lines)
        self._addresses[batch.file], self._of_files[batch.file] = batch.address, (side, source)
        for name, parts in self._parts.items():
            parts.append(_interned(getattr(batch.columns, name)))
        self._file_of.append(np.full(len(batch.columns), batch.file, dtype=np.int32))

    def finish(self) -> None:
        """Every row is added."""
        assert self._file is not None
        self._file.flush()
        if all(one is other for one, other in zip(self._parts["questions"], self._parts["texts"], strict=True)):
            del self._parts["texts"]  # one array serves for both
        joined = {name: _joined(self._parts.pop(name)) for name in list(self._parts)}
        self.columns = Columns(**{"texts": joined["questions"], **joined})
        self._of_file = np.concatenate([*self._file_of, np.empty(0, dtype=np.int32)])
        of_files = np.zeros((max(self._of_files, default=0) + 1, 2), dtype=np.int16)
        for file, side_and_source in self._of_files.items():
            of_files[file] = side_and_source
        self.given, self.source = of_files[self._of_file].T
        self._ends = np.cumsum(self.columns.line_bytes, dtype=np.int64)
        self.groups = _group_numbers(self.columns.groups) if self.split.group is not None else None

    def place(self, number: int) -> str:
        """`reviews.csv line 12`."""
        place = place_of(int(self.columns.numbers[number]), self.columns.units[number])
        return f"{self._addresses[int(self._of_file[number])]} {place}".rstrip()

    def row(self, number: int) -> Row:
        """A row, from the file."""
        return dict(json.loads(self._line(number)))

    def question(self, number: int) -> str:
        """The text by which near duplicates of a row are found."""
        return self.task.question_of(self.row(number))

    def table(self) -> RowTable:
        """What the steps that compare rows read."""
        columns = self.columns
        return RowTable(
            ids=columns.ids,
            digests=columns.digests,
            inputs=columns.inputs,
            labels=columns.labels,
            text_of=lambda number: text_of(self.row(number), self.task.label_column),
            place_of=self.place,
            signatures=columns.texts,
            features=columns.features,
        )

    def write(self, rows: Ints, path: Path) -> Mapping[str, int]:
        """Write rows, sorted by their digests, to a file. Returns how many have each label."""
        ordered = rows[np.argsort(self.columns.digests[rows], kind="stable")].tolist()
        with path.open("wb") as target:
            target.writelines(map(self._line, ordered))
        return Counter(label for row in ordered if (label := self.columns.labels[row]) is not None)

    def _line(self, number: int) -> bytes:
        assert self._file is not None
        end, length = int(self._ends[number]), int(self.columns.line_bytes[number])
        self._file.seek(end - length)
        return self._file.read(length)


def _interned(values: Any) -> Any:
    """Texts that many rows share, as one object each."""
    if not isinstance(values, list):
        return values
    return [sys.intern(value) if isinstance(value, str) else value for value in values]


def _joined(parts: list[Any]) -> Any:
    """One array or list of those of the batches, which are freed."""
    if parts[0] is None:
        return None
    joined = [each for part in parts for each in part] if isinstance(parts[0], list) else np.concatenate(parts)
    parts.clear()
    return joined


def _group_numbers(values: Sequence[str]) -> Ints:
    """A number for each value, and one for each row without a value."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    alone = range(len(numbers), len(numbers) + len(values))
    found = (numbers[value] if value else own for value, own in zip(values, alone, strict=True))
    return np.fromiter(found, dtype=np.int64, count=len(values))
