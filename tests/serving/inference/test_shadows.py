"""Shadow requests: copies whose responses are dropped."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from serving.inference import traffic
from serving.inference.backends import Chunks, Route
from serving.inference.traffic import Traffic
from tests.serving.fake_backend import FakeBackend
from tests.serving.inference.rollouts import CANARY, ask, on_rollout, route_on
from tests.serving.routing import make_client


def test_a_shadow_gets_a_copy_and_its_response_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", traffic.__name__)
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
    assert backend.closed == 3
    assert "the shadow" not in caplog.text


@pytest.mark.anyio
async def test_shadow_requests_are_bounded_run_in_the_background_and_their_failures_are_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", traffic.__name__)
    monkeypatch.setattr(traffic, "_MAX_SHADOWS", 2)
    release = asyncio.Event()
    begun = 0

    async def slow(route: Route) -> Chunks:
        nonlocal begun
        begun += 1
        await release.wait()
        if begun > 2:
            raise RuntimeError("broken")
        yield {"error": {"message": "broken", "code": 500}} if begun == 2 else {"response": {}}

    replica = Traffic()
    route = replace(route_on(CANARY), shadow=Route("greeter@3", "kitae-base", "chat"))
    for _ in range(5):
        replica.mirror(route, slow)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (begun, caplog.messages) == (2, [])
    release.set()
    await replica.settled()
    replica.mirror(route, slow)
    await replica.settled()
    assert begun == 3
    assert [message.partition(":")[0] for message in caplog.messages] == ["the shadow greeter@3 failed"] * 3
    replica.mirror(route_on(CANARY), slow)
    assert begun == 3
    assert replica.stopped == set()
