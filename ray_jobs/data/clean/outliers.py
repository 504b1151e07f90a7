"""Outliers: rows whose text differs from the others in length or in what it consists of. Pure.

Each feature is compared with the median of all rows in robust standard deviations (1.4826 times the median absolute
deviation). A floor keeps features that hardly vary from making outliers of small differences.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FEATURES = ("length", "letters", "digits", "symbols", "repetition")
MOST_DEVIATIONS = 6.0
FEWEST_ROWS = 50
"""Fewer rows have no outliers: their median says too little."""
_FLOOR = np.array([0.5, 0.05, 0.05, 0.05, 0.05])
"""Least standard deviation: half a doubling of the length, 5 points of a share."""
_SEARCHED_CHARACTERS = 20_000
_GRAM = 8


def features(texts: Sequence[str]) -> NDArray[np.float32]:
    """(rows, 5): log2 of the length; shares of letters, digits and symbols; share of repeated pieces of 8 characters.

    Of batches, the arrays can be concatenated.
    """
    return np.array([_features(text) for text in texts], dtype=np.float32).reshape(len(texts), len(FEATURES))


def outliers(found: NDArray[np.float32]) -> dict[int, str]:
    """Why each outlier is one, such as `length 8.1 deviations above the median`, by the row's number."""
    if len(found) < FEWEST_ROWS:
        return {}
    values = found.astype(np.float64)
    median = np.median(values, axis=0)
    deviation = np.maximum(1.4826 * np.median(np.abs(values - median), axis=0), _FLOOR)
    scores = (values - median) / deviation
    scores[:, 1] = np.minimum(scores[:, 1], 0.0)  # many letters are no fault, few are
    scores[:, 2:] = np.maximum(scores[:, 2:], 0.0)
    worst = np.argmax(np.abs(scores), axis=1)
    score = scores[np.arange(len(scores)), worst]
    return {
        row: f"{FEATURES[worst[row]]} {abs(score[row]):.1f} deviations {'above' if score[row] > 0 else 'below'} the "
        "median"
        for row in np.flatnonzero(np.abs(score) > MOST_DEVIATIONS).tolist()
    }


def _features(text: str) -> tuple[float, ...]:
    head = text[:_SEARCHED_CHARACTERS]
    visible = [character for character in head if not character.isspace()]
    count = max(len(visible), 1)
    letters = sum(map(str.isalpha, visible))
    digits = sum(map(str.isdigit, visible))
    pieces = Counter(head[at : at + _GRAM] for at in range(0, len(head) - _GRAM + 1))
    repeated = 1 - len(pieces) / pieces.total() if pieces else 0.0
    return (
        math.log2(len(text) + 1),
        letters / count,
        digits / count,
        (len(visible) - letters - digits) / count,
        repeated,
    )
