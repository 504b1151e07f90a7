"""Counters behind the rate limits: a token bucket for tokens a minute, a sliding window for requests a minute.

Pure: the caller passes the time and the limit, so a limit may change between two calls. Knows no key and no HTTP.
"""

from __future__ import annotations

import math
from collections import Counter

MINUTE_S = 60.0
ROUNDING = 1e-6
"""Float tolerance, in tokens."""


class SlidingWindow:
    """Counts events of the last minute by the second: at most 61 entries, whatever the rate."""

    def __init__(self) -> None:
        self._seconds: Counter[int] = Counter()
        """Second → events, oldest first."""

    def add(self, now_s: float) -> None:
        """Count one event."""
        self._seconds[math.floor(now_s)] += 1

    def total(self, now_s: float) -> int:
        """Events of the last minute; a second that overlaps it counts in full."""
        for second in [second for second in self._seconds if _expires_s(second) <= now_s]:
            del self._seconds[second]
        return self._seconds.total()

    def wait_s(self, limit: int, now_s: float) -> float:
        """Seconds until another event is within `limit` a minute."""
        excess = self.total(now_s) - limit + 1
        wait_s = 0.0
        for second, count in self._seconds.items():
            if excess <= 0:
                break
            excess -= count
            wait_s = _expires_s(second) - now_s
        return wait_s

    def reset_s(self, now_s: float) -> float:
        """Seconds until the window is empty."""
        return _expires_s(max(self._seconds)) - now_s if self.total(now_s) else 0.0


class TokenBucket:
    """A token bucket of one minute's tokens, refilled at the limit's rate; it may be overdrawn.

    Stores the tokens missing from a full bucket instead of the fill level, so that the limit may change at any time.
    """

    def __init__(self) -> None:
        self._used = 0.0
        self._at_s = 0.0

    def take(self, tokens: int, limit: int, now_s: float) -> None:
        """Take tokens from a bucket that refills at `limit` a minute."""
        self._used = self.used(limit, now_s) + tokens
        self._at_s = now_s

    def used(self, limit: int, now_s: float) -> float:
        """Tokens missing from a full bucket."""
        return max(0.0, self._used - (now_s - self._at_s) * limit / MINUTE_S)

    def wait_s(self, limit: int, now_s: float) -> float:
        """Seconds until the bucket has a whole token."""
        missing = self.used(limit, now_s) + 1 - limit
        return missing * MINUTE_S / limit if missing > ROUNDING else 0.0

    def reset_s(self, limit: int, now_s: float) -> float:
        """Seconds until the bucket is full."""
        return self.used(limit, now_s) * MINUTE_S / limit


def _expires_s(second: int) -> float:
    """Time at which all of a second is more than a minute ago."""
    return second + 1 + MINUTE_S
