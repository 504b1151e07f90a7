"""What is wrong in files of rows, and what was done to them: gathered, so that one run shows all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ray_jobs.errors import DataError

_MOST_NOTICES = 100


@dataclass
class Findings:
    """Problems and notices."""

    details: list[str] = field(default_factory=list)
    count: int = 0
    most: int = 100
    """Most findings listed one by one; the rest are counted."""
    notices: list[str] = field(default_factory=list)
    """What was guessed, converted, left out or not used, each once; the first hundred."""

    def add(self, where: str, reason: str) -> None:
        self.count += 1
        if len(self.details) < self.most:
            self.details.append(f"{where}: {reason if len(reason) <= 500 else reason[:500] + '…'}")

    def note(self, where: str, text: str) -> None:
        self._note(f"{where}: {text}")

    def _note(self, notice: str) -> None:
        if notice not in self.notices and len(self.notices) < _MOST_NOTICES:
            self.notices.append(notice)

    def extend(self, other: Findings) -> None:
        """Add what another part found."""
        self.count += other.count
        self.details += other.details[: self.most - len(self.details)]
        for notice in other.notices:
            self._note(notice)

    @property
    def counted(self) -> str:
        """`1 problem`, `3 problems`."""
        return f"{self.count} problem{'' if self.count == 1 else 's'}"

    @property
    def listed(self) -> list[str]:
        """The details, and the number of the others."""
        return [*self.details, *([f"+{self.count - len(self.details)} more"] if self.count > len(self.details) else [])]

    def raise_if_any(self, sources: Sequence[str]) -> None:
        """Raises DataError with everything that was found."""
        if not self.count:
            return
        raise DataError(f"{self.counted} in {' and '.join(sources)}", details=self.listed)
