"""Rows as arrays: digests, ids, and numbers for what rows share. Millions of rows take sorts and no dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Digests = NDArray[np.void]
"""A digest of 32 bytes for each row."""
Ids = NDArray[np.uint64]
"""The first 8 bytes of each row's digest as it was read, big-endian."""


def digests_of(values: Sequence[bytes]) -> Digests:
    """Digests as an array."""
    return np.frombuffer(b"".join(values), dtype="V32")


def short_keys(digests: Digests) -> NDArray[np.uint64]:
    """The first eight bytes of digests, as numbers."""
    return np.ascontiguousarray(digests).view(">u8")[:: digests.itemsize // 8].astype(np.uint64)


def numbered(values: NDArray[Any]) -> Ints:
    """A number from 0 on for each value, in the order of the values."""
    return np.asarray(np.unique(values, return_inverse=True)[1].reshape(-1), dtype=np.int64)


def numbers_of(labels: Sequence[str | None]) -> Ints:
    """A number from 0 on for each label, in the order of the labels; None counts as empty."""
    places = {label: place for place, label in enumerate(sorted({label or "" for label in labels}))}
    return np.fromiter((places[label or ""] for label in labels), dtype=np.int64, count=len(labels))


def distinct_in(groups: Ints, values: Ints) -> Ints:
    """How many different values each group has, by its number. Both have numbers from 0 on."""
    most = int(values.max(initial=0)) + 1
    return np.bincount(np.unique(groups * most + values) // most)
