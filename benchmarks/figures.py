"""Statistics of measurements: medians, ratios pair by pair, tables. Pure.

Does not know how anything is measured.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Pairs:
    """Two sides measured in turn: `ours[i]` and `theirs[i]` one after another, in one unit; higher is better."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.ours) == len(self.theirs), "a pair has two sides"
        assert self.ours, "nothing was measured"

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours over theirs, pair by pair, so that a slow period of the machine affects both sides."""
        return tuple(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def ratio(self) -> float:
        """Median of the pairs' ratios."""
        return median(self.ratios)

    @property
    def middle_half(self) -> tuple[float, float]:
        """Ratios between which half of the pairs lie; on a shared machine single pairs are far off."""
        low, _, high = quantiles(self.ratios, n=4, method="inclusive") if len(self.ratios) > 1 else self.ratios * 3
        return low, high


def largest_gap(losses: Sequence[float], others: Sequence[float]) -> float:
    """Largest relative difference of two loss curves over their common steps."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, others, strict=False))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of a median, by 2,000 bootstrap samples."""
    dice = random.Random(0)
    medians = sorted(median(dice.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[1949]


def quantile(values: Sequence[float], share: float) -> float:
    """Quantile of the values, interpolated."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def verdict(ratio: float, goal: float) -> str:
    """Whether a ratio reaches its goal, as text."""
    return f"goal ≥ {goal:g}: {'reached' if ratio >= goal else 'not reached'}"


def within(value: float, goal: float, unit: str) -> str:
    """Whether a value stays within its goal, as text."""
    return f"goal ≤ {goal:g} {unit}: {'reached' if value <= goal else 'not reached'}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def number(value: float) -> str:
    """The number with three significant digits."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def gibibytes(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
