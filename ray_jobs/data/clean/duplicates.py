"""Exact duplicates and conflicts, from digests alone. Pure.

Rows are numbers into arrays, so that millions of them take sorts and no dictionaries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Digests = NDArray[np.void]
"""A digest of 32 bytes for each row."""
Ids = NDArray[np.uint64]
"""The first 8 bytes of each row's digest as it was read, big-endian."""


def digests_of(values: list[bytes]) -> Digests:
    """Digests as an array."""
    return np.frombuffer(b"".join(values), dtype="V32")


def numbered(values: NDArray[np.generic]) -> Ints:
    """A number for each value, the same for equal ones."""
    return np.asarray(np.unique(values, return_inverse=True)[1].reshape(-1), dtype=np.int64)


def numbers_of(labels: Sequence[str | None]) -> Ints:
    """A number for each label, the same for equal ones."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return np.fromiter((numbers[label] for label in labels), dtype=np.int64, count=len(labels))


def repeated(digests: Digests, ids: Ids, rows: Ints) -> dict[int, int]:
    """For each row that equals another, the one that stays: that with the smallest id. `digests`: of whole rows."""
    if not len(rows):
        return {}
    group = numbered(digests[rows])
    order = np.lexsort((rows, ids[rows], group))
    ordered, of_group = rows[order], group[order]
    is_first = np.append(True, of_group[1:] != of_group[:-1])
    stays = ordered[np.maximum.accumulate(np.where(is_first, np.arange(len(ordered)), 0))]
    return dict(zip(ordered[~is_first].tolist(), stays[~is_first].tolist(), strict=True))


def conflicting(inputs: Digests, answers: Digests | Ints, rows: Ints) -> dict[int, int]:
    """For each row whose input has another label or answer too, how many different ones the input has.

    `inputs`: digests of the inputs; `answers`: numbers of the labels, or digests of whole rows.
    """
    if not len(rows):
        return {}
    of_input, answer = numbered(inputs[rows]), numbered(answers[rows])
    distinct = np.unique(of_input * (int(answer.max()) + 1) + answer) // (int(answer.max()) + 1)
    counts = np.bincount(distinct)[of_input]
    several = np.flatnonzero(counts > 1)
    return dict(zip(rows[several].tolist(), counts[several].tolist(), strict=True))
