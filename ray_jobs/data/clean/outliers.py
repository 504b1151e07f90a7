"""Outliers: rows whose text differs from the others in length or in what it consists of. Pure.

Each feature is compared with the median of all rows in robust standard deviations (1.4826 times the median absolute
deviation). A floor keeps features that hardly vary from making outliers of small differences.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.clean.ngrams import mix

FEATURES = ("length", "letters", "digits", "symbols", "repetition")
MOST_DEVIATIONS = 6.0
FEWEST_ROWS = 50
"""Fewer rows have no outliers: their median says too little."""
_FLOOR = np.array([0.5, 0.05, 0.05, 0.05, 0.05])
"""Least standard deviation: half a doubling of the length, 5 points of a share."""
_SEARCHED_CHARACTERS = 20_000
_GRAM = 8
_VISIBLE, _LETTER, _DIGIT, _UNKNOWN = 1, 2, 4, 255
_FACTORS = mix(np.arange(_GRAM, dtype=np.uint64)) | np.uint64(1)
"""Multipliers of the characters of a piece, in its hash."""
_HASH_BITS = 44
"""Bits of a piece's hash; the number of its text is above them."""


def features(texts: Sequence[str]) -> NDArray[np.float32]:
    """(rows, 5): log2 of the length; shares of letters, digits and symbols; share of repeated pieces of 8 characters.

    Of batches, the arrays can be concatenated.
    """
    heads = [text[:_SEARCHED_CHARACTERS] for text in texts]
    codes = np.frombuffer("".join(heads).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    sizes = np.array([len(head) for head in heads], dtype=np.int64)
    text_of = np.repeat(np.arange(len(heads)), sizes)
    kinds = _kinds(codes)
    letters, digits, visible = (_counts(text_of[kinds & bit != 0], len(heads)) for bit in (_LETTER, _DIGIT, _VISIBLE))
    least_one = np.maximum(visible, 1)
    found = np.empty((len(heads), len(FEATURES)), dtype=np.float32)
    found[:, 0] = np.log2(np.array([len(text) + 1 for text in texts], dtype=np.float64))
    for at, count in enumerate((letters, digits, visible - letters - digits), 1):
        found[:, at] = count / least_one
    found[:, 4] = _repetition(codes, sizes, text_of)
    return found


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


def _kinds(codes: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Whether each character is visible, a letter, a digit."""
    table = _table()
    for code in np.unique(codes[table[codes] == _UNKNOWN]).tolist():
        character = chr(code)
        visible = _VISIBLE * (not character.isspace())
        table[code] = visible | _LETTER * character.isalpha() | _DIGIT * character.isdigit()
    return table[codes]


@cache
def _table() -> NDArray[np.uint8]:
    """The kind of each character that was seen so far."""
    return np.full(sys.maxunicode + 1, _UNKNOWN, dtype=np.uint8)


def _repetition(codes: NDArray[np.uint32], sizes: NDArray[np.int64], text_of: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the pieces of `_GRAM` characters of each text that stand in it before."""
    pieces = np.maximum(sizes - _GRAM + 1, 0)
    if not pieces.any():
        return np.zeros(len(sizes))
    count = len(codes) - _GRAM + 1
    wide, hashed = codes.astype(np.uint64), np.zeros(count, dtype=np.uint64)
    for shift, factor in enumerate(_FACTORS):
        hashed += wide[shift : shift + count] * factor
    complete = text_of[:count] == text_of[_GRAM - 1 :]
    text_above = text_of[:count][complete].astype(np.uint64) << np.uint64(_HASH_BITS)
    ordered = np.sort(text_above | mix(hashed[complete]) >> np.uint64(64 - _HASH_BITS))
    is_first = np.append(True, ordered[1:] != ordered[:-1])
    distinct = _counts((ordered[is_first] >> np.uint64(_HASH_BITS)).astype(np.int64), len(sizes))
    return np.where(pieces > 0, 1 - distinct / np.maximum(pieces, 1), 0.0)


def _counts(numbers: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    return np.bincount(numbers, minlength=length)
