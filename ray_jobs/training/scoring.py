"""Scores of a model on encoded rows, shared out over the process group. Knows neither the loop nor the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray_jobs.data.encoding import Encoded
from ray_jobs.models import heads
from ray_jobs.spec import JobSpec
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import Reference, Scores, Task
from ray_jobs.training.batching import is_packed, split

if TYPE_CHECKING:
    import torch


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
    packed, was_training = is_packed(spec), model.training
    groups = split(range(len(encoded)), encoded.lengths, workers, spec.training.micro_batch_tokens, packed=packed)
    sums = torch.zeros(3, dtype=torch.float64)
    model.eval()
    with torch.no_grad():
        for group in groups[rank::workers]:
            batch = task.collate([encoded[i] for i in group], packed=packed, pad_id=0).to(device)
            part = task.scores(model, batch, reference)
            sums += torch.tensor((part.loss_sum, part.count, part.correct), dtype=torch.float64)
    model.train(was_training)
    if dist.is_initialized():
        sums = all_reduced(sums, device)
    return Scores(float(sums[0]), int(sums[1]), int(sums[2]))


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
