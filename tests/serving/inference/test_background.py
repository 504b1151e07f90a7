"""Background requests use an engine only while no interactive request does, and begin anew after an interruption."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from ray_jobs.spec import ServingSection
from serving.inference.backends import Route
from serving.inference.background import LONGEST_QUIET_S, QUIET_S, quiet_time_s
from serving.inference.places import EnginePlaces

pytestmark = pytest.mark.anyio
ROUTE = Route("m", "kitae-m", "chat", serving=ServingSection(max_ongoing_requests=4, max_queued_requests=4))
OTHER = replace(ROUTE, model="o", application="kitae-o")


class Engine:
    """An engine with interactive requests and background requests, whose names begin with their team."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.places = EnginePlaces(lambda: self.now_s)
        self.running: list[str] = []
        self.begun: list[str] = []
        self.done: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def interactive(self, name: str, route: Route = ROUTE) -> None:
        await self._start(name, self._interactive(name, route))

    async def background(self, name: str, answers: int = 1) -> None:
        await self._start(name, self._background(name, answers))

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self.tasks[name]
        await settle()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.wait({self.tasks[name]})
        await settle()

    async def is_quiet(self) -> None:
        """Let the quiet time pass: by this clock, and until the engine looks at it."""
        self.now_s += QUIET_S
        for engine in self.places.background._engines.values():
            engine.admit()
        await settle()

    async def _start(self, name: str, work: object) -> None:
        self._ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(work)  # type: ignore[arg-type]  # a coroutine
        await settle()

    async def _interactive(self, name: str, route: Route) -> None:
        async with self.places.place(route, name[0], answers=1):
            self.running.append(name)
            try:
                await self._ends[name].wait()
            finally:
                self.running.remove(name)

    async def _background(self, name: str, answers: int) -> None:
        async def work() -> str:
            self.begun.append(name)
            self.running.append(name)
            try:
                await self._ends[name].wait()
            finally:
                self.running.remove(name)
            return name

        self.done.append(await self.places.background.run(ROUTE, name[0], work, answers=answers))


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def test_an_interactive_request_interrupts_all_background_requests_of_its_engine() -> None:
    engine = Engine()
    for name in ("a0", "a1", "b0"):
        await engine.background(name)
    assert engine.running == ["a0", "a1", "b0"]
    await engine.interactive("x0", OTHER)
    assert engine.running == ["a0", "a1", "b0", "x0"], "another engine's request interrupts none"
    await engine.interactive("c0")
    assert engine.running == ["x0", "c0"]
    await engine.background("b1")
    assert engine.running == ["x0", "c0"]
    await engine.end("c0")
    assert engine.running == ["x0"], "its client may send the next one"
    await engine.is_quiet()
    assert sorted(engine.running) == ["a0", "a1", "b0", "b1", "x0"]
    for name in ("a0", "a1", "b0", "b1", "x0"):
        await engine.end(name)
    assert sorted(engine.done) == ["a0", "a1", "b0", "b1"], "each ended once"


async def test_the_quiet_time_begins_with_the_last_interactive_request() -> None:
    engine = Engine()
    await engine.interactive("x0")
    await engine.interactive("x1")
    await engine.background("a0")
    await engine.end("x0")
    await engine.is_quiet()
    assert engine.running == ["x1"]
    await engine.end("x1")
    engine.now_s += QUIET_S / 2
    await engine.background("a1")
    assert engine.running == []
    await engine.is_quiet()
    assert engine.running == ["a0", "a1"]


def test_the_quiet_time_is_longer_than_most_pauses() -> None:
    assert quiet_time_s([]) == QUIET_S
    assert quiet_time_s([0.01] * 50) == QUIET_S
    assert quiet_time_s([0.1, 2.0]) == 2.5, "of few pauses the longest"
    assert quiet_time_s([4.0] + [1.0] * 19) == 1.25, "one in twenty may be longer"
    assert quiet_time_s([4.0, 4.0] + [1.0] * 19) == 5.0
    assert quiet_time_s([3600.0]) == LONGEST_QUIET_S


async def test_lines_wait_longer_than_the_pauses_of_a_slow_client() -> None:
    engine = Engine()
    for number in range(3):
        await engine.interactive(f"x{number}")
        await engine.end(f"x{number}")
        engine.now_s += 2.0
    await engine.interactive("x3")
    await engine.background("a0")
    await engine.end("x3")
    await engine.is_quiet()
    assert engine.running == [], "its next request may come after two seconds"
    engine.now_s += 2.0
    await engine.is_quiet()
    assert engine.running == ["a0"]
    await engine.end("a0")


async def test_waiting_requests_are_admitted_after_the_quiet_time() -> None:
    places = EnginePlaces()
    async with places.place(ROUTE, "x", answers=1):
        waiting = asyncio.create_task(places.background.run(ROUTE, "a", lambda: asyncio.sleep(0, "done")))
        await settle()
    assert await asyncio.wait_for(waiting, 20) == "done"


async def test_teams_take_turns_up_to_the_requests_of_the_engine() -> None:
    engine = Engine()
    for i in range(6):
        await engine.background(f"a{i}")
    for i in range(2):
        await engine.background(f"b{i}")
    await engine.background("c0")
    assert engine.running == ["a0", "a1", "a2", "a3"]
    for name in ("a0", "a1", "a2", "a3"):
        await engine.end(name)
    assert engine.begun[4:] == ["b0", "c0", "a4", "b1"]


async def test_answers_count() -> None:
    engine = Engine()
    await engine.background("a0", answers=16)
    await engine.background("a1")
    assert engine.running == ["a0"], "one request may have more than the engine takes requests"
    await engine.end("a0")
    assert engine.running == ["a1"]


async def test_a_cancelled_request_leaves_its_place() -> None:
    engine = Engine()
    for i in range(6):
        await engine.background(f"a{i}")
    await engine.cancel("a4")
    await engine.cancel("a0")
    assert engine.running == ["a1", "a2", "a3", "a5"]
    await engine.interactive("x0")
    await engine.cancel("a1")
    await engine.end("x0")
    await engine.is_quiet()
    assert sorted(engine.running) == ["a2", "a3", "a5"]


async def test_an_error_and_a_timeout_of_the_work_pass() -> None:
    places = EnginePlaces()

    async def failing(error: Exception) -> None:
        raise error

    for error in (ValueError("no"), TimeoutError("slow")):
        with pytest.raises(type(error), match=str(error)):
            await places.background.run(ROUTE, "a", lambda error=error: failing(error))  # type: ignore[misc]
    assert await places.background.run(ROUTE, "a", lambda: asyncio.sleep(0, 1)) == 1


@pytest.mark.parametrize("seed", range(20))
async def test_random_requests_never_share_the_engine_and_all_end(seed: int) -> None:
    chance, engine = random.Random(seed), Engine()
    interactive: list[str] = []
    waiting: list[str] = []
    for i in range(200):
        match chance.randrange(5):
            case 0:
                interactive.append(f"x{i}")
                await engine.interactive(interactive[-1])
            case 1 | 2:
                waiting.append(f"{chance.choice('abc')}{i}")
                await engine.background(waiting[-1])
            case 3 if interactive:
                name = chance.choice([name for name in interactive if name in engine.running])
                interactive.remove(name)
                await engine.end(name)
            case _:
                await engine.is_quiet()
                for name in [name for name in engine.running if name[0] != "x"]:
                    if chance.random() < 0.3:
                        waiting.remove(name)
                        await engine.end(name)
        running = [name for name in engine.running if name[0] != "x"]
        assert not (interactive and running)
        assert len(running) <= 4
        interactive = [name for name in interactive if not engine.tasks[name].done()]  # refused: the queue was full
    while interactive:
        for name in [name for name in interactive if name in engine.running]:
            interactive.remove(name)
            await engine.end(name)
    while waiting:
        await engine.is_quiet()
        for name in [name for name in engine.running if name[0] != "x"]:
            waiting.remove(name)
            await engine.end(name)
    assert len(set(engine.done)) == len(engine.done) == len([name for name in engine.tasks if name[0] != "x"])
