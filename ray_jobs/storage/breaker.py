"""Whether a request to a store that does not answer is worth sending. Knows no requests and no store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

TRY_EVERY_S = 1.0
"""While the store does not answer, one request in this time tries it; the others fail at once."""


@dataclass
class Breaker:
    """Shared by all requests of a process. Thread-safe."""

    clock: Callable[[], float] = time.monotonic
    _tried_at: float | None = None
    """Time of the last try since the store stopped answering. None: it answers."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admits(self) -> bool:
        """Whether to send a request now."""
        with self._lock:
            if self._tried_at is None:
                return True
            due = self.clock() - self._tried_at >= TRY_EVERY_S
            if due:
                self._tried_at = self.clock()
            return due

    def answered(self) -> None:
        """The store answered, with success or not."""
        self._tried_at = None

    def failed(self) -> None:
        """A request was given up without an answer."""
        with self._lock:
            self._tried_at = self.clock()
