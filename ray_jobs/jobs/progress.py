"""Progress of a long step: a bar on a terminal, else a plain line every few seconds.

Owns the drawing, the rate and the time left. Does not know what the step does, nor where the output goes.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

LINE_EVERY_S = 5.0
"""Seconds between plain lines, besides the last."""
BAR_WIDTH = 24
_SHORT_UNITS = {"tokens_per_s": "tok/s", "rows_per_s": "rows/s", "steps_per_s": "steps/s"}


@dataclass(frozen=True)
class ProgressState:
    """One update, with what the rate is computed from."""

    done: float
    total: float
    unit: str
    metrics: dict[str, float | str] = field(default_factory=dict)
    elapsed_s: float = 0.0
    """Since the first update."""
    done_at_first: float = 0.0
    """`done` at the first update: a step resumed after a restart does not start at 0."""

    def left_s(self) -> float | None:
        """Seconds left at the mean rate so far. None: not known before a hundredth of the work is done."""
        gained = self.done - self.done_at_first
        if gained <= 0 or gained < (self.total - self.done_at_first) / 100 or self.elapsed_s <= 0:
            return None
        return max(0.0, self.total - self.done) * self.elapsed_s / gained


def duration(seconds: float) -> str:
    """`8s`, `1m10s`, `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def metric(name: str, value: float | str) -> str:
    """`loss 2.31`, `181 tok/s`, `rate 2.0e-04`; what a stage is `doing`, alone."""
    shown = name.replace("_", " ")
    if isinstance(value, str):
        return value if name == "doing" else f"{shown} {value}"
    if name.endswith("_per_s"):
        number = f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2f}"
        return f"{number} {_SHORT_UNITS.get(name, name.removesuffix('_per_s') + '/s')}"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{shown} {value:,.0f}"
    if value != 0 and abs(value) < 0.001:
        return f"{shown} {value:.1e}"
    return f"{shown} {value:.3g}" if abs(value) >= 10 else f"{shown} {value:.3f}"


def line(label: str, snapshot: ProgressState, *, ended: bool = False) -> str:
    """`train   [#######.......]  42/120 steps  loss 2.31  181 tok/s  left 1m10s`."""
    share = min(1.0, max(0.0, snapshot.done / snapshot.total)) if snapshot.total > 0 else 0.0  # 0: not known yet
    filled = int(share * BAR_WIDTH)
    if snapshot.unit == "bytes":
        total = snapshot.total or 2**20
        size, unit = (1, "B") if total < 2**10 else (2**10, "KiB") if total < 2**20 else (2**20, "MiB")
        amount = f"{snapshot.done / size:,.0f}/{snapshot.total / size:,.0f} {unit}"
    else:
        amount = f"{snapshot.done:,.0f}/{snapshot.total:,.0f} {snapshot.unit}"
    left_s = snapshot.left_s()
    time_shown = (
        f"took {duration(snapshot.elapsed_s)}" if ended else "" if left_s is None else f"left {duration(left_s)}"
    )
    metrics = [metric(name, value) for name, value in snapshot.metrics.items()]
    bar = f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}]"
    return "  ".join(part for part in (f"{label:<9}", bar, amount, *metrics, time_shown) if part)


class StageProgress:
    """`with StageProgress("train") as progress:`: a live bar on standard error if it is a terminal, else plain lines.

    The last state stays on the screen, with the time the whole step took.
    """

    def __init__(self, label: str, *, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._label = label
        self._out = out or sys.stderr
        self._clock = clock
        self._started_s = clock()
        self._first: tuple[float, float] | None = None  # clock and `done` at the first update
        self._snapshot: ProgressState | None = None
        self._written_s: float | None = None
        self._lock = threading.Lock()  # transfers report from many threads
        self._live = (
            Live(console=Console(file=self._out), refresh_per_second=4, transient=True) if self._out.isatty() else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._live is not None:
                self._live.stop()
            if self._snapshot is not None:
                whole = replace(self._snapshot, elapsed_s=self._clock() - self._started_s)
                self._write(line(self._label, whole, ended=True))

    def update(self, done: float, total: float, unit: str, **metrics: float | str) -> None:
        """`done` of `total` units are done; `bytes` are shown as KiB or MiB, metrics by name, `x_per_s` as a rate."""
        with self._lock:
            now_s, last = self._clock(), self._snapshot
            if last is not None and done < last.done and (total, unit) != (last.total, last.unit):
                self._first = None  # the next of several parts, with a rate of its own
            first_s, first_done = self._first = self._first or (now_s, done)
            self._snapshot = ProgressState(done, total, unit, dict(metrics), now_s - first_s, first_done)
            if self._live is not None:
                self._live.update(Text(line(self._label, self._snapshot), no_wrap=True, overflow="ellipsis"))
            elif self._written_s is None or now_s - self._written_s >= LINE_EVERY_S:
                self._write(line(self._label, self._snapshot))
                self._written_s = now_s

    def _write(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()
