"""An engine's places are shared fairly between teams, and one team alone may use all of its own."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from ray_jobs.spec import ServingSection
from serving.http.errors import ApiError
from serving.inference.backends import Route
from serving.inference.places import EnginePlaces

pytestmark = pytest.mark.anyio
ROUTE = Route("m", "kitae-m", "chat", serving=ServingSection(max_ongoing_requests=4, max_queued_requests=4))


class Requests:
    """Requests that hold their places until they are ended."""

    def __init__(self, route: Route = ROUTE) -> None:
        self.now_s = 1000.0
        self.places = EnginePlaces(lambda: self.now_s)
        self.route = route
        self.running: list[str] = []
        self.refused: list[ApiError] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, name: str, answers: int = 1) -> None:
        """Start a request of the team that the name begins with."""
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._run(name, answers))
        await asyncio.sleep(0)

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self._tasks[name]
        await asyncio.sleep(0)

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.wait({self._tasks[name]})
        await asyncio.sleep(0)

    async def _run(self, name: str, answers: int) -> None:
        try:
            async with self.places.place(self.route, name[0], answers=answers):
                self.running.append(name)
                try:
                    await self._ends[name].wait()
                finally:
                    self.running.remove(name)
        except ApiError as error:
            self.refused.append(error)


async def test_a_team_that_sends_everything_delays_no_other() -> None:
    requests = Requests()
    for i in range(20):
        await requests.start(f"a{i}")
    assert requests.running == ["a0", "a1", "a2", "a3"]
    assert [(error.status, error.code) for error in requests.refused] == [(429, "queue_full")] * 12
    await requests.start("b0")
    assert requests.running[-1] == "b0"  # at once
    await requests.start("b1")
    await requests.end("a0")  # the place goes to the team with fewer
    assert requests.running == ["a1", "a2", "a3", "b0", "b1"]
    await requests.start("b2")
    await requests.end("a1")  # both have two: the oldest
    await requests.end("b0")
    assert requests.running == ["a2", "a3", "b1", "a4", "b2"]
    for name in ("b1", "b2", "a2", "a3", "a4"):
        await requests.end(name)
    assert requests.running == ["a5", "a6", "a7"]
    for name in list(requests.running):
        await requests.end(name)
    assert requests.places._engines == {}


async def test_teams_that_use_an_engine_at_once_get_equal_shares() -> None:
    requests = Requests(replace(ROUTE, serving=ServingSection(max_ongoing_requests=16, max_queued_requests=16)))
    await requests.start("a0", answers=8)
    await requests.start("a1", answers=8)
    await requests.start("b0")
    await requests.end("a1")
    await requests.start("a2", answers=8)
    assert requests.running == ["a0", "b0"], "of 20 answers two teams have ten each"
    await requests.start("a3", answers=2)
    await requests.end("a0")
    assert requests.running == ["b0", "a2", "a3"]
    await requests.end("b0")
    await requests.start("a4", answers=6)
    assert requests.running == ["a2", "a3"], "b asked a moment ago"
    requests.now_s += 11.0
    await requests.start("a5")
    await asyncio.sleep(0)
    assert requests.running == ["a2", "a3", "a4"], "a alone has 16"
    await requests.start("c0", answers=4)
    assert requests.running[-1] == "c0"


async def test_answers_count_not_only_requests() -> None:
    requests = Requests()
    await requests.start("a0", answers=16)
    await requests.start("a1")
    await requests.start("b0", answers=4)
    assert requests.running == ["a0", "b0"]
    await requests.start("c0", answers=2)
    await requests.start("d0", answers=1)  # c0 holds as few and came first
    assert requests.running == ["a0", "b0"]
    await requests.end("b0")
    assert requests.running == ["a0", "c0", "d0"]
    await requests.end("a0")
    assert requests.running == ["c0", "d0", "a1"]


async def test_more_answers_than_a_team_may_have_are_refused() -> None:
    requests = Requests()
    await requests.start("a0", answers=17)
    (error,) = requests.refused
    assert (error.status, error.param) == (400, "n")
    large = Requests(replace(ROUTE, serving=ServingSection()))
    await large.start("a0", answers=32)
    assert large.running == ["a0"]


async def test_a_client_that_goes_away_frees_its_place() -> None:
    requests = Requests()
    for name in ("a0", "a1", "a2", "a3", "a4", "a5"):
        await requests.start(name)
    await requests.cancel("a4")
    await requests.cancel("a0")
    assert requests.running == ["a1", "a2", "a3", "a5"]
    for name in ("a1", "a2", "a3", "a5"):
        await requests.cancel(name)
    assert requests.places._engines == {}


async def test_a_refused_request_has_the_time_of_those_before_it() -> None:
    requests = Requests()
    for i in range(9):
        await requests.start(f"a{i}")
    assert [error.headers["Retry-After"] for error in requests.refused] == ["1"], "nothing has ended yet"
    for i in range(4):  # one every 2 s
        requests.now_s += 2.0
        await requests.end(f"a{i}")
        await requests.start(f"a{10 + i}")
    for i in range(3):
        await requests.start(f"a{20 + i}")
    # Four requests in the 8 s since the team's first one began, so 2 s each; four wait.
    assert [error.headers["Retry-After"] for error in requests.refused[1:]] == ["8", "10", "12"]
    requests.now_s += 9.0
    await requests.start("a30")
    assert requests.refused[-1].headers["Retry-After"] == "17", "slower of late"
    await requests.start("b1")
    assert "b1" in requests.running


async def test_no_one_is_sent_away_for_more_than_a_minute() -> None:
    requests = Requests()
    for i in range(8):
        await requests.start(f"a{i}")
    for i in range(3):
        requests.now_s += 30.0
        await requests.end(f"a{i}")
        await requests.start(f"a{10 + i}")
    for i in range(5):
        await requests.start(f"a{20 + i}")
    assert {error.headers["Retry-After"] for error in requests.refused} == {"60"}
