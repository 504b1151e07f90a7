"""Outcomes of rollouts, and the end of a rollout that exceeds a bound."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs import registry
from ray_jobs.deploy import traffic
from ray_jobs.deploy.traffic import Bounds
from ray_jobs.errors import StoreUnreachable
from ray_jobs.storage import Workspace
from serving.access.auth import OPERATOR
from serving.http import errors
from serving.http.errors import ApiError
from serving.inference.backends import Chunks, Route
from serving.inference.router import Router
from serving.inference.traffic import RequestOutcome, Traffic, judge
from tests.serving.fake_backend import FakeBackend
from tests.serving.inference.rollouts import (
    BOUNDS,
    CANARY,
    WATCH,
    RecordingTraffic,
    ask,
    champion,
    on_rollout,
    policy_of,
    route_on,
    started_canary,
)
from tests.serving.routing import make_client


@given(st.lists(st.builds(RequestOutcome, st.booleans(), st.floats(0, 10)), max_size=60))
def test_a_reason_is_returned_exactly_when_a_bound_is_exceeded(outcomes: list[RequestOutcome]) -> None:
    reason = judge(BOUNDS, outcomes)
    failed = sum(not outcome.ok for outcome in outcomes)
    slow = sum(outcome.ok and outcome.seconds > 1.0 for outcome in outcomes)
    answered = len(outcomes) - failed
    if len(outcomes) < 5:
        assert reason is None
    elif failed > 0.1 * len(outcomes):
        assert reason == f"{failed} of {len(outcomes)} requests failed; the maximum error rate is 0.1"
    elif answered >= 5 and slow > 0.05 * answered:
        assert reason is not None
        assert reason.startswith(f"the p95 of {answered} requests is ")
    else:
        assert reason is None


def test_a_value_equal_to_a_bound_does_not_exceed_it() -> None:
    good, slow, bad = RequestOutcome(True, 0.5), RequestOutcome(True, 2.0), RequestOutcome(False, 0.5)
    assert judge(BOUNDS, [good] * 9 + [bad]) is None
    assert judge(BOUNDS, [good] * 8 + [bad] * 2) is not None
    assert judge(BOUNDS, [good] * 95 + [slow] * 5) is None
    assert judge(BOUNDS, [good] * 94 + [slow] * 6) == "the p95 of 100 requests is 2 s; the maximum is 1 s"


@pytest.mark.anyio
async def test_a_failing_canary_is_ended_once_by_the_first_replica(store: Workspace, greeter: str) -> None:
    canary = started_canary(store)
    replicas = [Traffic(store), Traffic(store), Traffic(store)]
    writes: list[bool] = []
    real = traffic.end_canary

    def counted(*arguments: Any) -> bool:
        writes.append(real(*arguments))
        return writes[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traffic, "end_canary", counted)
        for replica in replicas:
            for _ in range(20):
                replica.observe(route_on(canary), ok=False, seconds=0.1)
        await asyncio.gather(*(replica.settled() for replica in replicas))
    assert sorted(writes) == [False, False, True]
    policy = policy_of(store)
    assert policy.canary is None
    assert policy.rolled_back is not None
    assert policy.rolled_back.reason == "5 of 5 requests failed; the maximum error rate is 0.1"
    assert champion(store) == "1"
    assert "rolled back  greeter@2 (canary)" in "\n".join(traffic.describe(policy, greeter))


@pytest.mark.anyio
async def test_a_failing_promotion_is_rolled_back_once(store: Workspace, greeter: str) -> None:
    traffic.promote(store, greeter, "2", bounds=BOUNDS)
    watch = policy_of(store).watch
    assert watch is not None
    replicas = [Traffic(store), Traffic(store), Traffic(store)]
    for replica in replicas:
        for _ in range(20):
            replica.observe(route_on(watch), ok=False, seconds=0.1)
    await asyncio.gather(*(replica.settled() for replica in replicas))
    alias = registry.read_alias(store, greeter, "champion")
    assert alias is not None
    assert (alias.version, alias.previous) == ("1", "2")
    policy = policy_of(store)
    assert (policy.watch, policy.rolled_back and policy.rolled_back.was) == (None, "promoted")


def test_a_promotion_followed_by_another_is_not_rolled_back(store: Workspace, greeter: str) -> None:
    traffic.promote(store, greeter, "2", bounds=BOUNDS)
    watch = policy_of(store).watch
    assert watch is not None
    registry.set_alias(store, greeter, "champion", "3")
    assert traffic.undo_promotion(store, greeter, watch, "late") is False
    assert (champion(store), policy_of(store).watch) == ("3", None)


@pytest.mark.anyio
async def test_a_late_judgement_does_not_end_the_next_rollout(store: Workspace, greeter: str) -> None:
    """A replica that was partitioned judges an old rollout of a version that has a new one."""
    old = started_canary(store)
    traffic.roll_back(store, greeter)
    started_canary(store)
    assert traffic.end_canary(store, greeter, old, "late") is False
    assert policy_of(store).canary is not None
    traffic.promote(store, greeter, "3", bounds=BOUNDS)
    watch = policy_of(store).watch
    assert watch is not None
    traffic.promote(store, greeter, "3", bounds=BOUNDS)
    assert traffic.undo_promotion(store, greeter, watch, "late") is False
    assert champion(store) == "3"


@pytest.mark.anyio
async def test_a_rollout_ends_at_once_and_is_recorded_when_the_store_answers(
    store: Workspace, greeter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = started_canary(store)
    real, tries = traffic.end_canary, 0

    def away_twice(*arguments: Any) -> bool:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise StoreUnreachable("no answer")
        return real(*arguments)

    monkeypatch.setattr(traffic, "end_canary", away_twice)
    replica = Traffic(store, retry_s=0.01)
    router = Router(store, ttl_s=1000.0, stopped=replica.stopped)
    assert (await router.resolve(greeter, "/v1/chat/completions", OPERATOR, draw=0.0)).model == "greeter@2"
    for _ in range(5):
        replica.observe(route_on(canary), ok=False, seconds=0.1)
    assert (await router.resolve(greeter, "/v1/chat/completions", OPERATOR, draw=0.0)).model == "greeter@1"
    await replica.settled()
    assert tries == 3
    assert policy_of(store).canary is None


@pytest.mark.anyio
async def test_outcomes_within_bounds_or_after_the_watch_end_no_rollout() -> None:
    replica = Traffic()
    for i in range(300):
        replica.observe(route_on(CANARY), ok=i % 20 != 19, seconds=0.1)
    for _ in range(4):
        replica.observe(route_on(WATCH), ok=False, seconds=0.1)
    over = WATCH.model_copy(update={"id": "over", "until": datetime.now(UTC) - timedelta(seconds=1)})
    for _ in range(20):
        replica.observe(route_on(over), ok=False, seconds=0.1)
    assert replica.stopped == set()
    replica.observe(route_on(WATCH), ok=False, seconds=0.1)
    assert replica.stopped == {"w"}


@pytest.mark.anyio
async def test_a_rollout_is_judged_by_its_latest_outcomes() -> None:
    """A version that starts to fail is stopped despite many earlier successes."""
    replica = Traffic()
    for _ in range(5000):
        replica.observe(route_on(CANARY), ok=True, seconds=0.1)
    for _ in range(30):
        replica.observe(route_on(CANARY), ok=False, seconds=0.1)
    assert replica.stopped == {"c"}


@pytest.mark.parametrize(
    ("backend", "stops"),
    [
        (FakeBackend(failure=RuntimeError("broken")), True),
        (FakeBackend(failure=errors.not_ready("greeter")), True),
        (FakeBackend(refusal={"message": "broken", "code": 500}), True),
        (FakeBackend(failure=RuntimeError("broken"), fail_after=1), True),
        (FakeBackend(failure=errors.queue_full("greeter")), False),
        (FakeBackend(refusal={"message": "too long", "code": 400}), False),
        (FakeBackend(), False),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_only_5xx_counts_as_a_failure_of_the_version(backend: FakeBackend, stops: bool, stream: bool) -> None:
    stops = stops and (stream or backend.fail_after is None)  # only a stream fails after its first chunk
    replica = Traffic()
    whole = on_rollout(canary=CANARY.model_copy(update={"percent": 100}))
    with make_client(replace(backend, calls=[]), whole, replica) as client:
        for _ in range(12):
            ask(client, "greeter", stream=stream)
    assert bool(replica.stopped) is stops


@pytest.mark.anyio
async def test_a_disconnect_counts_as_slow_only_before_the_first_chunk() -> None:
    async def never(route: Route) -> Chunks:
        await asyncio.sleep(60)
        yield "data: [DONE]\n\n"

    impatient = CANARY.model_copy(update={"bounds": Bounds(max_p95_s=0.001, min_requests=3)})
    replica = Traffic()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(replica.measured(route_on(impatient), never(route_on(impatient))))
    assert replica.stopped == {"c"}
    replica, backend = RecordingTraffic(), FakeBackend()
    for _ in range(10):
        body = {"messages": [{"content": "one two three"}], "stream": True, "model": "greeter@2"}
        chunks = replica.measured(route_on(WATCH), backend.generate(route_on(WATCH), "chat", body))
        await anext(chunks)
        await chunks.aclose()
    assert backend.closed == 10
    assert replica.stopped == set()
    assert replica.outcomes == [True] * 10


@pytest.mark.anyio
async def test_watched_counts_one_outcome_for_its_block() -> None:
    replica = RecordingTraffic()
    async with replica.watched(route_on(CANARY)):
        pass
    for error in [ApiError(404, "no"), ApiError(500, "broken"), ValueError("broken")]:
        with pytest.raises(type(error), match=str(error)):
            async with replica.watched(route_on(CANARY)):
                raise error
    assert replica.outcomes == [True, False, False]
