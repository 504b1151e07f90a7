"""The store's time, from the `Date` header of its answers: the one clock of all replicas, jobs and commands.

Leases, windows, markers and retries are compared with times that another machine wrote, so they are measured on the one
clock that all of them see. Between answers the time runs on this machine's monotonic clock, which no one sets: a local
clock that is minutes off, or is set, changes nothing. Does not know what a time is used for, and makes no request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

_RESET_S = 5.0
"""Difference to the newest answer at which the store's clock was set, and the estimate starts again."""


class StoreClock:
    """Estimates the store's time to a second or better. Thread-safe.

    A header has whole seconds, rounded down, and is read a moment after it was written, so each answer gives a lower
    bound; the estimate is the highest of them.
    """

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._ahead_s: float | None = None
        """The store's time minus the monotonic clock."""
        self._lock = threading.Lock()

    def learn(self, date: str | None) -> None:
        """Take the `Date` header of an answer that has just arrived; one that cannot be read is ignored."""
        try:
            ahead_s = parsedate_to_datetime(date or "").timestamp() - self._monotonic_s()
        except ValueError:
            return
        with self._lock:
            known_s = self._ahead_s
            if known_s is None or ahead_s > known_s or ahead_s < known_s - _RESET_S:
                self._ahead_s = ahead_s

    def now_s(self) -> float | None:
        """Unix seconds. None: no answer had a time yet."""
        return None if self._ahead_s is None else self._ahead_s + self._monotonic_s()
