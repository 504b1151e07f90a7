"""Metrics of a training: events while it runs, a CSV file once it has ended.

Owns which steps become events, how much work a restart repeats, and both formats. Does not know what measures them.
"""

from __future__ import annotations

import csv
import io
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from ray_jobs import jobs
from ray_jobs.jobs import Job
from ray_jobs.jobs.progress import duration
from ray_jobs.storage import Workspace
from ray_jobs.training.checkpoint import Checkpoint

EVERY_S = 10.0
"""Least time between two events without an evaluation."""
EVENTS_A_TRAINING = 1000
"""Most events of a training without an evaluation, however long it takes."""

_NAMES = {
    "loss": "train_loss",
    "learning_rate": "learning_rate",
    "tokens_per_s": "tokens_per_s",
    "held_out_loss": "valid_loss",
    "held_out_accuracy": "valid_mean_token_accuracy",
}
"""Names in events of a step's metrics."""


def is_due(step: int, total_steps: int, *, last_step: int, seconds_since: float, measured: bool) -> bool:
    """Whether a step becomes an event: every step with an evaluation, and some of the others. Pure."""
    if step <= last_step:  # repeated by restarted workers
        return False
    return measured or (seconds_since >= EVERY_S and (step - last_step) * EVENTS_A_TRAINING >= total_steps)


def repeated_work(from_step: int, seen: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """(steps, seconds of work) that a start at `from_step` repeats. Pure.

    `seen`: (step, Unix seconds) of the steps reported by the start before it, in order; the steps between two of them
    count as equally long.
    """
    if not seen or seen[-1][0] <= from_step:
        return 0, 0.0
    last_step, last_s = seen[-1]
    after = next(i for i, (step, _) in enumerate(seen) if step > from_step)
    step, at_s = seen[after]
    if after > 0:
        before_step, before_s = seen[after - 1]
        began_s = before_s + (at_s - before_s) * (from_step - before_step) / (step - before_step)
    else:  # before the first report: steps as long as the reported ones
        rate_s = (last_s - at_s) / (last_step - step) if last_step > step else 0.0
        began_s = at_s - rate_s * (step - from_step)
    return last_step - from_step, last_s - began_s


class TrainingMetrics:
    """Writes the events of one training in one attempt of its job."""

    def __init__(
        self, job: Job, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] | None = None
    ) -> None:
        self._job, self._clock, self._wall = job, clock, wall or job.store.now_s
        self._last_step, self._last_s = 0, float("-inf")
        self._seen: deque[tuple[int, float]] | None = None
        """(step, Unix seconds) reported by the current start. None: no start has reported in this attempt."""

    def record(self, step: int, total_steps: int, metrics: Mapping[str, float | str]) -> None:
        """Record a step; most become no event."""
        self._see(step, int(metrics.get("began_at_step", 0)))
        now_s = self._clock()
        measured, since_s = "held_out_loss" in metrics, now_s - self._last_s
        if not is_due(step, total_steps, last_step=self._last_step, seconds_since=since_s, measured=measured):
            return
        self._last_step, self._last_s = step, now_s
        data = {name: metrics[ours] for ours, name in _NAMES.items() if ours in metrics}
        message = f"step {step} of {total_steps}: training loss {data['train_loss']:.4f}"
        if measured:
            message += f", validation loss {data['valid_loss']:.4f}"
        self._job.event("info", message, {"step": step, "total_steps": total_steps, **data}, kind="metrics")

    def _see(self, step: int, began_at_step: int) -> None:
        """Report the repeated work once a new start reports its first steps."""
        is_first = self._seen is None
        if self._seen is None:
            self._seen = deque(self._seen_before(began_at_step), 10_000)  # at most one a second is reported
        if self._seen and (is_first or step <= self._seen[-1][0]):
            steps, seconds = repeated_work(began_at_step, self._seen)
            self._seen.clear()
            time_text = f"{seconds:.0f} s" if seconds < 120 else duration(seconds)
            repeated = f"{steps} steps ({time_text} of work) are repeated" if steps else "no step is repeated"
            data = {"from_step": began_at_step, "steps_again": steps, "seconds_again": round(seconds, 1)}
            self._job.event("info", f"resumes from step {began_at_step}; {repeated}", data)
        if not self._seen or step > self._seen[-1][0]:
            self._seen.append((step, self._wall()))

    def _seen_before(self, began_at_step: int) -> list[tuple[int, float]]:
        """The steps reported by the last attempt, back to where this one resumes."""
        if self._job.attempt == 1:
            return []
        found: list[tuple[int, float]] = []
        attempt = None
        for name in jobs.newest_names(self._job.store, self._job.id):
            event = jobs.event(self._job.store, self._job.id, name)
            if event is None or event.kind != "metrics" or event.attempt == self._job.attempt:
                continue
            attempt = event.attempt if attempt is None else attempt
            if event.attempt != attempt or "step" not in event.data:
                break
            found.append((int(event.data["step"]), event.at.timestamp()))
            if found[-1][0] <= began_at_step:
                break
        return found[::-1]


def write_csv(store: Workspace, job_id: str, checkpoints: Iterable[Checkpoint]) -> str | None:
    """Write `jobs/{id}/metrics.csv`, a line for each step in the checkpoints. Returns None without any.

    The columns are OpenAI's. `train_accuracy` is empty: a step computes the loss of its rows, not their accuracy.
    """
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
    columns = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines[step] for step in sorted(lines))
    key = f"jobs/{job_id}/metrics.csv"
    store.put(key, text.getvalue().encode())
    return key
