"""How many test rows a comparison of two models needs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

LEAST_ROWS = 20
"""Test rows that a comparison needs."""
LEAST_ROWS_A_LABEL = 5
"""Test rows that at least two labels need."""
_TEST_SHARE = 0.1
"""Share of the test side by default."""


def lacking_evidence(rows: int, labels: Sequence[str] | None) -> str:
    """Why these test rows cannot tell two models apart; empty where they can. `labels`: None for a task without."""
    if rows < LEAST_ROWS:
        needed = f"about {round(LEAST_ROWS / _TEST_SHARE)} rows in all"
        return (
            f"the test side has {counted(rows)}, and a comparison needs {LEAST_ROWS}: bring {needed}, or set data.test"
        )
    if labels is not None:
        enough = [label for label, count in Counter(labels).items() if count >= LEAST_ROWS_A_LABEL]
        if len(enough) < 2:
            return (
                f"only {len(enough)} label{'s' if len(enough) != 1 else ''} of the test side has {LEAST_ROWS_A_LABEL} "
                "rows or more, and a comparison needs two: bring more rows of the others, or set data.test"
            )
    return ""


def counted(rows: int) -> str:
    """Such as `1 row`."""
    return f"{rows:,} row{'s' if rows != 1 else ''}"
