"""The learning rate of each step: warm-up, and how it falls. Pure.

A search judges a trial at several lengths (rungs). Its rate stays constant on the way (the trunk) and falls only
shortly before each rung; the next stretch goes on from the trunk, where the decay began. So every rung is judged after
a whole decay, and none of the constant part is trained twice (Hu et al. 2024, arXiv:2404.06395; Hägele et al. 2024,
arXiv:2405.18392).
"""

from __future__ import annotations

import math

from ray_jobs.spec import JobSpec, TrainingSection
from ray_jobs.tasks import TASKS

DECAY = 0.2
"""Share of the steps over which `warmup_stable_decay` falls."""


def default_learning_rate(training: TrainingSection, task: str) -> float:
    """The peak rate where the job file names none; LoRA wants about ten times that of full training (Schulman et al.,
    "LoRA Without Regret", 2025)."""
    if training.method in ("lora", "qlora"):
        return 2e-4
    if training.method == "full":
        return 2e-5
    base = TASKS[task].base
    return base.frozen_learning_rate if base is not None else 1e-3


def trunk_end(steps: int) -> int:
    """How many of `steps` steps come before the decay: all but a fifth, and at least one."""
    return max(0, steps - max(1, round(steps * DECAY)))


def learning_rate_at(step: int, total_steps: int, spec: JobSpec, *, rung: int | None = None) -> float:
    """The rate of a step (0-based): linear warm-up over a share of all steps, then the schedule's decay to 0.

    `rung`: the number of steps at which a trial is judged; its rate is `warmup_stable_decay`'s up to there.
    """
    training = spec.training
    peak = training.learning_rate or default_learning_rate(training, spec.task)
    warmup = math.ceil(total_steps * training.warmup_fraction)
    rate = peak * (step + 1) / warmup if step < warmup else peak
    if rung is not None or training.schedule == "warmup_stable_decay":
        end = rung or total_steps
        start = trunk_end(end)
        return rate if step < start else rate * (1.0 - math.sqrt((step - start + 1) / (end - start + 1)))
    if step < warmup or training.schedule == "constant":
        return rate
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * (1.0 - progress if training.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress)))
