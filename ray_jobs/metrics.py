"""Figures of a training for people and programs: events while it runs, a CSV once it is over.

Owns which steps are told of, and both forms. Does not know where the figures come from.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterable, Mapping

from ray_jobs.checkpoint import Checkpoint
from ray_jobs.jobs import Job
from ray_jobs.storage import Store

EVERY_S = 10.0
"""Between two evaluations: at most one event in so many seconds,"""
EVENTS_A_TRAINING = 1000
"""and at most so many in all, however long it takes."""
CSV_COLUMNS = ("step", "train_loss", "valid_loss", "valid_mean_token_accuracy")

_NAMES = {
    "loss": "train_loss",
    "learning_rate": "learning_rate",
    "tokens_per_s": "tokens_per_s",
    "held_out_loss": "valid_loss",
    "held_out_accuracy": "valid_mean_token_accuracy",
}
"""A step's figures by their names in events."""


def is_due(step: int, total_steps: int, *, last_step: int, seconds_since: float, measured: bool) -> bool:
    """Whether a step is told of: each whose model was measured, and of the others some. Pure.

    What was told of already is not told again: workers that were started again repeat steps.
    """
    if step <= last_step:
        return False
    return measured or (seconds_since >= EVERY_S and (step - last_step) * EVENTS_A_TRAINING >= total_steps)


class TrainingMetrics:
    """The events of one training in one attempt of its job."""

    def __init__(self, job: Job, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._job, self._clock = job, clock
        self._last_step, self._last_s = 0, float("-inf")

    def tell(self, step: int, total_steps: int, figures: Mapping[str, float | str]) -> None:
        """Of a step that was taken; most are passed over."""
        now_s = self._clock()
        measured = "held_out_loss" in figures
        if not is_due(
            step, total_steps, last_step=self._last_step, seconds_since=now_s - self._last_s, measured=measured
        ):
            return
        self._last_step, self._last_s = step, now_s
        data = {name: figures[ours] for ours, name in _NAMES.items() if ours in figures}
        message = f"step {step} of {total_steps}: training loss {data['train_loss']:.4f}"
        if measured:
            message += f", validation loss {data['valid_loss']:.4f}"
        self._job.event("info", message, {"step": step, "total_steps": total_steps, **data}, kind="metrics")


def write_csv(store: Store, job_id: str, checkpoints: Iterable[Checkpoint]) -> str | None:
    """Every step of a training by its checkpoints, a line each, as `jobs/{id}/metrics.csv`. None: there are none."""
    lines: dict[int, dict[str, float]] = {}
    for found in sorted(checkpoints, key=lambda checkpoint: checkpoint.position.step):
        position = found.position
        for step, loss in enumerate(position.losses, start=1):
            lines[step] = lines.get(step, {}) | {"step": step, "train_loss": loss}
        for step, loss, accuracy in position.evaluations:
            lines[step] |= {"valid_loss": loss, "valid_mean_token_accuracy": accuracy}
    if not lines:
        return None
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines[step] for step in sorted(lines))
    key = f"jobs/{job_id}/metrics.csv"
    store.put(key, text.getvalue().encode())
    return key
