"""Shadow requests: copies whose responses are only counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from serving.inference.backends import Route
from serving.inference.traffic import Traffic
from tests.serving.fake_backend import FakeBackend
from tests.serving.inference.rollouts import CANARY, ask, on_rollout, route_on
from tests.serving.routing import make_client


def test_a_shadow_gets_a_copy_and_its_response_is_dropped() -> None:
    replica, backend = Traffic(), FakeBackend()
    with make_client(backend, on_rollout(shadow="3"), replica) as client:
        answer = ask(client, "greeter")
        ask(client, "greeter@3")
        assert client.portal is not None
        client.portal.call(replica.settled)
    assert answer.json()["model"] == "greeter@1"
    assert sorted(body["model"] for _, _, body in backend.calls) == ["greeter@1", "greeter@3", "greeter@3"]
    copy, original = (next(body for _, _, body in backend.calls if body["model"] == f"greeter@{i}") for i in "31")
    assert copy["messages"] == original["messages"]
    assert copy["request_id"] != original["request_id"]
    assert (replica.shadows["greeter@3"].answered, replica.shadows["greeter@3"].failed) == (1, 0)


@pytest.mark.anyio
async def test_shadow_requests_are_bounded_run_in_the_background_and_are_counted() -> None:
    release = asyncio.Event()
    begun = 0

    async def slow(route: Route) -> AsyncIterator[dict[str, Any] | str]:
        nonlocal begun
        begun += 1
        await release.wait()
        if begun > 2:
            raise RuntimeError("broken")
        yield {"error": {"message": "broken", "code": 500}} if begun == 2 else {"response": {}}

    replica = Traffic(max_shadows=2)
    route = replace(route_on(CANARY), shadow=Route("greeter@3", "kitae-base", "chat"))
    for _ in range(5):
        replica.mirror(route, slow)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    counts = replica.shadows["greeter@3"]
    assert (begun, counts.dropped, counts.answered + counts.failed) == (2, 3, 0)
    release.set()
    await replica.settled()
    replica.mirror(route, slow)
    await replica.settled()
    assert (counts.dropped, counts.answered + counts.failed) == (3, 3)
    assert counts.failed == 3
    replica.mirror(route_on(CANARY), slow)
    assert begun == 3
    assert replica.stopped == set()
