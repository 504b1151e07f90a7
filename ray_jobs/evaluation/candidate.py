"""The candidate: a checkpoint's model in memory, and the files that would be published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs import models
from ray_jobs.errors import ModelError
from ray_jobs.registry import base_name
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import Reference
from ray_jobs.training import checkpoint
from ray_jobs.training.inputs import TrainInputs
from ray_jobs.training.progress_sink import ProgressUpdate

if TYPE_CHECKING:
    import torch

SendProgress = Callable[[ProgressUpdate], object]
"""Sends a worker's progress to the driver."""


def build_candidate(
    inputs: TrainInputs, checkpoint_key: str, store: Store, base: Path | None, processor: Any, tree: Path
) -> tuple[torch.nn.Module, Reference | None]:
    """Load a checkpoint's model, and write its files into `tree`. Returns also the reference its loss needs."""
    spec = inputs.spec
    model = models.build(spec, base, inputs.labels, trains=False)
    reference = models.reference_of(model, TASKS[spec.task])
    attach_weights(model, store, checkpoint_key)
    if spec.compute.gpus_per_worker and spec.training.method != "qlora":
        model = model.to("cuda")
    save_candidate(model, spec, processor, tree)
    return model, reference


def attach_weights(model: torch.nn.Module, store: Store, key: str) -> None:
    """Copy the weights of the checkpoint at a key into a model. Raises ModelError where it is gone."""
    chosen = checkpoint.load(store, key)
    if chosen is None:
        raise ModelError(f"the checkpoint {store.uri(key)} is gone; run the job again to train it")
    weights = models.trainable(model)
    state = checkpoint.load_state(store, chosen, weights)
    for name, parameter in weights.items():
        parameter.data.copy_(state[name]["weight"])


def save_candidate(model: torch.nn.Module, spec: JobSpec, processor: Any, tree: Path) -> None:
    """Write the files that would be published."""
    for config in getattr(model, "peft_config", {}).values():
        config.base_model_name_or_path = base_name(spec.base_model)  # not a path of this machine
    models.save_published(model, processor, tree)


@contextmanager
def base_weights(
    candidate: torch.nn.Module, directory: Path, spec: JobSpec, labels: Sequence[str]
) -> Iterator[torch.nn.Module]:
    """The base model: the candidate with its adapter switched off, or the base's own files."""
    if hasattr(candidate, "disable_adapter") and not TASKS[spec.task].has_new_head:
        with candidate.disable_adapter():  # type: ignore[operator]  # a PEFT model has it
            yield candidate
        return
    dtype = models.resolve_precision(spec)
    model: torch.nn.Module = models.load_base(directory, spec.task, labels, dtype, seed=spec.training.seed)
    yield model.to(next(candidate.parameters()).device)
