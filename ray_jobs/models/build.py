"""The model of a job, in memory: what training starts from, and what a checkpoint's weights are put into.

The one order of steps for the trainer, shared trials, evaluation and publishing, so that all of them get the same
module with the same names and the same first values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.models import heads, lora_linear, packed_attention
from ray_jobs.models.attach import attach
from ray_jobs.models.load import load_base, resolve_precision
from ray_jobs.spec import JobSpec
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import Batch, Reference, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

RunSample = Callable[["torch.nn.Module"], object]
"""Puts some training rows through a model, for a new head that is standardised over them."""


def build(
    spec: JobSpec,
    directory: Path | None,
    labels: Sequence[str],
    *,
    trains: bool = True,
    by_row: bool = False,
    run_sample: RunSample | None = None,
) -> torch.nn.Module:
    """A job's model before its first step, with its trainable weights marked.

    `directory` holds the base; None for a task without one. `trains` False: for evaluation, with the base's own
    configuration. The other arguments are those of `build_base`.
    """
    task = TASKS[spec.task]
    if directory is None:
        return task.new_model(labels, spec.training.seed)
    base = build_base(spec, directory, labels, trains=trains, by_row=by_row, run_sample=run_sample)
    module = attach(base, spec.training, spec.task)
    if trains:
        lora_linear.use(module)
    return module


def build_base(
    spec: JobSpec,
    directory: Path,
    labels: Sequence[str],
    *,
    trains: bool = True,
    by_row: bool = False,
    run_sample: RunSample | None = None,
) -> PreTrainedModel:
    """A job's base before its method is attached.

    `by_row`: packed sequences are attended row by row, which a CPU computes faster. `run_sample` standardises a head
    that the base's files lack; None where a checkpoint's weights replace it anyway. In training the base's own dropout
    is on only for `method: full`: frozen weights are used unchanged, and an adapter has a dropout of its own.
    """
    training = spec.training
    base = load_base(
        directory,
        spec.task,
        labels,
        resolve_precision(spec),
        seed=training.seed,
        four_bit=training.method == "qlora",
        dropout=training.method == "full" or not trains,
    )
    if run_sample is not None:
        heads.standardise_new_pooler(base, directory, run_sample)
    if by_row:
        packed_attention.use(base)
    return base


def reference_of(module: torch.nn.Module, task: Task[Any]) -> Reference | None:
    """The frozen model that training starts from: the base under an adapter, else a copy of the whole model.

    Call it before a checkpoint's weights are loaded. None where the task's loss compares with none.
    """
    if not task.uses_reference:
        return None
    import torch

    adapted: Any = module if hasattr(module, "disable_adapter") else None
    frozen = module if adapted is not None else copy.deepcopy(module).requires_grad_(False)

    def predict(batch: Batch) -> torch.Tensor:
        was_training = frozen.training
        frozen.eval()
        try:
            with torch.no_grad(), nullcontext() if adapted is None else adapted.disable_adapter():
                return task.logits(frozen, batch)
        finally:
            frozen.train(was_training)

    return predict
