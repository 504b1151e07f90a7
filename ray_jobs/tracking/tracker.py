"""What a tracker is: one run that takes the metrics of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

METRICS = ("loss", "learning_rate", "tokens_per_s", "held_out_loss", "held_out_accuracy")
"""Metrics of a step that trackers get, under these names."""

End = Literal["finished", "failed", "stopped"]
"""How a run ended. `stopped`: the job was paused or cancelled."""


@dataclass(frozen=True)
class Run:
    """What identifies a run, and its parameters."""

    job_id: str
    name: str
    """Name within the job: `training` or `trial-{n}`."""
    digest: str
    """Digest of the training or of the search: corrected rows begin another run."""
    title: str
    """Display name."""
    params: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def path(self) -> str:
        """The run's folder in the store, below the job's."""
        return f"{self.name}-{self.digest}"

    @property
    def id(self) -> str:
        return f"{self.job_id}-{self.path}"


@dataclass(frozen=True)
class Point:
    """The metrics of one step."""

    step: int
    at_ms: int
    """Unix time in milliseconds; the same in every try, so that a repeated write is the same write."""
    values: dict[str, float]


class Tracker(Protocol):
    """One run in one tracker. Called by one thread; any method may raise, and is then tried again."""

    name: str
    """The tracker's name in messages."""

    def open(self, began_at_step: int) -> int:
        """Find the run or create it. Returns the last step that it holds; 0 for a new one.

        `began_at_step`: step of the checkpoint that the training resumed from; 0 without one.
        """

    def write(self, points: Sequence[Point]) -> None:
        """Append steps, in order, each once."""

    def flush(self) -> None:
        """Make what was written durable."""

    def close(self, end: End | None) -> None:
        """End the run. None: another attempt has taken the job over and continues the run."""
