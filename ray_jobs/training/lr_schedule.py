"""The learning rate of each step: warm-up, then a decay. Pure.

A run that may be continued (`TrainUntil`) keeps a constant rate and decays shortly before its last step; a longer run
resumes from before the decay. So each length is scored after a full decay, and no constant step is trained twice (Hu et
al. 2024, arXiv:2404.06395; Hägele et al. 2024, arXiv:2405.18392).
"""

from __future__ import annotations

import math

from ray_jobs.spec import JobSpec, TrainingSection
from ray_jobs.tasks import TASKS


def default_learning_rate(training: TrainingSection, task: str) -> float:
    """Peak rate of a job file without one. LoRA needs about ten times that of full training (Schulman et al., "LoRA
    Without Regret", 2025)."""
    if training.method in ("lora", "qlora"):
        return 2e-4
    if training.method == "full":
        return 2e-5
    base = TASKS[task].base
    return base.frozen_learning_rate if base is not None else 1e-3


def decay_start(steps: int) -> int:
    """Steps before the decay of a run of `steps` steps. The decay takes a fifth of them, and at least one."""
    return max(0, steps - max(1, round(steps * 0.2)))


def learning_rate_at(step: int, total_steps: int, spec: JobSpec, *, stop_at_step: int | None = None) -> float:
    """The rate of a step (0-based): linear warm-up over a share of all steps, then the schedule's decay to 0.

    `stop_at_step`: the run ends there, with the schedule `warmup_stable_decay`.
    """
    training = spec.training
    peak = training.learning_rate or default_learning_rate(training, spec.task)
    warmup = math.ceil(total_steps * training.warmup_fraction)
    rate = peak * (step + 1) / warmup if step < warmup else peak
    if stop_at_step is not None or training.schedule == "warmup_stable_decay":
        end = stop_at_step or total_steps
        start = decay_start(end)
        return rate if step < start else rate * (1.0 - math.sqrt((step - start + 1) / (end - start + 1)))
    if step < warmup or training.schedule == "constant":
        return rate
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * (1.0 - progress if training.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress)))
