"""The rate limiter's guarantees under arbitrary traffic, on a simulated clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.tenancy.api_keys import Limits
from serving.access.rate_limiter import RateLimiter, SlidingWindow, duration
from serving.http.errors import ApiError

GAPS_S = st.lists(st.one_of(st.just(0.0), st.floats(0.0, 5.0), st.floats(20.0, 70.0)), min_size=1, max_size=200)


class Clock:
    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def make_limiter(clock: Callable[[], float], *, max_ongoing_requests: int = 10**6) -> RateLimiter:
    return RateLimiter(max_ongoing_requests=max_ongoing_requests, clock=clock)


def ask(limiter: RateLimiter, limits: Limits, *, tokens: int = 0, key_id: str = "k") -> int | None:
    """Make one request. Returns its Retry-After in seconds, or None if it was admitted."""
    try:
        with limiter.request(key_id, limits):
            limiter.charge(key_id, tokens)
    except ApiError as error:
        refused = error
    else:
        return None
    assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
    return int(refused.headers["Retry-After"])


@given(start_s=st.floats(0, 1e6), limit=st.integers(1, 12), gaps_s=GAPS_S)
def test_no_minute_has_more_requests_than_the_limit(start_s: float, limit: int, gaps_s: list[float]) -> None:
    clock = Clock(start_s)
    limiter, limits, begun_s = make_limiter(clock), Limits(requests_per_minute=limit), []
    for gap_s in gaps_s:
        clock.now_s += gap_s
        if ask(limiter, limits) is None:
            begun_s.append(clock.now_s)
    for first_s, next_s in zip(begun_s, begun_s[limit:], strict=False):
        assert next_s - first_s >= 60.0
    assert begun_s


@given(start_s=st.floats(0, 1e6), limit=st.integers(1, 50), gap_s=st.floats(0.0, 3.0))
def test_nearly_the_whole_limit_can_be_used(start_s: float, limit: int, gap_s: float) -> None:
    """A client that always retries in time gets at least the limit in every 61 seconds."""
    clock = Clock(start_s)
    limiter, limits = make_limiter(clock), Limits(requests_per_minute=limit)
    begun = 0
    while clock.now_s < start_s + 5 * 61 + 60:
        wait_s = ask(limiter, limits)
        begun += wait_s is None
        clock.now_s += gap_s / limit if wait_s is None else wait_s
    assert begun >= 5 * limit


@given(
    start_s=st.floats(0, 1e6),
    requests=st.one_of(st.none(), st.integers(1, 8)),
    tokens=st.one_of(st.none(), st.integers(1, 1000)),
    steps=st.lists(st.tuples(st.floats(0.0, 8.0), st.integers(0, 3000)), max_size=60),
)
def test_retry_after_is_sufficient_and_minimal(
    start_s: float, requests: int | None, tokens: int | None, steps: list[tuple[float, int]]
) -> None:
    clock = Clock(start_s)
    limiter, limits = make_limiter(clock), Limits(requests_per_minute=requests, tokens_per_minute=tokens)
    for gap_s, used in steps:
        clock.now_s += gap_s
        wait_s = ask(limiter, limits, tokens=used)
        if wait_s is None:
            continue
        refused_s = clock.now_s
        assert wait_s >= 1
        if wait_s > 1:
            clock.now_s = refused_s + wait_s - 1.001
            assert ask(limiter, limits) is not None
        clock.now_s = refused_s + wait_s
        assert ask(limiter, limits, tokens=used) is None


@given(
    start_s=st.floats(0, 1e6),
    limit=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(0, 3000)), min_size=1, max_size=80),
)
def test_tokens_of_any_period_are_at_most_the_rate_and_one_full_bucket(
    start_s: float, limit: int, steps: list[tuple[float, int]]
) -> None:
    clock = Clock(start_s)
    limiter, limits = make_limiter(clock), Limits(tokens_per_minute=limit)
    charged: list[tuple[float, int]] = []
    for gap_s, used in steps:
        clock.now_s += gap_s
        if ask(limiter, limits, tokens=used) is None:
            for first in range(len(charged) + 1):
                since = charged[first:]
                span_s = clock.now_s - since[0][0] if since else 0.0
                assert sum(tokens for _, tokens in since) <= limit + limit * span_s / 60 + 1e-3
            charged.append((clock.now_s, used))


def test_an_overdrawn_bucket_refills_at_the_rate_of_the_limit() -> None:
    clock = Clock()
    limiter, limits = make_limiter(clock), Limits(tokens_per_minute=60)
    assert ask(limiter, limits, tokens=300) is None
    assert ask(limiter, limits) == 241  # overdrawn by 240 tokens at one a second, and one token for the request
    clock.now_s += 240
    assert ask(limiter, limits) == 1
    clock.now_s += 1
    assert ask(limiter, limits) is None


def test_concurrent_requests_are_counted_until_they_return_or_raise() -> None:
    limiter, limits = make_limiter(Clock()), Limits(concurrent_requests=2)
    with ExitStack() as held:
        held.enter_context(limiter.request("k", limits))
        held.enter_context(limiter.request("k", limits))
        assert ask(limiter, limits) == 1
        assert ask(limiter, limits, key_id="another") is None
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), limiter.request("k", limits):
            _ = 1 / 0
    assert ask(limiter, limits) is None


def test_a_refused_request_is_not_counted() -> None:
    clock = Clock()
    limiter, limits = make_limiter(clock), Limits(requests_per_minute=1, concurrent_requests=5)
    assert ask(limiter, limits) is None
    for _ in range(100):
        assert ask(limiter, limits) == 61
    assert limiter.headers("k", limits)["x-ratelimit-remaining-requests"] == "0"
    clock.now_s += 61
    assert ask(limiter, limits) is None


def test_tokens_of_running_requests_are_set_aside() -> None:
    """Ten requests at once cannot use ten times what is left."""
    clock = Clock()
    limiter, limits = make_limiter(clock), Limits(tokens_per_minute=600)
    with limiter.reserved("k", limits, 400):
        assert limiter.headers("k", limits)["x-ratelimit-remaining-tokens"] == "200"
        more = limiter.reserved("k", limits, 300)
        with (
            pytest.raises(ApiError, match="has 200 left; this request may take 300: lower max_tokens") as refused,
            more,
        ):
            pass
        assert refused.value.headers["Retry-After"] == "10"
        with limiter.reserved("k", limits, 200), limiter.reserved("other", limits, 600):
            pass
        with limiter.reserved("k", Limits(), 10_000):
            pass
    limiter.charge("k", 50)  # what it used
    assert limiter.headers("k", limits)["x-ratelimit-remaining-tokens"] == "550"
    clock.now_s += 5
    with limiter.reserved("k", limits, 10_000):  # more than a minute's: once the bucket is full
        pass


def test_the_longest_wait_is_reported() -> None:
    clock = Clock()
    limiter, limits = make_limiter(clock), Limits(requests_per_minute=1, tokens_per_minute=60)
    assert ask(limiter, limits, tokens=360) is None
    with pytest.raises(ApiError, match="60 tokens a minute: try again in 301 s"), limiter.request("k", limits):
        pass


def test_a_changed_limit_applies_from_the_next_request() -> None:
    clock = Clock()
    limiter = make_limiter(clock)
    for _ in range(3):
        assert ask(limiter, Limits(requests_per_minute=5)) is None
        clock.now_s += 1
    assert ask(limiter, Limits(requests_per_minute=2)) == 59  # when the second request leaves the window
    assert ask(limiter, Limits(requests_per_minute=4)) is None
    assert ask(limiter, Limits(requests_per_minute=4)) is not None
    assert ask(limiter, Limits()) is None


def test_headers_contain_limit_remaining_and_reset() -> None:
    clock = Clock()
    limiter, limits = make_limiter(clock), Limits(requests_per_minute=10, tokens_per_minute=600)
    assert limiter.headers("k", Limits(concurrent_jobs=1)) == {}
    assert ask(limiter, limits, tokens=200) is None
    clock.now_s += 0.5
    assert limiter.headers("k", limits) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "1m1s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "405",
        "x-ratelimit-reset-tokens": "20s",
    }
    clock.now_s += 60.5
    assert limiter.headers("k", limits)["x-ratelimit-reset-requests"] == "0ms"
    assert ask(limiter, limits, tokens=10_000) is None
    assert limiter.headers("k", limits)["x-ratelimit-remaining-tokens"] == "0"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0ms"), (0.0161, "17ms"), (1.0, "1s"), (41.2, "42s"), (60.0, "1m0s"), (360.0, "6m0s")]
)
def test_durations_are_formatted_as_by_openai(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_process_has_a_maximum_of_concurrent_requests() -> None:
    limiter = make_limiter(Clock(), max_ongoing_requests=2)
    for _ in range(3):
        with limiter.slot(), limiter.slot():
            with pytest.raises(ApiError) as caught, limiter.slot():
                pass
            assert (caught.value.status, caught.value.code) == (429, "overloaded")
            assert caught.value.headers["Retry-After"] == "1"


def test_idle_keys_are_dropped_and_others_are_kept() -> None:
    clock = Clock()
    limiter, limits = make_limiter(clock), Limits(requests_per_minute=1, tokens_per_minute=60)
    assert ask(limiter, limits, key_id="overdrawn", tokens=60 * 60 * 24) is None
    with limiter.request("at work", Limits(concurrent_requests=1)):
        most = 0
        for number in range(20_000):
            clock.now_s += 0.05
            assert ask(limiter, limits, key_id=f"key {number}") is None
            most = max(most, len(limiter._usage))
        assert most <= 2 * (61 / 0.05 + 2)
        assert ask(limiter, Limits(concurrent_requests=1), key_id="at work") == 1
    assert ask(limiter, limits, key_id="overdrawn") is not None
    assert ask(limiter, limits, key_id=f"key {number}") is not None


def test_a_sliding_window_has_constant_memory() -> None:
    window = SlidingWindow()
    for number in range(200_000):
        window.add(number / 1000)
        window.total(number / 1000)
        assert len(window._seconds) <= 62
    assert math.isclose(window.total(199.999), 61_000, rel_tol=0.02)
