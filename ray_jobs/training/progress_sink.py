"""Progress of workers, reported in the process that started them. Does not know what the numbers mean."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

MetricValues = dict[str, float | str]
ProgressUpdate = tuple[float, float, str, MetricValues]
"""(done, total, unit, metrics)."""
ReportProgress = Callable[[float, float, str, MetricValues], None]
"""Receives a ProgressState, for a progress display."""

_POLL_S = 1.0


@contextlib.contextmanager
def progress_sink(report: ReportProgress) -> Iterator[Any]:
    """An actor that workers put their state into, and a thread here that reports it every second.

    Of the states since the last report, the newest is reported, and each that was put with `keep`.
    """
    import ray

    class Sink:
        def __init__(self) -> None:
            self.states: list[ProgressUpdate] = []
            self.keeps_last = True
            self.outcome: str | None = None

        def put(self, state: ProgressUpdate, keep: bool = False) -> None:
            self.states = [*(self.states if self.keeps_last else self.states[:-1]), state]
            self.keeps_last = keep

        def finish(self, outcome: str) -> None:
            self.outcome = outcome

        def answer(self) -> str | None:
            return self.outcome

        def take(self) -> list[ProgressUpdate]:
            taken, self.states = self.states, []
            return taken

    actor: Any = ray.remote(num_cpus=0)(Sink)
    sink = actor.remote()
    done = threading.Event()

    def poll() -> None:
        while True:
            last = done.wait(_POLL_S)
            with contextlib.suppress(Exception):  # a display that fails must not end the job
                for state in ray.get(sink.take.remote(), timeout=10):
                    with contextlib.suppress(Exception):
                        report(*state)
            if last:
                return

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield sink
    finally:
        done.set()
        thread.join(timeout=15)
        ray.kill(sink)
