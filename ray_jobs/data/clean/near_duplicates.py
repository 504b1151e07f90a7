"""Near duplicates: rows whose texts share most of their n-grams, in clusters. Pure; knows no rows or files.

MinHash signatures give candidates, and the exact Jaccard similarity over the same n-grams decides on each. A result
depends on the set of texts alone: not on their order, nor on the batches in which signatures were computed.

A cluster is the closure of "is similar" (single linkage): if A is like B and B like C, all three are one cluster, also
where A is less like C. A split needs this, since B would leak from either side. Removing needs more (`keepers`): a row
is removed only if a row that stays is similar to it, so a chain keeps several rows.

Memory: 136 bytes a row for the signatures, 272 MB for 2 million rows, and about as much again while clustering.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from ray_jobs.data.clean.ngrams import compared, gram_sets, grams, identity, jaccard, mix
from ray_jobs.data.clean.union_find import UnionFind

Signatures = NDArray[np.uint32]
"""(rows, WIDTH): the keys of the bands, then the identity of the compared text in two halves."""

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Two arrays of row numbers of one length; of each pair, the smaller number is in the first."""

BANDS, ROWS_A_BAND = 32, 4
"""A pair of similarity s shares a band with probability s**4, and at least one with 1 - (1 - s**4)**32: 0.9998 at 0.7,
0.988 at 0.6, 0.87 at 0.5."""
WIDTH = BANDS + 2
LEAST_SIMILARITY = 0.6
"""Below it, candidates are missed too often."""
_SEED = 20_251
_BATCH_CHARACTERS = 2_000_000
_MISSED = 0.002
"""Share of similar pairs that may be lost by asking for more than one shared band."""
_BUCKET = 32
"""Rows with one key of which every pair is compared, or more (`_at_least`). Larger buckets are split by the next key,
then compared with their first rows only."""
_LEADERS = 4
_PAIRS_AT_ONCE = 1 << 18
_MOST_REJECTED = 64
"""Unsuccessful comparisons of a row with earlier ones, after which it is compared no more: rows of one template that
are just not similar would else take quadratic time. More (`_at_least`) for few rows."""
_SMALL_WORK = 200_000
"""Comparisons that few rows share: below some thousand rows the two limits above are higher, and less is missed."""
_CACHED_GRAMS, _PAIRS_LOADED = 4_000_000, 500
_KEPT_A_KEY, _KEPT_COMPARED = 32, 8


def signatures(texts: Sequence[str]) -> Signatures:
    """Signatures of texts. Those of batches can be computed in other processes and concatenated."""
    parts = [_signatures(batch) for batch in _batches(texts)]
    return np.concatenate(parts) if parts else np.empty((0, WIDTH), dtype=np.uint32)


def clusters(found: Signatures, text_of: Callable[[int], str], similarity: float) -> NDArray[np.int64]:
    """The cluster of each row: the smallest number of its rows. A row without near duplicates is its own cluster.

    `text_of` returns the text of a row, and is called only for candidates. `similarity`: Jaccard, from 0.6 to 1.
    """
    _check(similarity)
    identities = found[:, BANDS:].copy().view(np.uint64).reshape(-1)
    # Distinct texts in the order of their digests, which does not depend on the order of the rows.
    _, first, distinct_of = np.unique(identities, return_index=True, return_inverse=True)
    keys = found[first, :BANDS]
    sets = GramSets(lambda number: text_of(int(first[number])))
    groups = UnionFind(len(first))
    _link(keys, groups, sets, similarity)
    cluster_of = groups.roots()[distinct_of.reshape(-1)]
    smallest = np.full(len(first), len(found), dtype=np.int64)
    np.minimum.at(smallest, cluster_of, np.arange(len(found)))
    return smallest[cluster_of]


def keepers(members: Sequence[int], found: Signatures, sets: GramSets, similarity: float) -> dict[int, int]:
    """For each member of a cluster, the row that stays for it: itself, or an earlier member that is similar.

    `members` in the order of preference, such as by digest. Every member that does not stay is similar (exact Jaccard)
    to the one that does.
    """
    _check(similarity)
    least = _least_shared(similarity)
    kept_by: dict[tuple[int, int], list[int]] = {}
    same_text: dict[bytes, int] = {}
    keeper: dict[int, int] = {}
    for member in members:
        text = found[member, BANDS:].tobytes()
        if text in same_text:
            keeper[member] = same_text[text]
            continue
        keys = list(enumerate(found[member, :BANDS].tolist()))
        shared = Counter(other for key in keys for other in kept_by.get(key, ()))
        alike = (
            other
            for other, count in shared.most_common(_KEPT_COMPARED)
            if count >= least and sets.similar(other, member, similarity)
        )
        keeper[member] = next(alike, member)
        same_text[text] = keeper[member]
        if keeper[member] == member:
            for key in keys:
                kept = kept_by.setdefault(key, [])
                if len(kept) < _KEPT_A_KEY:
                    kept.append(member)
    return keeper


class GramSets:
    """Grams of texts by number; the last few million are kept."""

    def __init__(self, text_of: Callable[[int], str]) -> None:
        self._text_of, self._cached, self._count = text_of, dict[int, NDArray[np.uint64]](), 0

    def load(self, numbers: Iterable[int]) -> None:
        """Compute those of several texts at once, which is faster than one by one."""
        new = [number for number in dict.fromkeys(numbers) if number not in self._cached]
        if self._count > _CACHED_GRAMS:
            self._cached.clear()
            self._count = 0
        sets = gram_sets([self._text_of(number) for number in new])
        self._cached.update(zip(new, sets, strict=True))
        self._count += sum(map(len, sets))

    def similar(self, one: int, other: int, similarity: float) -> bool:
        first, second = self._of(one), self._of(other)
        if min(len(first), len(second)) < similarity * max(len(first), len(second)) - 1e-9:
            return False
        return jaccard(first, second) >= similarity - 1e-9

    def _of(self, number: int) -> NDArray[np.uint64]:
        if number not in self._cached:
            self.load([number])
        return self._cached[number]


def _check(similarity: float) -> None:
    if not LEAST_SIMILARITY <= similarity <= 1.0:
        raise ValueError(f"the similarity is {similarity}; it must be from {LEAST_SIMILARITY} to 1")


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch, characters = list[str](), 0
    for text in texts:
        batch.append(compared(text))
        characters += len(batch[-1])
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _signatures(batch: Sequence[str]) -> Signatures:
    found = grams(batch)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        found.hashes, found.offsets, num_perm=BANDS * ROWS_A_BAND, seed=_SEED
    )
    minima = np.array(matrix.to_rows(), dtype=np.uint64).reshape(len(batch), BANDS, ROWS_A_BAND)
    keys = np.zeros((len(batch), BANDS), dtype=np.uint64)
    for row in range(ROWS_A_BAND):
        keys = mix(keys ^ minima[:, :, row])
    result = np.empty((len(batch), WIDTH), dtype=np.uint32)
    result[:, :BANDS] = keys >> np.uint64(32)
    result[:, BANDS:] = np.frombuffer(b"".join(map(identity, batch)), dtype=np.uint32).reshape(len(batch), 2)
    return result


def _least_shared(similarity: float) -> int:
    """Most shared bands that can be required so that at most `_MISSED` of the pairs of this similarity have fewer."""
    chance, below, least = min(similarity**ROWS_A_BAND, 1.0), 0.0, 0
    while least < BANDS:
        below += math.comb(BANDS, least) * chance**least * (1 - chance) ** (BANDS - least)
        if below > _MISSED:
            break
        least += 1
    return max(least, 1)


def _at_least(limit: int, rows: int) -> int:
    """A limit of the work for each row; higher where there are few rows."""
    return max(limit, _SMALL_WORK // max(rows, 1))


def _link(keys: Signatures, groups: UnionFind, sets: GramSets, similarity: float) -> None:
    """Join similar rows. `keys`: (rows, BANDS), in an order that follows from the texts alone."""
    least, most_rejected = _least_shared(similarity), _at_least(_MOST_REJECTED, len(keys))
    rejected = np.zeros(len(keys), dtype=np.int32)
    failed = np.empty(0, dtype=np.int64)
    for band in range(BANDS):
        new = list[int]()
        for ones, others in _candidates(keys, band):
            roots = groups.roots()
            apart = (roots[ones] != roots[others]) & (rejected[others] < most_rejected)
            ones, others = ones[apart], others[apart]
            shared = (keys[ones] == keys[others]).sum(axis=1)
            likeliest = np.lexsort((others, ones, -shared))[: np.count_nonzero(shared >= least)]
            numbers = ones[likeliest] * len(keys) + others[likeliest]
            numbers = numbers[~_contains(failed, numbers)]
            for at in range(0, len(numbers), _PAIRS_LOADED):
                pairs = [divmod(number, len(keys)) for number in numbers[at : at + _PAIRS_LOADED].tolist()]
                sets.load(each for pair in pairs for each in pair if groups.find(pair[0]) != groups.find(pair[1]))
                for one, other in pairs:
                    if rejected[other] >= most_rejected or groups.find(one) == groups.find(other):
                        continue
                    if sets.similar(one, other, similarity):
                        groups.union(one, other)
                    else:
                        rejected[other] += 1
                        new.append(one * len(keys) + other)
        # A pair meets in several bands; there are at most `most_rejected` entries a row.
        failed = np.union1d(failed, np.array(new, dtype=np.int64))


def _contains(ordered: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which values an ascending array contains."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    nearest = ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)]
    found: NDArray[np.bool_] = nearest == values
    return found


def _candidates(keys: Signatures, band: int) -> Iterator[Pairs]:
    """Pairs of rows that share the key of a band; of large buckets only some."""
    numbers, size = np.arange(len(keys)), _at_least(_BUCKET, len(keys))
    buckets = _Buckets.of(keys[:, band].astype(np.uint64), numbers, size)
    yield from buckets.all_pairs()
    numbers = np.sort(buckets.in_large())
    both = keys[numbers, band].astype(np.uint64) << np.uint64(32) | keys[numbers, (band + 1) % BANDS]
    buckets = _Buckets.of(both, numbers, size)
    yield from buckets.all_pairs()
    yield from buckets.some_pairs()


@dataclass(frozen=True)
class _Buckets:
    """Rows by key: those of bucket i are `rows[starts[i]:starts[i] + sizes[i]]`, ascending."""

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    small: int
    """Most rows of a bucket of which every pair is compared."""

    @classmethod
    def of(cls, keys: NDArray[np.uint64], rows: NDArray[np.int64], small: int) -> _Buckets:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        is_first = np.ones(len(keys), dtype=bool)
        is_first[1:] = ordered[1:] != ordered[:-1]
        starts = np.flatnonzero(is_first)
        return cls(rows[order], starts, np.diff(np.append(starts, len(keys))), small)

    def in_large(self) -> NDArray[np.int64]:
        """Rows of the large buckets."""
        return self.rows[np.repeat(self.sizes > self.small, self.sizes)]

    def all_pairs(self) -> Iterator[Pairs]:
        """Every pair within each of the other buckets."""
        for size in np.unique(self.sizes[(self.sizes >= 2) & (self.sizes <= self.small)]).tolist():
            starts = self.starts[self.sizes == size]
            first, second = np.triu_indices(size, 1)
            at_once = max(1, _PAIRS_AT_ONCE // len(first))
            for at in range(0, len(starts), at_once):
                part = self.rows[starts[at : at + at_once, None] + np.arange(size)]
                yield part[:, first].reshape(-1), part[:, second].reshape(-1)

    def some_pairs(self) -> Iterator[Pairs]:
        """Pairs within large buckets: each of the first rows with all others, and each row with the next."""
        is_large = self.sizes > self.small
        starts, sizes = self.starts[is_large], self.sizes[is_large]
        if not len(starts):
            return
        rows, start_of = self.in_large(), np.repeat(starts, sizes)
        for leader in range(_LEADERS):
            leaders = self.rows[start_of + leader]
            yield leaders[leaders < rows], rows[leaders < rows]
        same = start_of[1:] == start_of[:-1]
        yield rows[:-1][same], rows[1:][same]
