"""Publishes a job's remaining checkpoints, each as an adapter and a further version of the job's model.

Owns which checkpoints these are, their adapters and their metrics. The best checkpoint is evaluated (`evaluate.py`) and
compared with the base; the others have only the held-out metrics of training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ray_jobs import models
from ray_jobs.evaluation.candidate import SendProgress, attach_weights, save_candidate
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store
from ray_jobs.tasks import TASKS
from ray_jobs.training.checkpoint import Checkpoint
from ray_jobs.training.inputs import TrainInputs


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


def build_adapters(inputs: AdapterInputs, store: Store, report: SendProgress) -> None:
    """Build the missing adapters over one base in memory."""
    lacking = {key: tree for key, tree in inputs.trees.items() if store.read_manifest(tree) is None}
    if not lacking:
        return
    base = models.fetch_base(store, inputs.train.base_key)
    tokenizer = models.load_processor(base, inputs.train.spec.task)
    model = models.build(inputs.train.spec, base, inputs.train.labels, trains=False)
    for number, (key, tree) in enumerate(lacking.items()):
        report((number, len(lacking), "checkpoints", {}))
        attach_weights(model, store, key)
        with tempfile.TemporaryDirectory(prefix="kitae-adapter-") as scratch:
            directory = Path(scratch) / "tree"
            save_candidate(model, inputs.train.spec, tokenizer, directory)
            store.commit(tree, store.upload_tree(directory, tree), {"checkpoint": key})
    report((len(lacking), len(lacking), "checkpoints", {}))
