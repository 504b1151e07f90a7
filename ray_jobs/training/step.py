"""The optimizer step of every training: of a job's own loop and of the trials of a search that share a process.

Owns what follows from a step's summed loss: the check that it is finite, the learning rate, the update and the new
position; and how a training resumes. Does not know how the forward passes are computed, nor what applies the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from ray_jobs.errors import LossNotFinite
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.tasks.base import Scores
from ray_jobs.training import checkpoint
from ray_jobs.training.batching import BatchPlan
from ray_jobs.training.checkpoint import Checkpoint, Position, State, Writer
from ray_jobs.training.inputs import TrainUntil
from ray_jobs.training.lr_schedule import decay_start, learning_rate_at

if TYPE_CHECKING:
    import torch


class Optimizer(Protocol):
    """Applies gradients to the trained weights: DeepSpeed's engine, or AdamW over master weights."""

    def step(self, learning_rate: float) -> None:
        """Clip the gradients, update the weights, and clear the gradients."""

    def gather(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Each trained weight in turn: (name, {"weight", "exp_avg", "exp_avg_sq"}), whole, fp32, on the CPU."""
        ...

    def restore(self, state: State, *, steps: int) -> None:
        """Set the weights and moments that `gather` returned after `steps` steps."""


OptimizerT = TypeVar("OptimizerT", bound=Optimizer)


@dataclass
class TrainingState:
    """One training in progress: its plan, optimizer, checkpoints and position."""

    spec: JobSpec
    plan: BatchPlan
    until: TrainUntil | None
    optimizer: Optimizer
    writer: Writer
    position: Position

    def __post_init__(self) -> None:
        if self.until is not None:
            self.writer.pinned = frozenset({decay_start(self.end)})

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.position.step

    @property
    def end(self) -> int:
        """Steps to take in all."""
        return self.plan.total_steps if self.until is None else self.until.stop_at_step

    def rate(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        return rate_of(self.spec, self.plan, self.until, step)

    def take(self, loss_sum: float) -> None:
        """Take a step; `loss_sum` is over all its supervised labels. Raises LossNotFinite before a weight changes."""
        step, rate = self.step, self.rate(self.step)
        loss = loss_sum / self.plan.supervised_in(step)
        if not math.isfinite(loss):
            raise LossNotFinite(
                f"the training loss is {loss} at step {step + 1} of {self.end} (learning rate {rate:.3g}): lower "
                "training.learning_rate, or set training.max_grad_norm; the weights of this step are not kept"
            )
        self.optimizer.step(rate)
        self.position = self.position.after_step(loss, self.plan.tokens_in(step))

    def measured(self, scores: Scores) -> None:
        """Record the scores on the held-out rows. Raises LossNotFinite."""
        self.position = self.position.measured(scores.loss, scores.accuracy)

    def save(self) -> None:
        """Write a checkpoint; its upload runs in the background."""
        self.writer.save(self.optimizer.gather(), self.position)


def rate_of(spec: JobSpec, plan: BatchPlan, until: TrainUntil | None, step: int) -> float:
    """Learning rate of a step (0-based)."""
    stop = None if until is None else until.stop_at_step
    return learning_rate_at(step, plan.total_steps, spec, stop_at_step=stop)


def to_resume(store: Workspace, checkpoints: str, until: TrainUntil | None) -> Checkpoint | None:
    """The last checkpoint below a prefix, else the one of `until`. None: start from the base model."""
    found = checkpoint.latest(store, checkpoints)
    if found is None and until is not None and until.resume_from is not None:
        found = checkpoint.load(store, until.resume_from)
    return found


def restored(
    store: Workspace,
    found: Checkpoint | None,
    weights: Mapping[str, torch.nn.Parameter],
    build: Callable[[], OptimizerT],
) -> OptimizerT:
    """Build an optimizer over trained weights, with the weights and moments of a checkpoint if there is one."""
    if found is None:
        return build()
    state = checkpoint.load_state(store, found, weights)
    for name, weight in weights.items():
        weight.data.copy_(state[name]["weight"])
    optimizer = build()
    optimizer.restore(state, steps=found.position.step)
    return optimizer
