"""Which rows go into which optimizer step, worker and forward pass.

A pure function of the seed, the rows' lengths and the batch settings, so every worker computes the same plan without
talking, and a job resumed on another number of workers trains the same steps. The position in the data is the number
of steps taken; nothing else needs saving.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Group = tuple[int, ...]
"""Indices of the rows that share one forward pass."""


@dataclass(frozen=True)
class BatchPlan:
    """How a data set is walked. `lengths` are tokens a row; `supervised` counts a row's labels in the loss."""

    lengths: tuple[int, ...]
    supervised: tuple[int, ...]
    batch_size: int
    micro_batch_tokens: int
    epochs: int
    seed: int
    packed: bool
    max_steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    @property
    def total_steps(self) -> int:
        steps = self.steps_per_epoch * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def rows_of(self, step: int) -> Group:
        """The rows of a step (0-based). Every row comes once an epoch, in an order drawn from the seed and epoch; the
        last step of an epoch takes what is left."""
        epoch, at = divmod(step, self.steps_per_epoch)
        order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.lengths))
        return tuple(int(i) for i in order[at * self.batch_size : (at + 1) * self.batch_size])

    def groups_of(self, step: int, workers: int) -> tuple[Group, ...]:
        """The step's forward passes; worker r of W takes groups r, r + W, …. Their number is a multiple of W, and a
        group may be empty."""
        return split(self.rows_of(step), self.lengths, workers, self.micro_batch_tokens, packed=self.packed)

    def supervised_in(self, step: int) -> int:
        """Labels in the step's loss, over all workers; 1 where there are none, so that their mean is 0."""
        return max(1, sum(self.supervised[i] for i in self.rows_of(step)))

    def tokens_in(self, step: int) -> int:
        """Tokens of the step's rows, padding not counted."""
        return sum(self.lengths[i] for i in self.rows_of(step))


def split(
    rows: Sequence[int], lengths: Sequence[int], workers: int, micro_batch_tokens: int, *, packed: bool
) -> tuple[Group, ...]:
    """Share rows out over the fewest forward passes that fit, a multiple of `workers`.

    Packed: longest first, each to the emptiest pass (Graham's LPT rule), so that workers finish together. Padded:
    neighbours in length share a pass, whose cost is its rows times its longest.
    A single row longer than `micro_batch_tokens` gets a pass of its own.
    """
    order = sorted(rows, key=lambda i: (-lengths[i], i))
    share = _balance if packed else _neighbours
    passes = workers
    while True:
        groups = share(order, lengths, passes)
        if passes >= len(order) or all(_cost(g, lengths, packed=packed) <= micro_batch_tokens for g in groups):
            return groups
        passes += workers


def _cost(group: Group, lengths: Sequence[int], *, packed: bool) -> int:
    sizes = [lengths[i] for i in group]
    return sum(sizes) if packed else len(sizes) * max(sizes, default=0)


def _balance(order: Sequence[int], lengths: Sequence[int], passes: int) -> tuple[Group, ...]:
    groups: list[list[int]] = [[] for _ in range(passes)]
    loads = [0] * passes
    for i in order:
        lightest = loads.index(min(loads))
        groups[lightest].append(i)
        loads[lightest] += lengths[i]
    return tuple(map(tuple, groups))


def _neighbours(order: Sequence[int], lengths: Sequence[int], passes: int) -> tuple[Group, ...]:
    """Contiguous runs of about the same padded cost: a run is closed at its share of what is left."""
    groups: list[Group] = []
    at = 0
    for left in range(passes, 0, -1):
        remaining = len(order) - at
        share = sum(lengths[i] for i in order[at:]) / left
        size = 0
        while size < remaining - (left - 1) and (size == 0 or (size + 1) * lengths[order[at]] <= share):
            size += 1
        if left == 1:
            size = remaining
        groups.append(tuple(order[at : at + size]))
        at += size
    return tuple(groups)
