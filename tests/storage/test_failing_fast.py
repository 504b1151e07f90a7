"""A store for a process whose callers wait: it fails within seconds while the store is away, and then at once."""

from __future__ import annotations

import pytest

from ray_jobs.errors import ObjectNotFound, StoreUnreachable
from ray_jobs.storage import Store, bucket
from ray_jobs.storage.breaker import TRY_EVERY_S, Breaker
from ray_jobs.storage.bucket import Bucket
from tests.storage.faulty_store import Forward, Request, Response, faulty


def test_one_request_a_second_tries_a_store_that_does_not_answer() -> None:
    now_s = 0.0
    gate = Breaker(clock=lambda: now_s)
    assert gate.admits()
    gate.failed()
    assert not gate.admits()
    now_s += TRY_EVERY_S
    assert [gate.admits() for _ in range(3)] == [True, False, False]
    gate.answered()
    assert [gate.admits() for _ in range(3)] == [True] * 3


def test_a_store_that_is_away_is_not_asked_by_every_request(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_FAST_S", 0.0)
    away, asked, now_s = True, 0, 0.0

    def fault(request: Request, forward: Forward) -> Response | None:
        nonlocal asked
        asked += 1
        return None if away else forward(request)

    with faulty(store._bucket.settings, fault) as settings:
        fast = Store(store.uri(), settings).failing_fast()
        assert fast._bucket.breaker is not None
        fast._bucket.breaker.clock = lambda: now_s
        with pytest.raises(StoreUnreachable):
            fast.get("a")
        first = asked
        assert first > 0
        for _ in range(5):
            with pytest.raises(StoreUnreachable, match="it is tried every second"):
                fast.get("a")
        assert asked == first, "none of them waits for the store"
        away, now_s = False, TRY_EVERY_S
        with pytest.raises(ObjectNotFound):  # an answer
            fast.get("a")
        fast.put("a", b"1")
        assert fast.get("a") == b"1"


def test_the_first_callers_wait_seconds_not_a_minute() -> None:
    settings = bucket.StoreSettings("http://127.0.0.1:9")
    fast = Bucket("kitae", settings).failing_fast()
    assert (fast.settings.patience_s, fast.settings.silence_s) == (2.0, 10.0)
    assert fast._clients is not Bucket("kitae", settings)._clients
