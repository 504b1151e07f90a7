"""Percentiles of measured times. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable


def p95(values: Iterable[float]) -> float:
    """The 95th percentile by nearest rank: at most one of twenty values is larger. ValueError without values."""
    ranked = sorted(values)
    if not ranked:
        raise ValueError("no values")
    return ranked[math.ceil(0.95 * len(ranked)) - 1]
