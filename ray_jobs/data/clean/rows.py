"""Personal data in a row: the strings inside it, the policy of each kind, and the row that remains.

Knows no task and no column. JSON inside a string, such as a tool call's arguments, stays valid JSON. Reports and errors
hold no value that was found. Pure.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs.data.clean.finding import Detector, Finding
from ray_jobs.data.clean.personal_data import DETECTORS, find
from ray_jobs.data.clean.placeholders import Placeholders
from ray_jobs.errors import DataError
from ray_jobs.spec.personal_data import KINDS, Kind, PersonalDataPolicy

Row = dict[str, Any]

_MOST_LISTED = 100
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")
_WORDS = re.compile(r"[A-Za-z_-]{1,15}")
"""Names too plain and short to hold a value."""
_JSON_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*')
_BEFORE_VALUE = re.compile(r"\s*:")


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
        self._policy, self._detectors = policy, detectors
        self._redacted = {kind for kind in KINDS if policy.action(kind) == "redact"}
        if self._redacted and salt is None:
            raise ValueError(f"the policy redacts {', '.join(sorted(self._redacted))}, which needs a salt")
        self._placeholders = None if salt is None else Placeholders(salt)

    def clean(self, row: Row, number: int) -> CleanedRow:
        """The row under the policy, with everything found in it. The given row is not changed.

        Raises DataError for a row nested too deeply (some hundred levels).
        """
        findings: list[RowFinding] = []
        try:
            cleaned = self._value(row, "", "", number, findings)
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
        kinds = sorted({finding.kind for finding in refused}, key=KINDS.index)
        details = list(map(str, refused[:_MOST_LISTED]))
        details += [f"+{len(refused) - _MOST_LISTED} more"] if len(refused) > _MOST_LISTED else []
        rows = len({finding.row for finding in refused})
        return DataError(
            f"{rows} row(s) hold {', '.join(kinds)}, which the policy refuses: remove the values, or set "
            f"data.personal_data: {{{kinds[0]}: redact}} (or drop, or report)",
            details=details,
        )

    def _value(self, value: Any, path: str, label: str, number: int, findings: list[RowFinding]) -> Any:
        if isinstance(value, str):
            return self._string(value, path, label, number, findings)
        if isinstance(value, dict):
            cleaned: dict[str, Any] = {}
            spellings: Counter[str] = Counter()  # a redacted field name may occur twice; both fields stay
            for place, (key, inner) in enumerate(value.items()):
                before = len(findings)
                name = key if _WORDS.fullmatch(key) else self._text(key, f"{path}{{{place}}}", "", number, findings)
                # A name is part of a path only if it is surely no value.
                shown = key if len(findings) == before and _PLAIN_KEY.fullmatch(key) else f"{{{place}}}"
                spellings[name] += 1
                if spellings[name] > 1:
                    name = f"{name}({spellings[name]})"
                cleaned[name] = self._value(inner, f"{path}.{shown}" if path else shown, key, number, findings)
            return cleaned
        if isinstance(value, list | tuple):
            items: list[Any] = []
            for at, each in enumerate(value):
                items.append(self._value(each, f"{path}[{at}]", label, number, findings))
            return items
        if isinstance(value, int) and not isinstance(value, bool):  # it becomes text only if it is redacted
            text = str(value)
            cleaned_text = self._text(text, path, label, number, findings)
            return value if cleaned_text == text else cleaned_text
        return value

    def _string(self, text: str, path: str, label: str, number: int, findings: list[RowFinding]) -> str:
        if not _is_json(text):
            return self._text(text, path, label, number, findings)
        pieces, done = [], 0
        for literal, name, value in _json_values(text):
            cleaned = self._value(value, path, name or label, number, findings)
            if cleaned != value:
                escaped = "\\u" in literal[0]
                pieces += [text[done : literal.start()], json.dumps(cleaned, ensure_ascii=escaped)]
                done = literal.end()
        return "".join([*pieces, text[done:]])

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

    def raise_if_refused(self) -> None:
        """Raise DataError for rows that the policy refuses."""
        error = self._cleaner.refusal(self._refused)
        if error is not None:
            raise error

    @property
    def counts(self) -> dict[str, int]:
        """Rows with each kind that was found, in the order of `KINDS`."""
        return {kind: self._rows[kind] for kind in KINDS if self._rows[kind]}

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


def _is_json(text: str) -> bool:
    """True for the text of a JSON object or array."""
    if text.lstrip()[:1] not in {"{", "["}:
        return False
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _json_values(text: str) -> Iterator[tuple[re.Match[str], str, str | int | float]]:
    """(literal, name of its field, value) of each string and number in a JSON text; names of fields are strings too."""
    name = ""
    for literal in _JSON_LITERAL.finditer(text):
        value = json.loads(literal[0])
        is_name = literal[0].startswith('"') and _BEFORE_VALUE.match(text, literal.end()) is not None
        yield literal, "" if is_name else name, value
        if is_name:
            name = value
