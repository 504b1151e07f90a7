"""Which columns of a file hold a task's: those that the job file maps, those of the same names, or of known aliases.

Nothing is left out in silence: columns that are not used are named, and so are rows that `train: false` or `weight: 0`
leaves out.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from ray_jobs.data.findings import Findings
from ray_jobs.data.split import SIDE_COLUMN, side_named
from ray_jobs.errors import suggestion
from ray_jobs.tasks.base import Row, Task

_MOST_COLUMNS, _MOST_NAMED, _LONGEST_NAME = 100, 20, 40
"""Column names an error can list: remembered, shown, and characters of each."""
_MOST_SIDES = 20
"""Values of the column that names sides which are remembered: more of them name no sides."""
_EMPTY: tuple[object, ...] = (None, "", [])
_SWITCHES = ("train", "weight")
"""Columns by which a row of any task is left out, unless the task or the job file uses them otherwise."""
_OFF: tuple[object, ...] = (False, 0, "0", "0.0", "false", "False", "FALSE", "no", "No", "NO")


def check_mapping(task: Task[Any], columns: Mapping[str, str]) -> None:
    """Raise DataError for problems of `data.columns` that no file could cure."""
    known, findings = [column.name for column in task.columns], Findings()
    for name in columns:
        if name not in known:
            findings.add(
                "job file", f"data.columns: the task {task.name} has no column {name!r}; {_nearest(name, known)}"
            )
    findings.raise_if_any(["data.columns"])


class FileColumns:
    """A file's columns, learnt record by record. `mapping` is the job file's `data.columns`; `most` findings are listed
    one by one. `also_used`: columns of the file that the job file names for the split, and every row must have."""

    def __init__(self, task: Task[Any], mapping: Mapping[str, str], most: int, also_used: Collection[str] = ()) -> None:
        mapping = {name: composed(of_file) for name, of_file in mapping.items()}
        mapped = set(mapping.values())
        self._names: dict[str, list[str]] = {
            column.name: [mapping[column.name]]
            if column.name in mapping
            else [name for name in (column.name, *column.aliases) if name not in mapped]
            for column in task.columns
        }
        """Names that the file may have for each column of the task, of which a row has one."""
        self._mapping, self._required = mapping, [column.name for column in task.columns if column.required]
        self._used = {name for names in self._names.values() for name in names}
        self._also_used = {composed(name) for name in also_used}
        self._switches = [name for name in _SWITCHES if name not in self._used]
        self._seen: dict[str, None] = {}  # a set that keeps the order of the file
        self._aliased: dict[str, str] = {}
        self._left_out: Counter[str] = Counter()
        self._sides: Counter[str] = Counter()
        """Values of the column that names a row's side, the first few, and their rows."""
        # Rows without their columns are reported one by one only if other rows have them; else once, for the file.
        self._held_back = Findings(most=most)

    def take(self, values: Mapping[str, Any], where: str, findings: Findings) -> Row | None:
        """A record's values in the task's columns. None: it has none, is left out, or is one of the findings."""
        if not all(map(_is_composed, values)):
            values = {composed(name): value for name, value in values.items()}
        for name in values:
            if name in self._used or name in self._also_used:
                self._seen[name] = None
            elif len(self._seen) < _MOST_COLUMNS:
                self._seen[name[:_LONGEST_NAME]] = None
        switch = next((name for name in self._switches if values.get(name) in _OFF), None)
        if switch is not None:
            self._left_out[switch] += 1
            return None
        if SIDE_COLUMN in values and len(self._sides) < _MOST_SIDES:
            self._sides[str(values[SIDE_COLUMN])[:_LONGEST_NAME]] += 1
        row: Row = {}
        problems: list[str] = []
        for column, names in self._names.items():
            present = [name for name in names if name in values]
            given = [name for name in present if values[name] not in _EMPTY]
            if len(given) > 1:
                fix = f"name one of them in data.columns: {{{column}: {given[0]}}}"
                problems.append(f"{_quoted(given)} may each be the {column}; {fix}, or remove the others")
            for name in (given or present)[:1]:
                row[column] = values[name]
                if name != column and column not in self._mapping:
                    self._aliased[name] = column
        absent = [name for name in self._required if name not in row]
        if absent:
            self._held_back.add(where, ", ".join(f"no column {self._names[name][0]!r}" for name in absent))
        elif not row:
            self._held_back.add(where, f"none of the columns {self._main_names()}")
        elif problems:
            findings.add(where, "; ".join(problems))
        else:
            return row
        return None

    def named_twice(self, ambiguous: AbstractSet[str]) -> list[str]:
        """Columns of the task among the names that the file's header has twice."""
        return sorted(set(map(composed, ambiguous)) & self._used)

    def report(self, source: str, findings: Findings) -> None:
        """Add what concerns the whole file: rows without columns, and what was not used."""
        self._report_absent(source, findings)
        for name in self._also_used - self._seen.keys() if self._seen else ():
            findings.add(
                source, f"no row has a column {name!r}, which data.split names; {_nearest(name, list(self._seen))}"
            )
        for name, column in self._aliased.items():
            findings.note(source, f"{name!r} is read as {column}")
        for name, count in self._left_out.items():
            findings.note(
                source,
                f"{count} row(s) are left out by the column {name!r}, where it is false or 0; others count in full; "
                "rename it if it means something else",
            )
        said = self._left_out.keys() | self._used | self._also_used
        if self._sides and SIDE_COLUMN not in said and all(side_named(side) is not None for side in self._sides):
            counts = ", ".join(f"{count} {side}" for side, count in self._sides.items())
            findings.note(source, f"the column {SIDE_COLUMN!r} names the side of each row: {counts}")
            said = said | {SIDE_COLUMN}
        unused = [name for name in self._seen if name not in said]
        if unused:
            findings.note(source, f"not used: the column(s) {_quoted(unused)}")

    def _report_absent(self, source: str, findings: Findings) -> None:
        if not self._held_back.count:
            return
        missing = [name for name in self._required if not any(each in self._seen for each in self._names[name])]
        if not missing and any(name in self._seen for name in self._used):
            findings.extend(self._held_back)
            return
        for name in missing or [name for name in self._names if name in self._mapping]:
            file_name, mapped = self._names[name][0], name in self._mapping
            hint = _nearest(file_name, list(self._seen))
            fix = "correct data.columns" if mapped else f"name it in data.columns: {{{name}: …}}"
            findings.add(source, f"no row has a column {file_name!r}; {hint}; {fix}")
        if not missing:  # none of several optional columns
            findings.add(
                source,
                f"none of the columns {self._main_names()} is in the file, which has {_quoted(self._seen)}; "
                "name the right ones in data.columns",
            )

    def _main_names(self) -> str:
        return _quoted([names[0] for names in self._names.values() if names])


def composed(name: str) -> str:
    """A name as one sequence of characters (NFC): files from macOS have others for the same."""
    return unicodedata.normalize("NFC", name)


def _is_composed(name: str) -> bool:
    return unicodedata.is_normalized("NFC", name)


def _nearest(name: str, known: Sequence[str]) -> str:
    return suggestion(name, known, f"known: {_quoted(known) or 'none'}")


def _quoted(names: Collection[str]) -> str:
    shown = [repr(name) for name in list(names)[:_MOST_NAMED]]
    return ", ".join([*shown, "…"] if len(names) > len(shown) else shown)
