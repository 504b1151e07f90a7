"""Background requests: they use an engine only while no interactive request does.

Owns which of them runs next, and their interruption. A background request is admitted once no interactive request has
waited for the engine or held it for a quiet time that is longer than most pauses between them, up to the engine's
`max_ongoing_requests`; teams take turns. When an interactive request arrives, all running ones are interrupted and run
again later, from the beginning. Does not know the order of interactive requests (`places`) nor what a request does.

    background = BackgroundPlaces()
    with background.interactive("kitae-m"): …                     # an interactive request
    answer = await background.run(route, team, work, answers=1)   # `work` may be called several times
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from ray_jobs.spec import ServingSection
from serving.inference.backends import Route
from serving.inference.percentiles import p95

T = TypeVar("T")

QUIET_S, LONGEST_QUIET_S = 0.5, 10.0
"""Bounds of an engine's quiet time (s)."""
PAUSES = 100
"""Number of last pauses that the quiet time follows from."""
MARGIN = 1.25
"""Quiet time over the 95th percentile of the pauses, since the pauses of a steady client differ a little."""


def quiet_time_s(pauses_s: Collection[float]) -> float:
    """The quiet time of an engine with these last pauses: at most one of twenty was as long. Pure."""
    if not pauses_s:
        return QUIET_S
    return min(max(MARGIN * p95(pauses_s), QUIET_S), LONGEST_QUIET_S)


@dataclass(eq=False)
class _BackgroundRequest:
    team: str
    answers: int
    admitted: asyncio.Future[None]
    interrupted: bool = False
    limit: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    """Expires when the request is interrupted while it runs."""
    runs: bool = False

    def interrupt(self) -> None:
        if self.runs and not self.interrupted:
            self.limit.reschedule(asyncio.get_running_loop().time())
        self.interrupted = True


@dataclass(eq=False)
class _BackgroundEngine:
    """The background requests of one engine, and the number of its interactive ones."""

    now: Callable[[], float]
    serving: ServingSection = field(default_factory=ServingSection)
    interactive: int = 0
    """Interactive requests that wait or hold a place."""
    ended_s: float = -math.inf
    """When the last interactive request ended."""
    pauses_s: deque[float] = field(default_factory=lambda: deque(maxlen=PAUSES))
    """The last pauses between interactive requests."""
    waiting: dict[str, deque[_BackgroundRequest]] = field(default_factory=dict)
    """Team → its waiting requests, oldest first; no empty ones. The team that was admitted last is last."""
    running: list[_BackgroundRequest] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    """Admits waiting requests after the quiet time."""

    def begin_interactive(self) -> None:
        if not self.interactive and math.isfinite(self.ended_s):
            self.pauses_s.append(self.now() - self.ended_s)
        self.interactive += 1
        for request in self.running:
            request.interrupt()

    def end_interactive(self) -> None:
        self.interactive -= 1
        self.ended_s = self.now()
        self.admit()

    def admit(self) -> None:
        """Give free places to waiting requests."""
        if self.interactive or not self.waiting:
            return
        quiet_in_s = self.ended_s + quiet_time_s(self.pauses_s) - self.now()
        if quiet_in_s > 0:
            self._admit_in(quiet_in_s)
            return
        while self.waiting:
            held = Counter(request.team for request in self.running)
            team = min(self.waiting, key=lambda team: held[team])
            request = self.waiting[team][0]
            if not self._has(request.answers):
                return
            self.drop(request)
            if team in self.waiting:
                self.waiting[team] = self.waiting.pop(team)  # behind the others
            self.running.append(request)
            request.admitted.set_result(None)

    def drop(self, request: _BackgroundRequest) -> None:
        """Remove a request from its queue."""
        self.waiting[request.team].remove(request)
        if not self.waiting[request.team]:
            del self.waiting[request.team]

    def leave(self, request: _BackgroundRequest) -> None:
        """Remove a request that ended, was interrupted or was cancelled."""
        if request in self.running:
            self.running.remove(request)
        else:
            self.drop(request)
        self.admit()

    def _has(self, answers: int) -> bool:
        most = self.serving.max_ongoing_requests
        all_answers = sum(request.answers for request in self.running)
        # One request may have more answers than the engine takes requests.
        return not self.running or (len(self.running) < most and all_answers + answers <= most)

    def _admit_in(self, seconds: float) -> None:
        def expired() -> None:
            self.timer = None
            self.admit()

        if self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(seconds, expired)


class BackgroundPlaces:
    """The background requests of one process. Bound to one event loop."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._engines: dict[str, _BackgroundEngine] = {}
        """By application."""
        self._now = now

    @contextmanager
    def interactive(self, application: str) -> Iterator[None]:
        """Keep background requests away from an engine for the time of an interactive one."""
        engine = self._engine(application)
        engine.begin_interactive()
        try:
            yield
        finally:
            engine.end_interactive()

    async def run(self, route: Route, team: str, work: Callable[[], Awaitable[T]], *, answers: int = 1) -> T:
        """Call `work` while no interactive request uses the engine, again after each interruption. Returns its result.

        An interrupted `work` is cancelled, which must end what it does at the engine.
        """
        engine = self._engine(route.application)
        while True:
            engine.serving = route.serving  # may have changed
            request = _BackgroundRequest(team, answers, asyncio.get_running_loop().create_future())
            engine.waiting.setdefault(team, deque()).append(request)
            engine.admit()
            try:
                await request.admitted
                if request.interrupted:  # between its admission and now
                    continue
                async with request.limit:
                    request.runs = True
                    return await work()
            except TimeoutError:
                if not request.limit.expired():
                    raise
            finally:
                engine.leave(request)

    def _engine(self, application: str) -> _BackgroundEngine:
        return self._engines.setdefault(application, _BackgroundEngine(self._now))
