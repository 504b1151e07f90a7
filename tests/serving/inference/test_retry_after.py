"""The Retry-After of a full queue, in simulated time: a burst of clients with two retries loses no request, on fast and
slow engines, and without an earlier request whose speed would be known."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

import pytest

from ray_jobs.spec import ServingSection
from serving.http.errors import ApiError
from serving.inference.backends import Route
from serving.inference.places import EnginePlaces

ROUTE = Route("m", "kitae-m", "chat", serving=ServingSection())
REQUESTS = 300
RETRIES = 2


class SimulatedTime(asyncio.SelectorEventLoop):
    """A loop whose clock advances by what it would sleep."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_NoSleep(self))

    def time(self) -> float:
        return self.now_s


class _NoSleep(selectors.SelectSelector):
    def __init__(self, loop: SimulatedTime) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        self._loop.now_s += timeout or 0.0
        return super().select(0)


async def burst(places: EnginePlaces, answer_s: float) -> int:
    """Number of requests that are lost."""

    async def ask() -> bool:
        for attempt in range(RETRIES + 1):
            try:
                async with places.place(ROUTE, "blue", answers=1):
                    await asyncio.sleep(answer_s)
                    return True
            except ApiError as error:
                if attempt < RETRIES:
                    await asyncio.sleep(float(error.headers["Retry-After"]))
        return False

    return (await asyncio.gather(*(ask() for _ in range(REQUESTS)))).count(False)


@pytest.mark.parametrize("answer_s", [0.01, 0.1, 0.5, 2.0, 5.0, 10.0])
def test_no_request_of_a_burst_is_lost(answer_s: float) -> None:
    loop = SimulatedTime()
    places = EnginePlaces(loop.time)
    try:
        assert loop.run_until_complete(burst(places, answer_s)) == 0
        first_s = loop.now_s
        assert loop.run_until_complete(burst(places, answer_s)) == 0
    finally:
        loop.close()
    rounds = REQUESTS / ServingSection().max_ongoing_requests
    assert first_s < 15 + 3 * rounds * answer_s, "clients were asked to wait much longer than the engine needs"
