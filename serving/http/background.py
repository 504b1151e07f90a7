"""Runs the periodic tasks of the API process on one thread, beside its requests.

Owns the schedule. Does not know what the tasks do: each must tolerate being repeated, here or in another process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ray_jobs.errors import KitaeError

logger = logging.getLogger(__name__)


@dataclass
class PeriodicTask:
    """A function to call at an interval."""

    name: str
    every_s: float
    run: Callable[[], object]
    at_shutdown: bool = False
    """Whether to call it once more when the process stops."""
    due_at_s: float = 0.0


@dataclass
class BackgroundLoop:
    """The periodic tasks of one process."""

    tasks: list[PeriodicTask]
    wake: threading.Event = field(default_factory=threading.Event)
    """Set it to run the first task at once."""
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="background", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, then run the `at_shutdown` tasks. Blocks until they are done."""
        self._stopped.set()
        self.wake.set()
        if self._thread is not None:
            self._thread.join()
        for task in self.tasks:
            if task.at_shutdown:
                self._run(task)

    def _work(self) -> None:
        while not self._stopped.is_set():
            if self.wake.is_set():
                self.wake.clear()
                self.tasks[0].due_at_s = 0.0
            for task in self.tasks:
                if time.monotonic() >= task.due_at_s and not self._stopped.is_set():
                    self._run(task)
            next_at_s = min(task.due_at_s for task in self.tasks)
            self.wake.wait(max(0.05, next_at_s - time.monotonic()))

    def _run(self, task: PeriodicTask) -> None:
        try:
            task.run()
        except KitaeError as error:
            logger.warning("background task %s failed and is retried: %s", task.name, error)
        except Exception:  # a bug in one task must not stop the others
            logger.exception("background task %s failed and is retried", task.name)
        task.due_at_s = time.monotonic() + task.every_s
