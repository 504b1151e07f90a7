"""Typed inputs, progress and outcome of a training run. Knows neither the loop nor what starts it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from ray_jobs.spec import JobSpec

TRAIN_FILE = "train.safetensors"
VALIDATION_FILE, TEST_FILE = "validation.safetensors", "test.safetensors"
_FORMER_FILE = "held_out.safetensors"
"""Both sides in encoded rows of earlier versions."""


def encoded_file(tree: Path, name: str) -> Path:
    """A side's file in a tree of encoded rows."""
    return tree / name if (tree / name).exists() else tree / _FORMER_FILE


class TrainUntil(BaseModel):
    """Part of a longer run: from a checkpoint to a step, with a decay of the learning rate at its end.

    The stored names are `rung` and `source`.
    """

    model_config = ConfigDict(frozen=True, serialize_by_alias=True)

    stop_at_step: int = Field(validation_alias=AliasChoices("stop_at_step", "rung"), serialization_alias="rung")
    """Last step. The learning rate decays to 0 by then; a checkpoint from before the decay is kept."""
    resume_from: str | None = Field(
        default=None, validation_alias=AliasChoices("resume_from", "source"), serialization_alias="source"
    )
    """Key of the checkpoint to start from. None: start from the base model."""


class TrainInputs(BaseModel):
    """Everything the workers need, as keys in the store."""

    model_config = ConfigDict(frozen=True, serialize_by_alias=True)

    spec: JobSpec
    labels: tuple[str, ...]
    encoded_key: str
    """Tree with the encoded rows."""
    base_key: str
    checkpoints: str
    """Prefix of this training's checkpoints."""
    until: TrainUntil | None = Field(
        default=None, validation_alias=AliasChoices("until", "stretch"), serialization_alias="stretch"
    )
    """None: train every step of the job file. The stored name is `stretch`."""


@dataclass(frozen=True)
class TrainProgress:
    """One optimizer step."""

    step: int
    total_steps: int
    metrics: dict[str, float | str]
    """`loss`, `learning_rate` and `tokens_per_s`; after an evaluation `held_out_loss` and `held_out_accuracy`; and
    `began_at_step`, the step of the checkpoint that this start resumed from (0 without one)."""


@dataclass(frozen=True)
class TrainHooks:
    """Callbacks of the loop. Only the first worker calls them; all workers obey the answers."""

    on_progress: Callable[[TrainProgress], None] = lambda _: None
    """Called after each step."""
    should_stop: Callable[[], bool] = lambda: False
    """Called before each step: True saves a checkpoint after it and ends the loop."""
    should_save: Callable[[int], bool] = lambda _: False
    """Called before each step with the steps taken: True saves a checkpoint after it."""
    on_commit: Callable[[int], None] = lambda _: None
    """Called in the background with the step of each committed checkpoint."""


class TrainOutcome(BaseModel):
    """Result of a training run."""

    model_config = ConfigDict(frozen=True)

    stopped: Literal["finished", "early", "on_request"]
    step: int
    best_step: int
    best_loss: float
    """Held-out loss of the best checkpoint."""
    checkpoint: str
    """Key of the best checkpoint."""
    final_train_loss: float
    tokens: int
    seconds: float
    """Time spent on steps."""
    tokens_per_s: float
    """Steady state: excludes the first step of each start, which warms up."""
    checkpoint_stall_s: float
    """Time this start waited for checkpoints."""
    peak_memory_bytes: int
    """Peak GPU memory of the first worker; on a CPU, its resident memory."""
    resumed_from_step: int
    workers: int
