"""Publishing checkpoints: the candidate, and a job's remaining checkpoints, each as an adapter and a further version.

Owns which checkpoints these are, their files and their metrics. The best checkpoint, the candidate, is evaluated
(`evaluate.py`) and compared with the base; the others have only the held-out metrics of training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from ray_jobs import models
from ray_jobs.errors import ModelError
from ray_jobs.registry.model import base_name
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import Reference
from ray_jobs.training import checkpoint
from ray_jobs.training.checkpoint import Checkpoint
from ray_jobs.training.inputs import TrainInputs
from ray_jobs.training.ray_workers import ProgressUpdate

if TYPE_CHECKING:
    import torch

SendProgress = Callable[[ProgressUpdate], object]
"""Sends a worker's progress to the driver."""


def build_candidate(
    inputs: TrainInputs, checkpoint_key: str, store: Workspace, base: Path | None, processor: Any, tree: Path
) -> tuple[torch.nn.Module, Reference | None]:
    """Load a checkpoint's model, and write its files into `tree`. Returns also the reference its loss needs."""
    spec = inputs.spec
    model = models.build(spec, base, inputs.labels, trains=False)
    reference = models.reference_of(model, TASKS[spec.task])
    _attach_weights(model, store, checkpoint_key)
    if spec.compute.gpus_per_worker and spec.training.method != "qlora":
        model = model.to("cuda")
    _save_candidate(model, spec, processor, tree)
    return model, reference


def _attach_weights(model: torch.nn.Module, store: Workspace, key: str) -> None:
    """Copy the weights of the checkpoint at a key into a model. Raises ModelError where it is gone."""
    chosen = checkpoint.load(store, key)
    if chosen is None:
        raise ModelError(f"the checkpoint {store.uri(key)} is gone; run the job again to train it")
    weights = models.trainable(model)
    state = checkpoint.load_state(store, chosen, weights)
    for name, parameter in weights.items():
        parameter.data.copy_(state[name]["weight"])


def _save_candidate(model: torch.nn.Module, spec: JobSpec, processor: Any, tree: Path) -> None:
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


class AdapterInputs(BaseModel):
    """Everything that building the adapters needs, by its place in the store."""

    model_config = ConfigDict(frozen=True)

    train: TrainInputs
    trees: dict[str, str]
    """Key of the adapter's tree by key of its checkpoint."""


def has_adapters(spec: JobSpec) -> bool:
    """Whether clients can call a checkpoint beside the best one: only as an adapter of the same base."""
    return TASKS[spec.task].generates and spec.training.method in ("lora", "qlora")


def others(found: Sequence[Checkpoint], registered: str) -> list[Checkpoint]:
    """The checkpoints besides the registered one, the newest of each step; `registered` is its key. Pure."""
    by_step = {one.position.step: one for one in found}
    taken = {one.position.step for one in found if one.key == registered}
    return [by_step[step] for step in sorted(by_step) if step not in taken]


def alias_of(step: int | str) -> str:
    """The alias of the version that a checkpoint of this step became."""
    return f"ckpt-step-{step}"


def lineage_metrics(one: Checkpoint, spec: JobSpec) -> dict[str, float]:
    """A checkpoint's metrics by the names that versions use; one that was not measured is left out. Pure."""
    position = one.position
    metrics = {
        "step": float(position.step),
        "train_loss": position.losses[-1] if position.losses else None,
        "loss": position.held_out_loss,
        TASKS[spec.task].metric: position.held_out_accuracy,
    }
    return {name: value for name, value in metrics.items() if value is not None}


def build_adapters(inputs: AdapterInputs, store: Workspace, report: SendProgress) -> None:
    """Build the missing adapters over one base in memory."""
    lacking = {key: tree for key, tree in inputs.trees.items() if store.read_manifest(tree) is None}
    if not lacking:
        return
    base = models.fetch_base(store, inputs.train.base_key)
    tokenizer = models.load_processor(base, inputs.train.spec.task)
    model = models.build(inputs.train.spec, base, inputs.train.labels, trains=False)
    for number, (key, tree) in enumerate(lacking.items()):
        report((number, len(lacking), "checkpoints", {}))
        _attach_weights(model, store, key)
        with tempfile.TemporaryDirectory(prefix="kitae-adapter-") as scratch:
            directory = Path(scratch) / "tree"
            _save_candidate(model, inputs.train.spec, tokenizer, directory)
            store.commit(tree, store.upload_tree(directory, tree), {"checkpoint": key})
    report((len(lacking), len(lacking), "checkpoints", {}))
