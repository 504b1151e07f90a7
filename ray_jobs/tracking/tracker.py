"""What a tracker is: one run that takes the metrics of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

METRICS = ("loss", "learning_rate", "tokens_per_s", "held_out_loss", "held_out_accuracy")
"""Metrics of a step that trackers get, under these names."""

End = Literal["finished", "failed", "stopped"]
"""How a run ended. `stopped`: the job was paused or cancelled."""


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
        """Find the job's run or create it. Returns the last step that it holds; 0 for a new one.

        `began_at_step`: step of the checkpoint that the training resumed from; 0 without one.
        """

    def write(self, points: Sequence[Point]) -> None:
        """Append steps, in order, each once."""

    def flush(self) -> None:
        """Make what was written durable."""

    def close(self, end: End | None) -> None:
        """End the run. None: another attempt has taken the job over and continues the run."""
