"""Personal data in a row: the policy of each kind, and the row that remains.

Knows no task and no column. Reports and errors hold no value that was found. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ray_jobs.data.clean.finding import Detector, Finding
from ray_jobs.data.clean.names import find_people
from ray_jobs.data.clean.personal_data import DETECTORS, find
from ray_jobs.data.clean.placeholders import Placeholders
from ray_jobs.data.clean.walker import Row, walk
from ray_jobs.data.preparation import StepReport
from ray_jobs.errors import DataError
from ray_jobs.spec.personal_data import ALL_KINDS, Kind, PersonalDataPolicy

_MOST_LISTED = 100


@dataclass(frozen=True)
class RowFinding:
    """A finding in a row. It does not hold the value."""

    kind: Kind
    row: int
    """Number of the row in its file, as the caller counts."""
    path: str
    """Where in the row, such as `messages[2].content`."""
    length: int
    """Characters of the value."""

    def __str__(self) -> str:
        return f"row {self.row}: {self.path}: {self.kind} ({self.length} characters)"


@dataclass(frozen=True)
class CleanedRow:
    """A row after the policy."""

    row: Row | None
    """None: a kind of the row is dropped or refused."""
    findings: tuple[RowFinding, ...]


class RowCleaner:
    """Applies one policy to the rows of a dataset.

    `salt` is the dataset's secret for placeholders (see `placeholders`); without it a policy that redacts is a
    ValueError. `detectors` may have more than the built-in ones.
    """

    def __init__(
        self, policy: PersonalDataPolicy, salt: bytes | None = None, detectors: Sequence[Detector] = DETECTORS
    ) -> None:
        self._policy = policy
        self._detectors = detectors if policy.person == "off" else (*detectors, find_people)
        self._redacted = {kind for kind in ALL_KINDS if policy.action(kind) == "redact"}
        if self._redacted and salt is None:
            raise ValueError(f"the policy redacts {', '.join(sorted(self._redacted))}, which needs a salt")
        self._placeholders = None if salt is None else Placeholders(salt)

    def clean(self, row: Row, number: int) -> CleanedRow:
        """The row under the policy, with everything found in it. The given row is not changed.

        Raises DataError for a row nested too deeply (some hundred levels).
        """
        findings: list[RowFinding] = []

        def visit(text: str, path: str, label: str) -> tuple[str, bool]:
            before = len(findings)
            return self._text(text, path, label, number, findings), len(findings) == before

        try:
            cleaned = walk(row, visit, names_and_numbers=True)
        except RecursionError:
            raise DataError(f"row {number} is nested too deeply to be searched for personal data; flatten it") from None
        kept = all(self._policy.action(finding.kind) in {"report", "redact"} for finding in findings)
        return CleanedRow(cleaned if kept else None, tuple(findings))

    def refuses(self, kind: Kind) -> bool:
        """Whether the policy refuses data with this kind."""
        return self._policy.action(kind) == "refuse"

    def refusal(self, findings: Iterable[RowFinding]) -> DataError | None:
        """The error for a dataset with these findings; None if the policy refuses none of them."""
        refused = [finding for finding in findings if self.refuses(finding.kind)]
        if not refused:
            return None
        kinds = sorted({finding.kind for finding in refused}, key=ALL_KINDS.index)
        details = list(map(str, refused[:_MOST_LISTED]))
        details += [f"+{len(refused) - _MOST_LISTED} more"] if len(refused) > _MOST_LISTED else []
        rows = len({finding.row for finding in refused})
        return DataError(
            f"{rows} row(s) hold {', '.join(kinds)}, which the policy refuses: remove the values, or set "
            f"data.personal_data: {{{kinds[0]}: redact}} (or drop, or report)",
            details=details,
        )

    def _text(self, text: str, path: str, label: str, number: int, findings: list[RowFinding]) -> str:
        found = find(text, label, self._detectors)
        findings += [RowFinding(each.kind, number, path, each.end - each.start) for each in found]
        return self._redact(text, found)

    def _redact(self, text: str, found: Iterable[Finding]) -> str:
        pieces, done = [], 0
        for kind, start, end in found:
            if kind in self._redacted and self._placeholders is not None:
                pieces += [text[done:start], self._placeholders.of(kind, text[start:end])]
                done = end
        return "".join([*pieces, text[done:]])


class Cleaning:
    """One pass of a policy over rows: the rows that remain, and what was found in them.

    `salt`: as `RowCleaner` takes it.
    """

    def __init__(self, policy: PersonalDataPolicy | None = None, salt: bytes | None = None) -> None:
        self._cleaner = RowCleaner(policy or PersonalDataPolicy(), salt)
        self._rows: Counter[Kind] = Counter()
        self._any = self._dropped = self._redacted = 0
        self._refused: list[RowFinding] = []

    def clean(self, row: Row, number: int) -> Row | None:
        """The row under the policy. None: it is left out, or refused. Raises DataError for one nested too deeply."""
        cleaned = self._cleaner.clean(row, number)
        kinds = {finding.kind for finding in cleaned.findings}
        self._rows.update(kinds)
        self._any += bool(kinds)
        self._dropped += cleaned.row is None
        self._redacted += cleaned.row is not None and cleaned.row != row
        self._refused += [finding for finding in cleaned.findings if self._cleaner.refuses(finding.kind)]
        return cleaned.row

    def merge(self, other: Cleaning) -> None:
        """Add what another part found."""
        self._rows.update(other._rows)
        self._any += other._any
        self._dropped += other._dropped
        self._redacted += other._redacted
        self._refused += other._refused

    def raise_if_refused(self) -> None:
        """Raise DataError for rows that the policy refuses."""
        error = self._cleaner.refusal(self._refused)
        if error is not None:
            raise error

    @property
    def counts(self) -> dict[str, int]:
        """Rows with each kind that was found, in the order of `ALL_KINDS`."""
        return {kind: self._rows[kind] for kind in ALL_KINDS if self._rows[kind]}

    def report(self) -> StepReport:
        """What the policy did, without a sample: the rows hold values."""
        action: Literal["drop", "change", "report"] = (
            "drop" if self._dropped else "change" if self._redacted else "report"
        )
        return StepReport(step="personal_data", action=action, rows=self._any, detail=self.counts)

    def notes(self) -> list[str]:
        """A sentence for the reader of the report, if anything was found."""
        if not self._any:
            return []
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.counts.items())
        done = [
            *([f"{self._redacted} redacted"] if self._redacted else []),
            *([f"{self._dropped} left out"] if self._dropped else []),
        ]
        what = f" ({', '.join(done)})" if done else ", which a model can repeat"
        return [f"{self._any} row(s) seem to hold personal data or secrets{what}: {kinds}"]
