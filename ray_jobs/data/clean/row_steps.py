"""The steps that look at one row: repair, invisible characters, NFKC, boilerplate, length. Pure, and in any process.

Counts and samples of parts add up (`merge`) to those of the whole: the samples are those with the smallest ids,
whatever the order of the rows and the number of processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Literal

from ray_jobs.data.clean.boilerplate import without_boilerplate
from ray_jobs.data.clean.characters import nfkc, visible
from ray_jobs.data.clean.mojibake import is_damaged, repaired
from ray_jobs.data.clean.samples import MOST_SAMPLES, is_written, masked, row_id, text_of
from ray_jobs.data.clean.walker import Row, walk
from ray_jobs.data.preparation import Sample, Step, StepReport
from ray_jobs.errors import DataError
from ray_jobs.spec.cleaning import CleaningPolicy

Action = Literal["report", "change", "drop"]
_ACTIONS: dict[str, Action] = {"report": "report", "repair": "change", "remove": "change"}


_CHANGES: dict[Step, Callable[[str], str]] = {"mojibake": repaired, "invisible": visible, "nfkc": nfkc}
"""Changes of texts, in their order."""


@dataclass
class _StepCount:
    rows: int = 0
    detail: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)

    def keep(self, samples: Iterable[Sample]) -> None:
        self.samples = nsmallest(MOST_SAMPLES, [*self.samples, *samples], key=lambda sample: (sample.row, sample.place))


class RowSteps:
    """One pass over rows, or over a part of them. Picklable.

    `boilerplate`: the lines that `LineCounts` found in the rows that `repair` returns; not needed where the policy
    leaves boilerplate off.
    """

    def __init__(
        self, policy: CleaningPolicy, label_column: str | None = "label", boilerplate: frozenset[bytes] = frozenset()
    ) -> None:
        self._policy, self._label_column, self._boilerplate = policy, label_column, boilerplate
        self._counts: dict[Step, _StepCount] = {step: _StepCount() for step in self._actions()}

    def apply(self, row: Row, place: str) -> Row | None:
        """The row as it stays, or None where it is dropped. `place`: file and number, for the report.

        Raises DataError for a row nested too deeply.
        """
        try:
            return self._applied(row, place)
        except RecursionError:
            raise DataError(f"{place} is nested too deeply to be cleaned; flatten it") from None

    def repair(self, row: Row) -> Row:
        """The row after the steps before boilerplate, uncounted."""
        for change in self._changes().values():
            row = self._changed(row, change)
        return row

    def merge(self, other: RowSteps) -> None:
        """Add the counts and samples of another part."""
        for step, count in other._counts.items():
            mine = self._counts[step]
            mine.rows += count.rows
            mine.detail.update(count.detail)
            mine.keep(count.samples)

    def reports(self) -> tuple[StepReport, ...]:
        """What each step of the policy did, in their order."""
        actions = self._actions()
        return tuple(
            StepReport(
                step=step,
                action=actions[step],
                rows=count.rows,
                samples=tuple(count.samples),
                detail=dict(sorted(count.detail.items())),
            )
            for step, count in self._counts.items()
        )

    def _actions(self) -> dict[Step, Action]:
        policy = self._policy
        actions: dict[Step, Action] = {}
        if policy.mojibake != "off":
            actions["mojibake"] = _ACTIONS[policy.mojibake]
        if policy.invisible != "off":
            actions["invisible"] = _ACTIONS[policy.invisible]
        if policy.nfkc:
            actions["nfkc"] = "change"
        if policy.boilerplate != "off":
            actions["boilerplate"] = _ACTIONS[policy.boilerplate]
        if policy.min_characters is not None or policy.max_characters is not None:
            actions["length"] = "drop"
        return actions

    def _changes(self) -> dict[Step, Callable[[str], str]]:
        """Changes of texts that the policy makes, in their order."""
        return {step: change for step, change in _CHANGES.items() if self._actions().get(step) == "change"}

    def _applied(self, given: Row, place: str) -> Row | None:
        row = given
        for step, change in _CHANGES.items():
            if step in self._counts:
                row = self._count(step, given, place, row, self._changed(row, change))
        if "boilerplate" in self._counts:
            without = without_boilerplate(row, self._boilerplate, self._label_column)
            row = self._count("boilerplate", given, place, row, without)
        if "length" not in self._counts:
            return row
        text = text_of(row, self._label_column)
        low, high = self._policy.min_characters or 0, self._policy.max_characters
        if low <= len(text) and (high is None or len(text) <= high):
            return row
        count = self._counts["length"]
        count.rows += 1
        count.detail["too short" if len(text) < low else "too long"] += 1
        why = f"{len(text):,} characters"
        count.keep([Sample(row=row_id(given), place=place, before=masked(text), why=why)])
        return None

    def _changed(self, row: Row, change: Callable[[str], str]) -> Row:
        def visit(text: str, path: str, label: str) -> tuple[str, bool]:
            return (change(text) if is_written(path, self._label_column) else text), True

        return walk(row, visit, names_and_numbers=False)

    def _count(self, step: Step, given: Row, place: str, row: Row, changed: Row) -> Row:
        """Count what a step changes, or would change. Returns the row that stays."""
        after = text_of(changed, self._label_column) if changed != row or step == "mojibake" else ""
        is_lost = step == "mojibake" and is_damaged(after)
        if changed == row and not is_lost:
            return row
        count, applies = self._counts[step], self._actions()[step] == "change"
        count.rows += 1
        if step == "mojibake":
            count.detail["beyond repair" if is_lost else "repairable"] += 1
        before, after = _where_they_differ(text_of(row, self._label_column), after)
        count.keep(
            [
                Sample(
                    row=row_id(given),
                    place=place,
                    before=masked(before),
                    after=masked(after) if applies and changed != row else None,
                    why="bytes of it are lost" if is_lost else "",
                )
            ]
        )
        return changed if applies else row


def _where_they_differ(before: str, after: str) -> tuple[str, str]:
    """Both texts from a little before their first difference on."""
    at = next((i for i, (one, other) in enumerate(zip(before, after, strict=False)) if one != other), 0)
    start = max(0, at - 40)
    return before[start:], after[start:]
