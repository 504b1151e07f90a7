"""Exact duplicates and conflicts, from digests alone. Pure."""

from __future__ import annotations

import numpy as np

from ray_jobs.data.row_arrays import Digests, Ids, Ints, distinct_in, numbered


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
    of_input = numbered(inputs[rows])
    counts = distinct_in(of_input, numbered(answers[rows]))[of_input]
    several = np.flatnonzero(counts > 1)
    return dict(zip(rows[several].tolist(), counts[several].tolist(), strict=True))
