"""A job's other checkpoints made callable: each an adapter of its own, a further version of the job's model.

Owns which checkpoints these are, their adapters, and what is told of them. The best one is the evaluation's
(`evaluate.py`), which alone is compared with the base: of the others only the held-out figures of training are known.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ray_jobs import models
from ray_jobs.evaluation.evaluate import attach_weights, load_candidate, save_candidate
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store
from ray_jobs.tasks import TASKS
from ray_jobs.training import checkpoint
from ray_jobs.training.checkpoint import Checkpoint
from ray_jobs.training.trainer import TrainInputs

Report = Callable[[tuple[float, float, str, dict[str, float | str]]], object]


class AdapterInputs(BaseModel):
    """Everything that building the adapters needs, by its place in the store."""

    model_config = ConfigDict(frozen=True)

    train: TrainInputs
    trees: dict[str, str]
    """For each checkpoint where its adapter is to be."""


def has_adapters(spec: JobSpec) -> bool:
    """Whether a checkpoint can be called beside the best: as an adapter of the same base."""
    return TASKS[spec.task].generates and spec.training.method in ("lora", "qlora")


def others(found: Sequence[Checkpoint], registered: str) -> list[Checkpoint]:
    """The checkpoints besides the registered one, a step's newest; `registered` is its key. Pure."""
    by_step = {one.position.step: one for one in found}
    taken = {one.position.step for one in found if one.key == registered}
    return [by_step[step] for step in sorted(by_step) if step not in taken]


def alias_of(step: int | str) -> str:
    """What a version that was a checkpoint is called besides its number."""
    return f"ckpt-step-{step}"


def lineage_metrics(one: Checkpoint, spec: JobSpec) -> dict[str, float]:
    """What is known of a checkpoint's model, by the names that versions' metrics have. Pure."""
    position = one.position
    figures = {
        "step": float(position.step),
        "train_loss": position.losses[-1] if position.losses else None,
        "loss": position.held_out_loss,
        TASKS[spec.task].metric: position.held_out_accuracy,
    }
    return {name: value for name, value in figures.items() if value is not None}


def row(one: Checkpoint, version: str) -> dict[str, Any]:
    """A checkpoint in the job's result. Pure."""
    position = one.position
    return {
        "step": position.step,
        "version": version,
        "train_loss": position.losses[-1] if position.losses else None,
        "valid_loss": position.held_out_loss,
        "valid_mean_token_accuracy": position.held_out_accuracy,
    }


def build_adapters(inputs: AdapterInputs, store: Store, report: Report) -> list[str]:
    """Build the adapters that are not there yet, over one base in memory. Returns the trees that were made."""
    lacking = {key: tree for key, tree in inputs.trees.items() if store.read_manifest(tree) is None}
    if not lacking:
        return []
    base = store.fetch(inputs.train.base_key)
    tokenizer = models.load_tokenizer(base, inputs.train.spec.task)
    model = load_candidate(inputs.train, base)
    whole = {one.key: one for one in checkpoint.committed(store, inputs.train.checkpoints)}
    made = []
    for number, (key, tree) in enumerate(lacking.items()):
        report((number, len(lacking), "checkpoints", {}))
        attach_weights(model, store, whole.get(key), key)
        with tempfile.TemporaryDirectory(prefix="kitae-adapter-") as scratch:
            directory = Path(scratch) / "tree"
            save_candidate(model, inputs.train.spec, tokenizer, directory)
            store.commit(tree, store.upload_tree(directory, tree), {"checkpoint": key})
        made.append(tree)
    report((len(lacking), len(lacking), "checkpoints", {}))
    return made
