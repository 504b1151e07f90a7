"""Two models on the same rows: the difference of their losses, and how often chance alone would give it. Pure.

The rows are drawn again with replacement, each with the scores of both models (the paired bootstrap; Efron and
Tibshirani 1993, chapter 16; Koehn 2004 for language models). `scipy.stats.bootstrap` draws. Of few rows the percentiles
are too narrow, and are widened as in Hesterberg 2015 (arXiv:1411.5279, the expanded percentile interval).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ray_jobs.training.scoring import RowScores

RESAMPLES = 5000
CONFIDENCE = 0.95
"""Share of cases in which an interval holds the truth."""
_DRAWS_AT_ONCE = 2_000_000
_SEED = 20_261

Interval = tuple[float, float]


class Comparison(BaseModel, frozen=True):
    """The tuned model beside another on the same rows."""

    against: str
    """In a sentence: `the base model`."""
    difference: float
    """Loss of the tuned model less that of the other, in nats a label: below 0 is better."""
    interval: Interval
    """95% interval of the difference."""
    chance: float
    """Share of the redrawn sets of rows in which the tuned model is not better, widened for few rows."""

    def interval_as_text(self) -> str:
        """Such as `-0.3170 to -0.1890`."""
        return "{:+.4f} to {:+.4f}".format(*self.interval)


def compare(tuned: RowScores, other: RowScores, against: str) -> Comparison:
    """The tuned model beside another; of each, the rows in the same order."""
    samples, rows = [tuned.losses_R, tuned.counts_R, other.losses_R, other.counts_R], len(tuned.losses_R)
    drawn = _redrawn(samples, _difference)
    return Comparison(
        against=against,
        difference=float(_difference(*samples)),
        interval=_interval(drawn, rows),
        chance=_widened(float(np.mean(drawn >= 0)), rows),
    )


def intervals(scores: RowScores, metric: str) -> dict[str, Interval]:
    """95% intervals of the loss and of the share of right labels, which is named `metric`."""
    sums = {"loss": scores.losses_R, metric: scores.correct_R}
    drawn = {name: _redrawn([values, scores.counts_R], _ratio) for name, values in sums.items()}
    return {name: _interval(found, len(scores.losses_R)) for name, found in drawn.items()}


def _ratio(values: NDArray[np.float64], counts: NDArray[np.float64], *, axis: int = -1) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.sum(axis) / np.maximum(counts.sum(axis), 1)
    return found


def _difference(
    losses: NDArray[np.float64],
    counts: NDArray[np.float64],
    others: NDArray[np.float64],
    other_counts: NDArray[np.float64],
    *,
    axis: int = -1,
) -> NDArray[np.float64]:
    return _ratio(losses, counts, axis=axis) - _ratio(others, other_counts, axis=axis)


def _redrawn(samples: list[NDArray[np.float64]], statistic: Callable[..., NDArray[np.float64]]) -> NDArray[np.float64]:
    """The statistic of each redrawn set of rows; of one row or none, of the rows themselves."""
    from scipy.stats import bootstrap

    if len(samples[0]) < 2:
        return np.asarray([statistic(*samples)])
    found = bootstrap(
        samples, statistic, paired=True, vectorized=True, method="percentile", n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE, batch=max(1, _DRAWS_AT_ONCE // len(samples[0])), rng=np.random.default_rng(_SEED),
    )  # fmt: skip
    drawn: NDArray[np.float64] = found.bootstrap_distribution
    return drawn


def _interval(drawn: NDArray[np.float64], rows: int) -> Interval:
    from scipy.stats import norm, t

    if rows < 2:
        return float(drawn.min()), float(drawn.max())
    tail = float(norm.cdf(math.sqrt(rows / (rows - 1)) * t.ppf((1 - CONFIDENCE) / 2, rows - 1)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _widened(share: float, rows: int) -> float:
    """A share of redrawn sets as the probability that it stands for with this number of rows."""
    from scipy.stats import norm, t

    return share if rows < 2 else float(t.cdf(norm.ppf(share) / math.sqrt(rows / (rows - 1)), rows - 1))
