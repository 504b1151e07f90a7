"""Runs the periodic tasks of the API process beside its requests, each on a thread of its own: none delays another.

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

_STOP_WITHIN_S = 30.0
"""Seconds that a shutdown waits for the tasks; a thread that hangs ends with its process."""


@dataclass
class PeriodicTask:
    """A function to call at an interval, from start to start at least and never twice at once."""

    name: str
    every_s: float
    run: Callable[[], object]
    at_shutdown: bool = False
    """Whether to call it once more when the process stops."""
    wake: threading.Event = field(default_factory=threading.Event)
    """Set it to run the task at once."""

    def call(self) -> None:
        """Run it once; a failure is logged, since the task is repeated."""
        try:
            self.run()
        except KitaeError as error:
            logger.warning("background task %s failed and is retried: %s", self.name, error)
        except Exception:  # a bug in a task must not end it for the life of the process
            logger.exception("background task %s failed and is retried", self.name)


@dataclass
class BackgroundLoop:
    """The periodic tasks of one process."""

    tasks: list[PeriodicTask]
    _stopped: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for task in self.tasks:
            thread = threading.Thread(target=self._repeat, args=(task,), name=f"background {task.name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Stop the threads, then run the `at_shutdown` tasks. Blocks until they are done, for half a minute at most."""
        self._stopped.set()
        for task in self.tasks:
            task.wake.set()
        deadline_s = time.monotonic() + _STOP_WITHIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        for task in self.tasks:
            if task.at_shutdown:
                task.call()

    def _repeat(self, task: PeriodicTask) -> None:
        while not self._stopped.is_set():
            task.wake.clear()
            task.call()
            task.wake.wait(task.every_s)
