"""The split into training and held-out rows, by content alone. Pure: digests in, decisions out.

A row's side depends on its own content and the fraction, not on its place or its neighbours: equal rows fall on the
same side, another order gives the same split, and a data set that grows never moves a held-out row into training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set

from ray_jobs.errors import DataError


def row_digest(line: str) -> bytes:
    """SHA-256 of a row's canonical line."""
    return hashlib.sha256(line.encode()).digest()


def choose(digests: Sequence[bytes], max_rows: int | None) -> list[int]:
    """Rows to use: all, or the `max_rows` with the smallest salted digests, in file order."""
    if max_rows is None or max_rows >= len(digests):
        return list(range(len(digests)))
    # Salted, so that the choice is independent of the side; else a small choice would be held out entirely.
    ranked = sorted(range(len(digests)), key=lambda i: (hashlib.sha256(b"choose" + digests[i]).digest(), i))
    return sorted(ranked[:max_rows])


def is_held_out(digest: bytes, fraction: float) -> bool:
    """True for a row of the share `fraction` that is set aside."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split(digests: Sequence[bytes], chosen: Sequence[int], fraction: float) -> tuple[list[int], list[int]]:
    """(training rows, held-out rows) of the chosen rows. Raises DataError where either side would be empty."""
    train = [i for i in chosen if not is_held_out(digests[i], fraction)]
    held_out = [i for i in chosen if is_held_out(digests[i], fraction)]
    distinct = len({digests[i] for i in chosen})
    if not held_out:
        raise DataError(
            f"held_out_fraction {fraction} of {distinct} distinct rows sets none aside: add rows, raise "
            "data.held_out_fraction, or name held-out rows in data.held_out"
        )
    if not train:
        raise DataError(
            f"held_out_fraction {fraction} of {distinct} distinct rows leaves none to train on: add rows, or lower "
            "data.held_out_fraction"
        )
    return train, held_out


def without_leak(digests: Sequence[bytes], chosen: Sequence[int], held_out: Set[bytes]) -> list[int]:
    """Chosen rows that are not held out as well. Raises DataError where none is left."""
    kept = [i for i in chosen if digests[i] not in held_out]
    if not kept:
        raise DataError(
            f"all {len(chosen)} training rows are held out too, so none is left to train on: name other rows in "
            "data.held_out, or none"
        )
    return kept
