"""A key that is refused often is refused slowly, and holds nothing meanwhile; others are not delayed."""

from __future__ import annotations

import asyncio

import pytest

from ray_jobs.storage.store import Store
from ray_jobs.tenancy import api_keys
from ray_jobs.tenancy.api_keys import Limits
from serving.access import refusals
from serving.access.keys import StoredKeys
from serving.access.refusals import BURST, MAX_WAIT_S, RefusalPace
from tests.serving.access.gate import EchoApp, get, make_gate

pytestmark = pytest.mark.anyio
PER_S = 10.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_the_first_refusals_are_at_once_and_then_at_a_steady_rate() -> None:
    clock = Clock()
    pace = RefusalPace(PER_S, clock)
    assert [pace.wait_s("a") for _ in range(BURST)] == pytest.approx([0.0] * BURST, abs=1e-6)
    assert [pace.wait_s("a") for _ in range(3)] == pytest.approx([1 / PER_S, 2 / PER_S, 3 / PER_S])
    assert pace.wait_s("b") == 0.0
    assert max(pace.wait_s("a") for _ in range(1000)) == pytest.approx(MAX_WAIT_S)
    clock.now_s += MAX_WAIT_S
    assert pace.wait_s("a") == pytest.approx(1 / PER_S)
    clock.now_s += (BURST + 1) / PER_S
    assert [pace.wait_s("a") for _ in range(BURST)] == pytest.approx([0.0] * BURST, abs=1e-6)


def test_keys_that_are_no_longer_refused_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    pace = RefusalPace(PER_S, clock)
    for number in range(10_000):
        clock.now_s += 0.01
        pace.wait_s(f"key-{number}")
    assert len(pace._next_s) <= 2 * refusals._FIRST_SWEEP_KEYS


async def test_a_refused_request_waits_without_a_place(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _, secret = api_keys.create(store, "search", "app", Limits(concurrent_requests=1))
    _, other = api_keys.create(store, "search", "app")
    app = EchoApp()
    gate = make_gate(app, StoredKeys(store, ttl_s=60.0), max_ongoing_requests=10)
    waiting, resumed = asyncio.Queue[str](), asyncio.Event()

    async def wait(self: RefusalPace, key_id: str) -> None:
        await waiting.put(key_id)
        await resumed.wait()

    monkeypatch.setattr(RefusalPace, "wait", wait)
    app.waits = asyncio.Event()
    first = asyncio.create_task(get(gate, secret))
    await app.entered.wait()
    delayed = [asyncio.create_task(get(gate, key)) for key in (secret, "wrong", secret)]
    found = [await waiting.get() for _ in delayed]
    assert sorted(found) == ["", api_keys.id_of(secret), api_keys.id_of(secret)]
    app.waits.set()
    assert (await get(gate, other)).status_code == (await first).status_code == 200
    assert not any(task.done() for task in delayed)
    resumed.set()
    assert [(await task).status_code for task in delayed] == [429, 401, 429]


async def test_a_refusal_by_a_route_waits_without_a_place(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _, secret = api_keys.create(store, "search", "app", Limits(concurrent_requests=1))
    waiting, resumed = asyncio.Event(), asyncio.Event()

    async def wait(self: RefusalPace, key_id: str) -> None:
        waiting.set()
        await resumed.wait()

    async def app(scope: object, receive: object, send: object) -> None:
        status = 400 if not waiting.is_set() else 200
        await send({"type": "http.response.start", "status": status, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]

    monkeypatch.setattr(RefusalPace, "wait", wait)
    gate = make_gate(app, StoredKeys(store, ttl_s=60.0))
    refused = asyncio.create_task(get(gate, secret))
    await waiting.wait()
    assert (await get(gate, secret)).status_code == 200
    resumed.set()
    assert (await refused).status_code == 400
