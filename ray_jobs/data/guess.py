"""The task and the columns that a file of rows suggests, for a first job file. Pure.

A guess is shown with its reasons and never applied in silence: it becomes a line of the job file.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from statistics import mean
from typing import Any

from ray_jobs.errors import DataError, suggestion
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import Column, Task

_PREFERENCES = {"chosen", "rejected", "preferred_output", "non_preferred_output", "preferred_completion"}
_MOST_LABELS, _LONGEST_LABEL, _FEW_ROWS = 50, 60, 10
_NO_LABELS = ("role", "lang", "language", "locale", "split", "source", "model", "deleted", "言語", "出典")
"""Names of columns that describe a row and are seldom what a classifier learns: never guessed by their values."""


@dataclass(frozen=True)
class ColumnSummary:
    """A column of a file's first rows."""

    name: str
    filled: int
    """Rows that have a value."""
    distinct: int
    kind: str
    """`text`, `number`, `true/false`, `list`, `object`, `other` (such as a date of Parquet), or `mixed`."""
    mean_length: float
    """Characters of its values as text."""
    longest: int
    sample: str
    """A value, cut."""

    @property
    def may_be_label(self) -> bool:
        """Few values that come again and again."""
        few = 2 <= self.distinct <= _MOST_LABELS and 2 * self.distinct <= self.filled
        return few and self.longest <= _LONGEST_LABEL and self.kind in ("text", "number", "true/false", "mixed")

    @property
    def may_be_text(self) -> bool:
        """Text that differs from row to row."""
        return self.kind in ("text", "mixed") and 2 * self.distinct > self.filled and self.mean_length > 3

    @property
    def may_be_named_label(self) -> bool:
        """What a column with the very name of a label may hold: also one value alone, or few rows."""
        short = self.kind in ("text", "number", "true/false", "mixed") and self.longest <= _LONGEST_LABEL
        return self.may_be_label or (short and (self.distinct == 1 or 0 < self.filled < _FEW_ROWS))


@dataclass(frozen=True)
class Guess:
    """What a file's rows seem to be."""

    task: str
    columns: Mapping[str, str]
    """`data.columns` of a job file: the file's column for each of the task's, where the names differ."""
    reason: str


def refuse_preferences(columns: AbstractSet[str]) -> None:
    """Raise DataError where these are columns of preferences, and no task knows them."""
    if columns & _PREFERENCES and not any(task.recognises(columns) for task in TASKS.values()):
        raise DataError(
            "these are rows of preferences, a better and a worse answer each, which nothing here trains on yet: send "
            "the better answers as conversations, {messages: [...]}"
        )


def summarise(records: Sequence[Mapping[str, Any]]) -> list[ColumnSummary]:
    """The columns of the records, in the order in which they first occur."""
    names = list(dict.fromkeys(name for record in records for name in record))
    return [
        _summary(name, [record[name] for record in records if record.get(name) not in (None, "")]) for name in names
    ]


def guess(columns: Sequence[ColumnSummary], task: str | None, given: Mapping[str, str]) -> Guess:
    """The task and the columns. `task` and `given` (the task's column → the file's) are what the user says.

    Raises DataError where the columns suggest nothing, or where `given` names one that the file lacks.
    """
    names = [column.name for column in columns]
    for name, of_file in given.items():
        if of_file not in names:
            raise DataError(f"the file has no column {of_file!r} for {name}: {suggestion(of_file, names)}")
    tasks = [TASKS[task]] if task is not None else list(TASKS.values())
    for each in tasks:
        if not given and each.recognises(set(names)):
            return Guess(each.name, {}, "the columns have the names of this task")
    if task is None:
        refuse_preferences(set(names))
    for each in tasks:
        found = _by_name(each, columns, given)
        if found is not None:
            return Guess(each.name, found, "by the names of the columns")
    for each in tasks:
        found = _by_content(each, columns, given)
        if found is not None:
            return Guess(each.name, found, "by what the columns hold; their names say nothing")
    shown = [
        f"{column.name!r}: {column.kind}, {column.distinct} values, such as {column.sample!r}" for column in columns
    ]
    raise DataError(
        "it is not clear what the columns are: say the task and its columns, such as "
        "--task text_classification --column text=BODY --column label=CLASS, or --task chat --column prompt=QUESTION "
        "--column completion=ANSWER",
        details=shown[:30],
    )


def _summary(name: str, values: Sequence[Any]) -> ColumnSummary:
    texts = [value if isinstance(value, str) else str(value) for value in values]
    kinds = {_kind(value) for value in values}
    return ColumnSummary(
        name=name,
        filled=len(values),
        distinct=len(set(texts)),
        kind=kinds.pop() if len(kinds) == 1 else "mixed",
        mean_length=mean(map(len, texts)) if texts else 0.0,
        longest=max(map(len, texts), default=0),
        sample=" ".join((texts[0] if texts else "").split())[:60],
    )


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, list | dict):
        return "list" if isinstance(value, list) else "object"
    if not isinstance(value, str):
        return "other"
    return "number" if _is_number(value) else "text"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _by_name(task: Task[Any], columns: Sequence[ColumnSummary], given: Mapping[str, str]) -> dict[str, str] | None:
    found = dict(given)
    for column in (column for column in task.columns if column.likely and column.name not in found):
        free = [each for each in columns if each.name not in found.values() and _fits(task, column, each)]
        best = min(free, key=lambda each: _rank(column, each.name), default=None)
        if best is None or _rank(column, best.name) == _NO_WORD:
            return None
        found[column.name] = best.name
    return found | _optional(task, columns, found)


def _optional(task: Task[Any], columns: Sequence[ColumnSummary], found: Mapping[str, str]) -> dict[str, str]:
    """The other columns of the task whose names the file has in another case, width or language."""
    more: dict[str, str] = {}
    for column in (column for column in task.columns if not column.likely and column.name not in found):
        names = {_plain(name) for name in (column.name, *column.aliases, *column.translations)}
        same = [each.name for each in columns if each.name not in found.values() and _plain(each.name) in names]
        if len(same) == 1 and same[0] not in (column.name, *column.aliases):
            more[column.name] = same[0]
    return more


_NO_WORD = (3, 0)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _rank(column: Column, name: str) -> tuple[int, int]:
    """How well a file's name suggests a column of a task: lower is better."""
    plain = _plain(name)
    if plain in (column.name, *column.aliases):
        return 0, 0
    if plain in column.likely:
        return 1, column.likely.index(plain)
    places = [place for place, word in enumerate(column.likely) if word in plain]
    return (2, places[0]) if places else _NO_WORD


def _fits(task: Task[Any], column: Column, summary: ColumnSummary) -> bool:
    is_named = _rank(column, summary.name)[0] < 2
    if column.name == task.label_column:
        return summary.may_be_named_label if is_named else summary.may_be_label
    return summary.may_be_text or (is_named and summary.kind in ("text", "mixed"))


def _by_content(task: Task[Any], columns: Sequence[ColumnSummary], given: Mapping[str, str]) -> dict[str, str] | None:
    """The longest texts, and the only column of labels; or, for a task without labels, the only two of texts."""
    free = [column for column in columns if column.name not in given.values()]
    texts = [column for column in free if column.may_be_text]
    wanted = [column.name for column in task.columns if column.likely and column.name not in given]
    if task.label_column is None:
        pair = {**given, **dict(zip(wanted, (text.name for text in texts), strict=False))}
        # A column of lists, or one with the name of another column of the task, may be the one that is meant.
        doubt = any(each.kind in ("list", "object") or _misses(task, each.name, pair) for each in free)
        return pair if len(texts) == len(wanted) and not doubt else None
    found = dict(given)
    labels = [column for column in free if column.may_be_label and _plain(column.name) not in _NO_LABELS]
    for name in wanted:
        choice = labels if name == task.label_column else sorted(texts, key=lambda each: -each.mean_length)[:1]
        if len(choice) != 1:
            return None
        found[name] = choice[0].name
    return found


def _misses(task: Task[Any], name: str, found: Mapping[str, str]) -> bool:
    """The file's column has the name of a column of the task, in any case or language, and is not taken as it."""
    named = [
        column.name for column in task.columns if _plain(name) in (column.name, *column.aliases, *column.translations)
    ]
    return bool(named) and name not in [found.get(column) for column in named]
