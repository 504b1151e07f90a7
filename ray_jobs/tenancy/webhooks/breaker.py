"""The circuit breaker of a receiver: after several failures in a row it gets no requests for a while. Pure.

While it is open, events wait without using up their tries. Then one request is tried: an answer closes the breaker,
a failure opens it for twice as long.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import AwareDatetime, BaseModel

FAILURES = 5
"""Failures in a row that open the breaker."""
FIRST_S = 60.0
LONGEST_S = 3600.0


class OpenBreaker(BaseModel, frozen=True):
    """An open breaker, part of its endpoint's record."""

    failures: int
    """Failures in a row."""
    until: AwareDatetime
    """No request before this time."""
    why: str
    """The last failure: the HTTP status, or the class of the error."""


def after_failure(failures: int, why: str, now: datetime) -> OpenBreaker | None:
    """The breaker after so many failures in a row. None: it stays closed."""
    if failures < FAILURES:
        return None
    open_s = min(LONGEST_S, FIRST_S * 2.0 ** min(failures - FAILURES, 20))
    return OpenBreaker(failures=failures, until=now + timedelta(seconds=open_s), why=why)
