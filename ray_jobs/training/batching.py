"""Which rows go into which optimizer step, worker and forward pass.

A pure function of the seed, the rows' lengths and the batch settings: every worker computes the same plan without
communication, and a job resumed on another number of workers trains the same steps. The position in the data is the
number of steps taken; nothing else is saved.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_jobs.data.encoding import Encoded
from ray_jobs.spec import JobSpec, TrainingSection
from ray_jobs.tasks import TASKS

Group = tuple[int, ...]
"""Indices of the rows that share one forward pass."""


@dataclass(frozen=True)
class BatchPlan:
    """The order in which a job trains its rows. `lengths`: tokens a row. `supervised`: a row's labels in the loss."""

    lengths: tuple[int, ...]
    supervised: tuple[int, ...]
    training: TrainingSection
    packed: bool

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.lengths) / self.training.batch_size)

    @property
    def total_steps(self) -> int:
        steps = self.steps_per_epoch * self.training.epochs
        return min(steps, self.training.max_steps or steps)

    def rows_of(self, step: int) -> Group:
        """The rows of a step (0-based). Each epoch has every row once, in an order drawn from the seed and the epoch;
        its last step may be smaller."""
        epoch, at = divmod(step, self.steps_per_epoch)
        order = np.random.Generator(np.random.PCG64([self.training.seed, epoch])).permutation(len(self.lengths))
        size = self.training.batch_size
        return tuple(order[at * size : (at + 1) * size].tolist())

    def groups_of(self, step: int, workers: int) -> tuple[Group, ...]:
        """The step's forward passes; worker r of W takes groups r, r + W, …. There are a multiple of W, and some may be
        empty."""
        limit = self.training.micro_batch_tokens
        return split(self.rows_of(step), self.lengths, workers, limit, packed=self.packed)

    def supervised_in(self, step: int) -> int:
        """Labels in the step's loss, over all workers; at least 1, so that a step without labels has the mean 0."""
        return max(1, sum(self.supervised[i] for i in self.rows_of(step)))

    def tokens_in(self, step: int) -> int:
        """Tokens of the step's rows, without padding."""
        return sum(self.lengths[i] for i in self.rows_of(step))


def batch_plan(spec: JobSpec, encoded: Encoded) -> BatchPlan:
    """The batch plan of a job's training rows."""
    return BatchPlan(encoded.lengths, encoded.supervised, spec.training, is_packed(spec))


def is_packed(spec: JobSpec) -> bool:
    """Whether several rows share a sequence."""
    return spec.training.packing and TASKS[spec.task].packs


def split(
    rows: Sequence[int], lengths: Sequence[int], workers: int, micro_batch_tokens: int, *, packed: bool
) -> tuple[Group, ...]:
    """Share rows out over the fewest forward passes that fit, a multiple of `workers`; the passes cost about the same.

    Packed: longest first, each to the emptiest pass (Graham's LPT rule). Padded: neighbours in length share a pass,
    which costs its rows times its longest. A row longer than `micro_batch_tokens` has a pass of its own.
    """
    order = sorted(rows, key=lambda i: (-lengths[i], i))
    if not order:
        return ((),) * workers
    return (_packed if packed else _padded)(order, lengths, workers, micro_batch_tokens)


def _packed(order: Sequence[int], lengths: Sequence[int], workers: int, limit: int) -> tuple[Group, ...]:
    passes = _rounded_up(min(len(order), math.ceil(sum(lengths[i] for i in order) / limit)), workers)
    while True:
        groups: list[list[int]] = [[] for _ in range(passes)]
        loads = [(0, number) for number in range(passes)]  # a heap: the emptiest pass first
        for i in order:
            load, number = loads[0]
            groups[number].append(i)
            heapq.heapreplace(loads, (load + lengths[i], number))
        if passes >= len(order) or max(loads)[0] <= limit:
            return tuple(map(tuple, groups))
        passes += workers


def _padded(order: Sequence[int], lengths: Sequence[int], workers: int, limit: int) -> tuple[Group, ...]:
    """The lowest limit that needs no more passes balances them."""
    passes = _rounded_up(len(_runs(order, lengths, limit)), workers)
    lowest = bisect.bisect_left(range(limit), True, key=lambda cost: len(_runs(order, lengths, cost)) <= passes)
    groups = _runs(order, lengths, lowest)
    return (*groups, *[()] * (passes - len(groups)))


def _runs(order: Sequence[int], lengths: Sequence[int], limit: int) -> list[Group]:
    """Cut rows, longest first, into runs whose padded cost is at most `limit`."""
    groups: list[Group] = []
    at = 0
    while at < len(order):
        size = max(1, limit // lengths[order[at]])
        groups.append(tuple(order[at : at + size]))
        at += size
    return groups


def _rounded_up(passes: int, workers: int) -> int:
    return workers * math.ceil(passes / workers)
