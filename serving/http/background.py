"""What the API process does besides answering: jobs brought on their way, webhooks, what has expired.

One thread, that no request waits for. What fails is done again at the next turn, in this process or another.
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
class Chore:
    """Something to be done every so often."""

    name: str
    every_s: float
    do: Callable[[], object]
    at_end: bool = False
    due_s: float = 0.0


@dataclass
class Background:
    """A process's chores."""

    chores: list[Chore]
    wake: threading.Event = field(default_factory=threading.Event)
    """Set: the first chore, jobs, is done at once."""
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="background", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Do every chore that is `at_end` once more; returns when that is done."""
        self._stopped.set()
        self.wake.set()
        if self._thread is not None:
            self._thread.join()
        for chore in self.chores:
            if chore.at_end:
                self._do(chore)

    def _work(self) -> None:
        while not self._stopped.is_set():
            if self.wake.is_set():
                self.wake.clear()
                self.chores[0].due_s = 0.0
            for chore in self.chores:
                if time.monotonic() >= chore.due_s and not self._stopped.is_set():
                    self._do(chore)
            nearest = min(chore.due_s for chore in self.chores)
            self.wake.wait(max(0.05, nearest - time.monotonic()))

    def _do(self, chore: Chore) -> None:
        try:
            chore.do()
        except KitaeError as error:
            logger.warning("%s wait: %s", chore.name, error)
        except Exception:  # a mistake of ours in one chore must not end the others
            logger.exception("%s wait", chore.name)
        chore.due_s = time.monotonic() + chore.every_s
