"""The split into training, validation and test rows. Pure: digests, labels and groups in, sides out.

Rows that belong together (one input, near duplicates, one user) are a group and have one side. The sides follow from
the set of rows and from the sides of the version before: the order of the rows changes nothing. Groups are given out
label by label, largest first, to the side that lacks most rows, so that shares and labels hold.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.row_arrays import Digests, Ints, numbered, numbers_of
from ray_jobs.errors import DataError
from ray_jobs.spec.split import Shares

SideName = Literal["train", "validation", "test"]
SIDE_COLUMN = "split"
"""A column in which a row names its own side."""
SIDES: tuple[SideName, ...] = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
NO_SIDE = -1
"""A row without a side yet."""
LEAKED = -2
"""A row that is left out, since a row of its group was given to validation or test."""
STRADDLING = -3
"""A new row that is left out, since its group has old rows on several sides."""
FEWEST = 3
"""Groups of a label from which on it has rows on every side."""
_NAMES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev", "held_out"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), TEST),
}


def row_digest(line: str) -> bytes:
    """SHA-256 of a row's canonical line."""
    return hashlib.sha256(line.encode()).digest()


def input_digest(text: str) -> bytes:
    """SHA-256 of a row's input, without differences of width, case and white space: a model would not see them as
    another question."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(plain.encode()).digest()


def side_named(side: object) -> int | None:
    """The side that a value of the column `split` names. None: it names none."""
    return _NAMES.get(side.strip().casefold()) if isinstance(side, str) else None


def choose(digests: Digests, max_rows: int | None) -> Ints:
    """Rows to use: all, or the `max_rows` with the smallest salted digests, in the order given."""
    if max_rows is None or max_rows >= len(digests):
        return np.arange(len(digests))
    salted = (hashlib.sha256(b"choose" + digest).digest() for digest in digests.tolist())
    ranked = nsmallest(max_rows, ((digest, i) for i, digest in enumerate(salted)))
    return np.array(sorted(i for _, i in ranked), dtype=np.int64)


def copies(digests: Digests, weights: NDArray[np.float64]) -> Ints:
    """How often each row is trained: its weight, rounded up or down by its digest, so that the mean is the weight."""
    whole = np.floor(weights)
    salted = [hashlib.sha256(b"copies" + digest).digest()[:8] for digest in digests.tolist()]
    chance = np.frombuffer(b"".join(salted), dtype=">u8").astype(np.float64) / 2.0**64
    return np.asarray(whole + (chance < weights - whole), dtype=np.int64)


def joined(groupings: Sequence[Ints]) -> Ints:
    """Rows that share a group in any of the groupings are one group: its number for each row."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, offset, links = len(groupings[0]), len(groupings[0]), list[Ints]()
    for grouping in groupings:  # each group is a node of its own, linked to its rows
        links.append(numbered(grouping) + offset)
        offset += rows
    first, second = np.tile(np.arange(rows), len(links)), np.concatenate(links)
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(offset, offset))
    return np.asarray(connected_components(graph, directed=False)[1][:rows], dtype=np.int64)


@dataclass(frozen=True)
class Rows:
    """What the split reads of the rows, an entry each."""

    keys: NDArray[np.uint64]
    """Keys of the inputs; only their order is used."""
    groups: Ints
    labels: Sequence[str | None]
    given: Ints
    """Side by the row's file or its column `split`; NO_SIDE: none."""
    before: Ints
    """Side in the version before; NO_SIDE: a new row."""
    times: NDArray[np.float64] | None = None
    """None: the sides are random."""


@dataclass(frozen=True)
class Split:
    """The side of each row."""

    sides: Ints
    """TRAIN, VALIDATION, TEST, LEAKED or STRADDLING."""
    shared: bool = False
    """Whether the validation rows are tested, too: there were too few rows for both."""

    def rows(self, side: int) -> Ints:
        """Numbers of the rows of a side, or of those left out."""
        return np.flatnonzero(self.sides == side)


def split(rows: Rows, shares: Shares) -> Split:
    """`assign`, where every side has rows. Raises DataError where none can be set aside, or none is left to train."""
    sides = assign(rows, shares)
    counts = [int(np.sum(sides == side)) for side in range(len(SIDES))]
    if not counts[TRAIN]:
        raise DataError(
            f"the inputs of all {int(np.sum(rows.given < VALIDATION))} training rows are held out too, so none is left "
            "to train on: hold other rows out"
        )
    given = [side for side in (VALIDATION, TEST) if np.any(rows.given == side)]
    for side in given:
        if not counts[side]:
            raise DataError(
                f"all {int(np.sum(rows.given == side))} rows for {SIDES[side]} have inputs of test rows, so none is "
                "left: name other rows"
            )
    if not counts[VALIDATION] and not counts[TEST]:
        labels = len(set(rows.labels))
        raise DataError(
            f"the {len(sides)} rows have one input{'' if labels == 1 else ' a label'}, so that none can be held out to "
            "compare with: add rows, or name rows in data.held_out"
        )
    if counts[VALIDATION] and counts[TEST]:
        return Split(sides)
    return Split(np.where(sides == TEST, VALIDATION, sides), shared=True)


def assign(rows: Rows, shares: Shares) -> Ints:
    """The side of each row, LEAKED or STRADDLING. A share of 0: no row of the side is chosen.

    Every label has a training row, and one with FEWEST groups or more a row on every side. Raises DataError for no
    rows.
    """
    if not len(rows.keys):
        raise DataError("no row is left to train on: every one is left out; the job's events say by what")
    group = numbered(rows.groups)
    count = int(group.max()) + 1
    given, oldest, newest = (np.full(count, end, dtype=np.int64) for end in (NO_SIDE, TEST + 1, NO_SIDE))
    np.maximum.at(given, group, rows.given)
    old = rows.before >= 0
    np.minimum.at(oldest, group[old], rows.before[old])
    np.maximum.at(newest, group[old], rows.before[old])

    sides = np.full(len(group), NO_SIDE, dtype=np.int64)
    of_group = given[group]
    sides[of_group >= 0] = np.where(of_group == rows.given, of_group, LEAKED)[of_group >= 0]
    known = (of_group == NO_SIDE) & (newest[group] >= 0)
    one_side = oldest[group] == newest[group]
    kept = np.where(one_side, newest[group], np.where(old, rows.before, STRADDLING))
    sides[known] = kept[known]

    free = np.flatnonzero(np.bincount(group[sides == NO_SIDE], minlength=count))
    chosen = _Deal(rows, group, sides, count).deal(free, shares)
    return np.where(sides == NO_SIDE, chosen[group], sides)


class _Deal:
    """Gives groups without a side to the sides."""

    def __init__(self, rows: Rows, group: Ints, sides: Ints, count: int) -> None:
        codes = numbers_of(rows.labels)
        sizes = np.bincount(group, minlength=count)
        order = np.lexsort((codes, rows.keys))[::-1]
        self._key, label = np.zeros(count, dtype=np.uint64), np.zeros(count, dtype=np.int64)
        self._key[group[order]] = rows.keys[order]  # the last one written is the smallest
        label[group[order]] = codes[order]
        self._time = None
        if rows.times is not None:
            self._time = np.full(count, -np.inf)
            np.maximum.at(self._time, group, rows.times)
        held, groups = np.zeros((2, int(codes.max()) + 1, len(SIDES)), dtype=np.int64)
        placed = sides >= 0
        np.add.at(held, (codes[placed], sides[placed]), 1)
        pairs = np.unique(np.stack([group[placed], sides[placed]]), axis=1)
        np.add.at(groups, (label[pairs[0]], pairs[1]), 1)
        # Lists: a loop over millions of groups reads them one by one.
        self._sizes, self._label, self._chosen = sizes.tolist(), label.tolist(), [NO_SIDE] * count
        self._rows, self._groups = held.tolist(), groups.tolist()
        """Rows, and groups, of each label on each side."""
        self._whole = held.sum(axis=0).tolist()
        """Rows of each side."""

    def deal(self, free: Ints, shares: Shares) -> Ints:
        """The side of each group in `free`; NO_SIDE for the others."""
        sides = [side for side in range(len(SIDES)) if shares[side] > 0]
        sizes, labels = np.array(self._sizes), np.array(self._label)
        if self._time is not None:
            self._by_time(free[np.lexsort((self._key[free], self._time[free]))].tolist(), sides, shares)
        else:
            ordered = free[np.lexsort((self._key[free], -sizes[free], labels[free]))]
            ends = np.flatnonzero(np.diff(labels[ordered])) + 1
            for part in np.split(ordered, ends) if len(ordered) else ():
                self._by_label(part.tolist(), sides, shares)
        self._fill_empty(free[np.argsort(self._key[free], kind="stable")].tolist(), sides)
        return np.array(self._chosen)

    def _by_label(self, groups: list[int], sides: list[int], shares: Shares) -> None:
        """Give out the groups of one label, the largest first."""
        label = self._label[groups[0]]
        held, rows, whole = self._groups[label], self._rows[label], self._whole
        total = sum(rows) + sum(self._sizes[each] for each in groups)
        everywhere = len(groups) + sum(held) >= min(FEWEST, len(sides))
        if not held[TRAIN]:
            self._give(groups.pop(0), TRAIN)
        if everywhere:
            for side in sides:
                if not held[side] and groups:
                    self._give(groups.pop(), side)  # a small one
        wanted = [share * total for share in shares]
        count = sum(whole)
        for each in groups:
            count += self._sizes[each]
            best, most = sides[0], (-math.inf, -math.inf)
            for side in sides:
                lacks = (wanted[side] - rows[side], shares[side] * count - whole[side])
                if lacks > most:
                    best, most = side, lacks
            self._give(each, best)

    def _by_time(self, groups: list[int], sides: list[int], shares: Shares) -> None:
        """The oldest groups are trained, the newest tested."""
        total = sum(self._whole) + sum(self._sizes[each] for each in groups)
        lacks = {side: shares[side] * total - self._whole[side] for side in sides}
        later, side = iter(sides[1:]), sides[0]
        for each in groups:
            while lacks[side] < self._sizes[each] / 2 and (following := next(later, None)) is not None:
                side = following
            self._give(each, side)
            lacks[side] -= self._sizes[each]

    def _fill_empty(self, groups: list[int], sides: list[int]) -> None:
        """Give a side without rows a group of a label that has more than one to train on."""
        for side in reversed(sides):
            if side == TRAIN or self._whole[side]:
                continue
            spare = (
                each for each in groups if self._chosen[each] == TRAIN and self._groups[self._label[each]][TRAIN] > 1
            )
            if (taken := next(spare, None)) is not None:
                self._count(taken, -1)
                self._give(taken, side)

    def _give(self, group: int, side: int) -> None:
        self._chosen[group] = side
        self._count(group, 1)

    def _count(self, group: int, sign: int) -> None:
        label, side = self._label[group], self._chosen[group]
        self._rows[label][side] += sign * self._sizes[group]
        self._whole[side] += sign * self._sizes[group]
        self._groups[label][side] += sign
