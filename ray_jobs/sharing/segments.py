"""A trial segment and its result, as every way of training one gives it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SegmentStatus = Literal["ok", "not_finite", "out_of_memory", "timed_out", "lost", "failed"]
Params = dict[str, Any]


class TrialSegment(BaseModel):
    """A trial segment: a trial's training from before the decay of its last rung to its next rung."""

    model_config = ConfigDict(frozen=True)

    trial: int
    rung: int
    params: Params
    until: int
    """Last optimizer step."""
    source: str | None = None
    """Segment whose checkpoint before the decay it resumes from. None: the base model."""
    again: bool = False
    """A finalist's second training, from the base with another seed."""

    @property
    def name(self) -> str:
        return f"{self.trial:04d}-{'again' if self.again else self.rung}"


class Result(BaseModel):
    """Result of a trial segment."""

    model_config = ConfigDict(frozen=True)

    run: TrialSegment
    status: SegmentStatus
    loss: float | None = None
    """Loss on the held-out rows. None: not measured."""
    accuracy: float | None = None
    steps: int = 0
    """Steps trained in this segment, including the decay."""
    tokens: int = 0
    seconds: float = 0.0
    """Time of training; of a shared process, its share."""
    trunk: str | None = None
    """Key of the checkpoint before the decay, from which the next segment resumes."""
    checkpoint: str | None = None
    """Key of the measured checkpoint."""
    stored_bytes: int = 0
    """Size of its checkpoints."""
    losses: tuple[float, ...] = ()
    """Training loss of every step from the base model on."""
    error: str | None = None
    shared: bool = False
    """Whether it shared a base model with other trials."""
    start_s: float = 0.0
    """Time from its submission to its first step."""
    ended_at: float = 0.0
    """When it was written, Unix seconds. No decision depends on it."""

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def measured(self, metric: str) -> float | None:
        """A metric by its name in the job file. None: not measured."""
        return {"loss": self.loss, "tokens_per_s": self.tokens_per_s}.get(metric, self.accuracy)

    def value(self, metric: str) -> float:
        """The metric as a value to minimise; infinite for a failed segment."""
        measured = self.measured(metric)
        if self.status != "ok" or self.loss is None or measured is None:
            return float("inf")
        return measured if metric == "loss" else -measured
