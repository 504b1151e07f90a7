"""How much a key, and all of them together, may use: requests and tokens a minute, and requests at the same time.

Owns the counting and the words of a refusal. Does not know who asks, nor HTTP beyond a refusal's headers (`auth`). One
limiter counts what one replica of the ingress sees: with R replicas a key gets up to R times its limit, for nothing is
divided by R, which changes while they run. Not for threads: everything happens on one event loop.

What it promises, for a limit of N a minute:
- requests: no 60 seconds, wherever they begin, see more than N begin. They are counted by the second, so a place comes
  free at most a second later than it could.
- tokens: they are known when an answer is complete, so a request begins while any are left and may then use more. What
  it used too much is a debt that is paid off at N a minute, and until then nothing begins. So over any time a key gets
  N a minute and one minute's N at once, besides what those requests use that had begun when the last were gone.
- a refusal's Retry-After is when a request would begin if nobody else's did before; a place among the requests at the
  same time comes free when another ends, which nobody knows: there it is one second.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ray_jobs.tenancy.api_keys import Limits
from serving.http.errors import ApiError

_MINUTE_S = 60.0
_SWEEP_FROM = 1024
"""Keys that are counted before those at rest are forgotten for the first time."""
_ROUNDING = 1e-6  # of a token: less than any time can be told by


class Window:
    """How often something happened in the last minute, by the second: at most 61 pairs, however often that is."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int]] = deque()
        """(second, how often), oldest first."""
        self._total = 0

    def add(self, now_s: float) -> None:
        """It happens now."""
        second, count = math.floor(now_s), 0
        if self._seconds and self._seconds[-1][0] == second:
            count = self._seconds.pop()[1]
        self._seconds.append((second, count + 1))
        self._total += 1

    def total(self, now_s: float) -> int:
        """How often in the last minute; a second that is partly in it counts as a whole."""
        while self._seconds and _gone_s(self._seconds[0][0]) <= now_s:
            self._total -= self._seconds.popleft()[1]
        return self._total

    def wait_s(self, limit: int, now_s: float) -> float:
        """Until it may happen again, for `limit` a minute."""
        too_many = self.total(now_s) - limit + 1
        wait_s = 0.0
        for second, count in self._seconds:
            if too_many <= 0:
                break
            too_many -= count
            wait_s = _gone_s(second) - now_s
        return wait_s

    def empty_s(self, now_s: float) -> float:
        """Until nothing is left in it."""
        return _gone_s(self._seconds[-1][0]) - now_s if self.total(now_s) else 0.0


class Debt:
    """What was used, less what has been paid off since at the limit's rate: a token bucket counted from its full end,
    so that a limit may change while it is used."""

    def __init__(self) -> None:
        self._used = 0.0
        self._at_s = 0.0

    def add(self, amount: int, limit: int, now_s: float) -> None:
        """So much was used, for `limit` a minute."""
        self._used = self.used(limit, now_s) + amount
        self._at_s = now_s

    def used(self, limit: int, now_s: float) -> float:
        """What is not paid off yet."""
        return max(0.0, self._used - (now_s - self._at_s) * limit / _MINUTE_S)

    def wait_s(self, limit: int, now_s: float) -> float:
        """Until one is left."""
        short = self.used(limit, now_s) + 1 - limit
        return short * _MINUTE_S / limit if short > _ROUNDING else 0.0

    def empty_s(self, limit: int, now_s: float) -> float:
        """Until all are left."""
        return self.used(limit, now_s) * _MINUTE_S / limit


@dataclass
class _Usage:
    """Of one key."""

    limits: Limits
    """As they were when it was last used."""
    used_at_s: float
    requests: Window = field(default_factory=Window)
    tokens: Debt = field(default_factory=Debt)
    ongoing: int = 0

    def at_rest(self, now_s: float) -> bool:
        """Whether a new one would be the same."""
        limit = self.limits.tokens_per_minute
        owes = limit is not None and self.tokens.used(limit, now_s) > 0
        return self.ongoing == 0 and not owes and now_s - self.used_at_s > _MINUTE_S + 1


@dataclass(frozen=True)
class Refusal:
    """Why a request may not begin now."""

    what: str
    limit: int
    wait_s: float

    def error(self) -> ApiError:
        """429, with whole seconds to wait: at least one."""
        wait_s = max(1, math.ceil(self.wait_s))
        message = f"this key may have {self.limit} {self.what}: try again in {wait_s} s"
        return ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(wait_s)})


class Limiter:
    """Counts for every key, and for the process. Its memory is bounded by the keys that were used in the last minute,
    which are keys that exist: whoever has none is turned away before."""

    def __init__(self, *, max_ongoing_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_ongoing_requests = max_ongoing_requests
        self._clock = clock
        self._ongoing = 0
        self._usage: dict[str, _Usage] = {}
        self._sweep_at = _SWEEP_FROM

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place among all requests of the process. Raises ApiError 429 `overloaded` where none is left: a
        queue that grows answers nobody in time."""
        if self._ongoing >= self._max_ongoing_requests:
            message = f"the endpoint is at work on {self._ongoing} requests and takes no more: try again in a moment"
            raise ApiError(429, message, code="overloaded", headers={"Retry-After": "1"})
        self._ongoing += 1
        try:
            yield
        finally:
            self._ongoing -= 1

    @contextmanager
    def request(self, key_id: str, limits: Limits) -> Iterator[None]:
        """Counts one request of a key, while it lasts too. Raises ApiError 429, and counts nothing, where a limit is
        met."""
        if not _counted(limits):
            yield
            return
        now_s = self._clock()
        usage = self._of(key_id, limits, now_s)
        refusal = decide(usage, now_s)
        if refusal is not None:
            error = refusal.error()
            error.headers |= self.headers(key_id, limits)
            raise error
        if limits.requests_per_minute is not None:
            usage.requests.add(now_s)
        usage.ongoing += 1
        try:
            yield
        finally:
            usage.ongoing -= 1
            usage.used_at_s = self._clock()

    def charge(self, key_id: str, tokens: int) -> None:
        """Tokens that a request of the key has used, read and written. To be called before the request is over."""
        usage = self._usage.get(key_id)
        if usage is not None and usage.limits.tokens_per_minute is not None:
            usage.tokens.add(tokens, usage.limits.tokens_per_minute, self._clock())

    def headers(self, key_id: str, limits: Limits) -> dict[str, str]:
        """OpenAI's `x-ratelimit-…` headers: of each limit a minute what it is, what is left, and when all of it is."""
        now_s = self._clock()
        usage = self._usage.get(key_id) or _Usage(limits, now_s)
        found: dict[str, str] = {}
        if (limit := limits.requests_per_minute) is not None:
            left = max(0, limit - usage.requests.total(now_s))
            found |= _headers("requests", limit, left, usage.requests.empty_s(now_s))
        if (limit := limits.tokens_per_minute) is not None:
            left = max(0, math.floor(limit - usage.tokens.used(limit, now_s) + _ROUNDING))
            found |= _headers("tokens", limit, left, usage.tokens.empty_s(limit, now_s))
        return found

    def _of(self, key_id: str, limits: Limits, now_s: float) -> _Usage:
        usage = self._usage.get(key_id)
        if usage is None:
            if len(self._usage) >= self._sweep_at:
                self._usage = {key: used for key, used in self._usage.items() if not used.at_rest(now_s)}
                self._sweep_at = max(_SWEEP_FROM, 2 * len(self._usage))
            usage = self._usage[key_id] = _Usage(limits, now_s)
        usage.limits, usage.used_at_s = limits, now_s
        return usage


def decide(usage: _Usage, now_s: float) -> Refusal | None:
    """Whether a request may begin: None, or the limit that takes the longest to allow it. Pure."""
    limits = usage.limits
    refusals = []
    if (limit := limits.requests_per_minute) is not None:
        refusals.append(Refusal("requests a minute", limit, usage.requests.wait_s(limit, now_s)))
    if (limit := limits.tokens_per_minute) is not None:
        refusals.append(Refusal("tokens a minute", limit, usage.tokens.wait_s(limit, now_s)))
    if (limit := limits.concurrent_requests) is not None and usage.ongoing >= limit:
        refusals.append(Refusal("requests at the same time", limit, 1.0))
    longest = max(refusals, key=lambda refusal: refusal.wait_s, default=None)
    return longest if longest is not None and longest.wait_s > 0 else None


def check_tokens(limits: Limits, tokens: int) -> None:
    """For a route that knows how many tokens a request asks for. Raises ApiError 429, which no client should try
    again, where that is more than its key gets in a minute."""
    limit = limits.tokens_per_minute
    if limit is not None and tokens > limit:
        message = f"this request asks for {tokens} tokens, and its key may have {limit} a minute: ask for fewer"
        raise ApiError(429, message, code="rate_limit_exceeded", headers={"x-should-retry": "false"})


def _counted(limits: Limits) -> bool:
    return any((limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_requests))


def _gone_s(second: int) -> float:
    """When a second and all that happened in it is over a minute ago."""
    return second + 1 + _MINUTE_S


def _headers(what: str, limit: int, left: int, reset_s: float) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(left),
        f"x-ratelimit-reset-{what}": duration(reset_s),
    }


def duration(seconds: float) -> str:
    """As OpenAI writes it: `17ms`, `42s`, `6m0s`; rounded up, so that what was waited for is there."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest_s = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest_s}s" if minutes else f"{rest_s}s"
