"""Scores of a model on encoded rows, shared out over the process group. Knows neither the loop nor the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.encoding import Encoded
from ray_jobs.models import heads
from ray_jobs.spec import JobSpec
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import LabelScores, Reference, Scores, Task
from ray_jobs.training.batching import Group, is_packed, split

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class RowScores:
    """Scores of each example, or of each row, in their order."""

    losses_R: NDArray[np.float64]
    """Sum of the losses of its labels."""
    counts_R: NDArray[np.float64]
    """Number of its labels."""
    correct_R: NDArray[np.float64]
    """Number of its labels that the model would choose."""

    def by_row(self, row_of_example: Sequence[int]) -> RowScores:
        """The sums over the examples of each row, in the order of the rows' numbers."""
        _, at = np.unique(np.asarray(row_of_example), return_inverse=True)
        sums = (np.bincount(at, values).astype(np.float64) for values in (self.losses_R, self.counts_R, self.correct_R))
        return RowScores(*sums)

    @classmethod
    def of_losses(cls, losses: Sequence[float]) -> RowScores:
        """Rows of one label each; which of them are right is not known."""
        return cls(np.asarray(losses, dtype=np.float64), np.ones(len(losses)), np.zeros(len(losses)))

    def total(self) -> Scores:
        """The sums over all."""
        return Scores(float(self.losses_R.sum()), int(self.counts_R.sum()), int(self.correct_R.sum()))


def score(
    model: torch.nn.Module,
    task: Task[Any],
    encoded: Encoded,
    spec: JobSpec,
    device: torch.device,
    reference: Reference | None = None,
) -> Scores:
    """Score encoded rows, each worker of a process group its share; all return the sum. The model's mode stays."""
    import torch
    import torch.distributed as dist

    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    sums = torch.zeros(3, dtype=torch.float64)
    for _, found in _passes(model, task, encoded, spec, device, reference, share=(rank, workers)):
        part = found.total()
        sums += torch.tensor((part.loss_sum, part.count, part.correct), dtype=torch.float64)
    if dist.is_initialized():
        sums = all_reduced(sums, device)
    return Scores(float(sums[0]), int(sums[1]), int(sums[2]))


def score_examples(
    model: torch.nn.Module,
    task: Task[Any],
    encoded: Encoded,
    spec: JobSpec,
    device: torch.device,
    reference: Reference | None = None,
) -> RowScores:
    """Score each encoded example, in this process alone."""
    found = np.zeros((3, len(encoded)))
    for group, labels in _passes(model, task, encoded, spec, device, reference):
        # Counted as they are scored: nothing predicts the first token of a sequence.
        counts = [len(task.collate([encoded[i]]).targets_S) for i in group]
        owners = np.repeat(np.asarray(group, dtype=np.int64), counts)
        of_labels = (labels.losses_S.cpu(), np.ones(len(owners)), labels.correct_S.cpu())
        for values, of_label in zip(found, of_labels, strict=True):
            values += np.bincount(owners, np.asarray(of_label, dtype=np.float64), minlength=len(encoded))
    return RowScores(*found)


def _passes(
    model: torch.nn.Module,
    task: Task[Any],
    encoded: Encoded,
    spec: JobSpec,
    device: torch.device,
    reference: Reference | None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Group, LabelScores]]:
    """Forward passes over encoded rows, in evaluation mode. `share`: a worker's rank and the number of workers."""
    import torch

    (rank, workers), packed, was_training = share, is_packed(spec), model.training
    groups = split(range(len(encoded)), encoded.lengths, workers, spec.training.micro_batch_tokens, packed=packed)
    model.eval()
    try:
        for group in groups[rank::workers]:
            batch = task.collate([encoded[i] for i in group], packed=packed, pad_id=0).to(device)
            with torch.no_grad():
                found = task.label_scores(model, batch, reference)
            yield group, found
    finally:
        model.train(was_training)


def run_sample(model: torch.nn.Module, spec: JobSpec, rows: Encoded) -> None:
    """Put some training rows, the same on every worker, through a model, to standardise a new classifier's pooler."""
    task = TASKS[spec.task]
    size = max(1, spec.training.micro_batch_tokens // spec.data.max_tokens)
    device = next(model.parameters()).device
    for at in range(0, min(heads.SAMPLE_ROWS, len(rows)), size):
        examples = [rows[i] for i in range(at, min(at + size, len(rows)))]
        task.logits(model, task.collate(examples, packed=False, pad_id=0).to(device))


def all_reduced(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The sum over all workers, on the CPU."""
    import torch.distributed as dist

    on_device = values.to(device)
    dist.all_reduce(on_device)
    return on_device.cpu()
