"""Rate limits: requests and tokens a minute and concurrent requests of a key, concurrent requests of the process.

Owns the counting and the text of a refusal. Does not know who the caller is (`auth`), nor HTTP beyond response headers.

A limiter counts the requests of one ingress replica; with R replicas a key gets up to R times its limit. It is not
thread-safe: all calls happen on one event loop.

Guarantees for a limit of N a minute:
- requests: at most N begin in any 60 seconds. They are counted by the second, so capacity may return a second late.
- tokens: a token bucket. Tokens are known when an answer is complete: a request begins while any are left and may
  overdraw the bucket; then no request begins until the bucket is positive again. In any period a key uses at most N a
  minute, one minute's N at once, and the tokens of requests already running when the bucket became empty. A generation
  begins only while the most tokens that it may generate are left, beyond those set aside for running ones.
- Retry-After: the time at which a request begins if no other request does before. For concurrent requests, which end at
  an unknown time, it is one second.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter

from ray_jobs.tenancy.api_keys import Limits
from serving.http.errors import ApiError

_MINUTE_S = 60.0
_ROUNDING = 1e-6
"""Float tolerance, in tokens."""
_FIRST_SWEEP_KEYS = 1024
"""Number of tracked keys at which idle keys are first dropped."""


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


@dataclass
class TokenBucket:
    """A token bucket of one minute's tokens, refilled at the limit's rate; it may be overdrawn.

    Stores the tokens missing from a full bucket instead of the fill level, so that the limit may change at any time.
    """

    _used: float = 0.0
    _at_s: float = 0.0

    def take(self, tokens: int, limit: int, now_s: float) -> None:
        """Take tokens from a bucket that refills at `limit` a minute."""
        self._used = self.used(limit, now_s) + tokens
        self._at_s = now_s

    def used(self, limit: int, now_s: float) -> float:
        """Tokens missing from a full bucket."""
        return max(0.0, self._used - (now_s - self._at_s) * limit / _MINUTE_S)

    def wait_s(self, limit: int, now_s: float) -> float:
        """Seconds until the bucket has a whole token."""
        missing = self.used(limit, now_s) + 1 - limit
        return missing * _MINUTE_S / limit if missing > _ROUNDING else 0.0

    def reset_s(self, limit: int, now_s: float) -> float:
        """Seconds until the bucket is full."""
        return self.used(limit, now_s) * _MINUTE_S / limit


def _expires_s(second: int) -> float:
    """Time at which all of a second is more than a minute ago."""
    return second + 1 + _MINUTE_S


@dataclass
class _KeyUsage:
    limits: Limits
    """The key's limits at its latest request."""
    used_at_s: float
    requests: SlidingWindow = field(default_factory=SlidingWindow)
    tokens: TokenBucket = field(default_factory=TokenBucket)
    ongoing: int = 0
    reserved: int = 0
    """Tokens that running requests may still use."""

    def is_idle(self, now_s: float) -> bool:
        """Return whether this object equals a new one, so that it can be dropped."""
        limit = self.limits.tokens_per_minute
        is_full = limit is None or self.tokens.used(limit, now_s) == 0
        return self.ongoing == 0 and is_full and now_s - self.used_at_s > _MINUTE_S + 1


@dataclass
class RateLimiter:
    """Counts the requests and tokens of each key, and the concurrent requests of the process.

    Memory is bounded by the valid keys used in the last minute: a request without a valid key is refused earlier.
    """

    max_ongoing_requests: int
    clock: Callable[[], float] = time.monotonic
    _ongoing: int = 0
    _usage: dict[str, _KeyUsage] = field(default_factory=dict)
    _sweep_at_keys: int = _FIRST_SWEEP_KEYS

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the process's request slots. Raises ApiError 429 `overloaded` if none is free."""
        if self._ongoing >= self.max_ongoing_requests:
            message = f"the endpoint already answers {self._ongoing} requests, its maximum: try again in a moment"
            raise ApiError(429, message, code="overloaded", headers={"Retry-After": "1"})
        self._ongoing += 1
        try:
            yield
        finally:
            self._ongoing -= 1

    @contextmanager
    def request(self, key_id: str, limits: Limits) -> Iterator[None]:
        """Count a request of a key while it runs. Raises ApiError 429, and counts nothing, if a limit is reached."""
        if not any((limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_requests)):
            yield
            return
        now_s = self.clock()
        usage = self._usage_of(key_id, limits, now_s)
        refusal = refusal_of(usage, now_s)
        if refusal is not None:
            refusal.headers |= self.headers(key_id, limits)
            raise refusal
        if limits.requests_per_minute is not None:
            usage.requests.add(now_s)
        usage.ongoing += 1
        try:
            yield
        finally:
            usage.ongoing -= 1
            usage.used_at_s = self.clock()

    @contextmanager
    def reserved(self, key_id: str, limits: Limits, tokens: int) -> Iterator[None]:
        """Set aside the most tokens that a running request may generate, until it ends and is charged.

        More than the limit of a minute count as that limit. Raises ApiError 429 if fewer are left.
        """
        limit = limits.tokens_per_minute
        if limit is None:
            yield
            return
        now_s = self.clock()
        usage = self._usage_of(key_id, limits, now_s)
        tokens = min(tokens, limit)
        left = limit - usage.tokens.used(limit, now_s) - usage.reserved
        if tokens - left > _ROUNDING:
            wait_s = max(1, math.ceil((tokens - left) * _MINUTE_S / limit))
            has = f"this key may have {limit} tokens a minute and has {max(0, math.floor(left))} left"
            message = f"{has}; this request may take {tokens}: lower max_tokens, or try again in {wait_s} s"
            headers = {"Retry-After": str(wait_s)} | self.headers(key_id, limits)
            raise ApiError(429, message, code="rate_limit_exceeded", headers=headers)
        usage.reserved += tokens
        try:
            yield
        finally:
            usage.reserved -= tokens

    def charge(self, key_id: str, tokens: int) -> None:
        """Take the prompt and completion tokens of a request from its key's bucket. Call before the request ends."""
        usage = self._usage.get(key_id)
        if usage is not None and usage.limits.tokens_per_minute is not None:
            usage.tokens.take(tokens, usage.limits.tokens_per_minute, self.clock())

    def headers(self, key_id: str, limits: Limits) -> dict[str, str]:
        """OpenAI's `x-ratelimit-…` headers: limit, remaining and reset time of each limit a minute."""
        now_s = self.clock()
        usage = self._usage.get(key_id) or _KeyUsage(limits, now_s)
        found: dict[str, str] = {}
        if (limit := limits.requests_per_minute) is not None:
            remaining = max(0, limit - usage.requests.total(now_s))
            found |= _headers("requests", limit, remaining, usage.requests.reset_s(now_s))
        if (limit := limits.tokens_per_minute) is not None:
            left = limit - usage.tokens.used(limit, now_s) - usage.reserved
            remaining = max(0, math.floor(left + _ROUNDING))
            found |= _headers("tokens", limit, remaining, usage.tokens.reset_s(limit, now_s))
        return found

    def _usage_of(self, key_id: str, limits: Limits, now_s: float) -> _KeyUsage:
        usage = self._usage.get(key_id)
        if usage is None:
            if len(self._usage) >= self._sweep_at_keys:
                self._usage = {key: used for key, used in self._usage.items() if not used.is_idle(now_s)}
                self._sweep_at_keys = max(_FIRST_SWEEP_KEYS, 2 * len(self._usage))
            usage = self._usage[key_id] = _KeyUsage(limits, now_s)
        usage.limits, usage.used_at_s = limits, now_s
        return usage


def refusal_of(usage: _KeyUsage, now_s: float) -> ApiError | None:
    """429 with the limit that takes longest to allow a request, or None if it may begin. Pure."""
    limits, waits = usage.limits, [(0.0, 0, "")]
    if (limit := limits.requests_per_minute) is not None:
        waits.append((usage.requests.wait_s(limit, now_s), limit, "requests a minute"))
    if (limit := limits.tokens_per_minute) is not None:
        waits.append((usage.tokens.wait_s(limit, now_s), limit, "tokens a minute"))
    if (limit := limits.concurrent_requests) is not None and usage.ongoing >= limit:
        waits.append((1.0, limit, "requests at the same time"))
    longest_s, limit, what = max(waits, key=itemgetter(0))
    if longest_s == 0:
        return None
    wait_s = max(1, math.ceil(longest_s))
    message = f"this key may have {limit} {what}: try again in {wait_s} s"
    return ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(wait_s)})


def _headers(what: str, limit: int, remaining: int, reset_s: float) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(remaining),
        f"x-ratelimit-reset-{what}": duration(reset_s),
    }


def duration(seconds: float) -> str:
    """Format a duration as OpenAI does, rounded up: `17ms`, `42s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest_s = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest_s}s" if minutes else f"{rest_s}s"
