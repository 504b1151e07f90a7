"""The places of each engine, shared fairly between teams while some wait.

Owns who is sent to an engine next. One team may hold as many requests and answers as the engine's record names; an
engine has a quarter more for the others, so that a team that sends all it can delays no other's first request. Teams
that use an engine at the same time get no more than equal shares of it, since every answer slows the others. Among
waiting teams the one that holds the fewest answers is next; within a team, the oldest request. A refused request is
given a time by which its team's waiting and earlier refused ones are likely to be answered. Background requests use an
engine while no other request does (`background`). Does not call engines (`backends`).

    places = EnginePlaces()
    async with places.place(route, team, answers=4):  # ApiError 429 `queue_full`
        ...
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from ray_jobs.spec import ServingSection
from serving.http.errors import bad_request, queue_full
from serving.inference.backends import Route
from serving.inference.background import BackgroundPlaces

_LEAST_ANSWERS = 16
"""Answers that one team may hold at any engine: the most choices of one request."""
_RECENT = 64
_RECENT_S = 60.0
"""A team's speed is that of its last so many requests, of so many seconds."""
_UNKNOWN_S = 0.05
"""Time that a request of a burst takes beside the others, until the first one has ended."""
_PRESENT_S = 10.0
"""A team uses an engine until so long after its latest request."""
MAX_RETRY_AFTER_S = 60
"""OpenAI's clients wait no longer."""


def with_reserve(count: int) -> int:
    """Return all places of an engine of which one team may hold `count`."""
    return count + max(1, count // 4)


def team_answers(serving: ServingSection) -> int:
    """Return the answers that one team may have generated at once."""
    return max(serving.max_ongoing_requests, _LEAST_ANSWERS)


@dataclass(eq=False)
class _WaitingRequest:
    answers: int
    admitted: asyncio.Future[None]


@dataclass
class _Speed:
    """How fast a team's requests end, and until when its places are promised."""

    ended_s: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    busy_since_s: float = 0.0
    """When the team last began to hold places: requests that end together, as those of a burst do, took since then."""
    promised_s: float = 0.0

    def retry_after_s(self, waiting: int, held: int, now_s: float) -> int:
        """Seconds after which one more refused request is likely to find a place, after those refused before it."""
        since_s = max(self.busy_since_s, now_s - _RECENT_S)
        recent = [at for at in self.ended_s if at >= since_s]
        if len(recent) == _RECENT:
            since_s = recent[0]
        each_s = (now_s - since_s) / (len(recent) or max(1, held))
        if not recent:
            each_s = max(_UNKNOWN_S, each_s)  # those that run have not ended yet
        self.promised_s = max(now_s + waiting * each_s, self.promised_s + each_s)
        self.promised_s = min(self.promised_s, now_s + MAX_RETRY_AFTER_S)
        return max(1, math.ceil(self.promised_s - now_s))


@dataclass
class _Engine:
    """Held and waited for places of one engine."""

    serving: ServingSection
    now: Callable[[], float]
    speeds: defaultdict[str, _Speed] = field(default_factory=lambda: defaultdict(_Speed))
    requests: Counter[str] = field(default_factory=Counter)
    """Team → requests that it holds."""
    answers: Counter[str] = field(default_factory=Counter)
    waiting: dict[str, deque[_WaitingRequest]] = field(default_factory=dict)
    """Team → its waiting requests, oldest first; no empty ones."""

    def admit(self) -> None:
        """Give free places to waiting requests. A request for which the engine has too few keeps the next ones."""
        sharing = len(self._present())
        while True:
            teams = [team for team, queue in self.waiting.items() if self._team_may(team, queue[0].answers, sharing)]
            team = min(teams, key=lambda team: self.answers[team], default=None)
            if team is None or not self._has(self.waiting[team][0].answers):
                return
            request = self.waiting[team][0]
            self.drop(team, request)
            if not self.requests[team]:
                self.speeds[team].busy_since_s = self.now()
            self.requests[team] += 1
            self.answers[team] += request.answers
            request.admitted.set_result(None)

    def drop(self, team: str, request: _WaitingRequest) -> None:
        """Remove a request from its queue."""
        self.waiting[team].remove(request)
        if not self.waiting[team]:
            del self.waiting[team]

    def queue_is_full(self, team: str) -> bool:
        most = self.serving.max_queued_requests
        waiting = sum(map(len, self.waiting.values()))
        return len(self.waiting.get(team, ())) >= most or waiting >= with_reserve(most)

    def retry_after_s(self, team: str) -> int:
        return self.speeds[team].retry_after_s(len(self.waiting.get(team, ())), self.requests[team], self.now())

    def release(self, team: str, answers: int) -> None:
        self.speeds[team].ended_s.append(self.now())
        self.requests[team] -= 1
        self.answers[team] -= answers
        if not self.requests[team]:
            del self.requests[team], self.answers[team]
        self.admit()

    def _team_may(self, team: str, answers: int, sharing: int) -> bool:
        if not self.requests[team]:
            return True  # one request may be larger than a share
        requests, all_answers = self._all()
        most = min(self.serving.max_ongoing_requests, math.ceil(requests / sharing))
        most_answers = min(team_answers(self.serving), math.ceil(all_answers / sharing))
        return self.requests[team] < most and self.answers[team] + answers <= most_answers

    def _present(self) -> set[str]:
        """Teams with a running or waiting request, or with one that ended lately."""
        lately_s = self.now() - _PRESENT_S
        recent = {team for team, speed in self.speeds.items() if speed.ended_s and speed.ended_s[-1] >= lately_s}
        return {*self.requests, *self.waiting, *recent}

    def _has(self, answers: int) -> bool:
        requests, all_answers = self._all()
        return self.requests.total() < requests and self.answers.total() + answers <= all_answers

    def _all(self) -> tuple[int, int]:
        """All requests and answers that the engine takes at once."""
        return with_reserve(self.serving.max_ongoing_requests), with_reserve(team_answers(self.serving))


class EnginePlaces:
    """The places of one process. Bound to one event loop. With several processes each shares its own requests."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._engines: dict[str, _Engine] = {}
        self._now = now
        self.background = BackgroundPlaces(now)

    @asynccontextmanager
    async def place(
        self, route: Route, team: str, *, answers: int, param: Literal["n", "prompt"] = "n"
    ) -> AsyncIterator[None]:
        """Wait for a place and hold it. Raises ApiError 429 if too many wait, 400 for more answers than one team may
        have at this engine."""
        require_fits(route, answers, param)
        engine = self._engines.setdefault(route.application, _Engine(route.serving, self._now))
        engine.serving = route.serving  # may have changed
        with self.background.interactive(route.application):
            await _turn(engine, route, team, answers)
            try:
                yield
            finally:
                engine.release(team, answers)
                if not engine.requests and not engine.waiting:
                    self._engines.pop(route.application, None)


def require_fits(route: Route, answers: int, param: Literal["n", "prompt"]) -> None:
    """Raise ApiError 400 for more answers than one team may have at the route's engine."""
    most = team_answers(route.serving)
    if answers > most:
        message = f"the request asks for {answers} answers; {route.public_name!r} takes {most} at once: send several"
        raise bad_request(message, param=param)


async def _turn(engine: _Engine, route: Route, team: str, answers: int) -> None:
    full = engine.queue_is_full(team)
    request = _WaitingRequest(answers, asyncio.get_running_loop().create_future())
    engine.waiting.setdefault(team, deque()).append(request)
    engine.admit()
    if full and not request.admitted.done():
        engine.drop(team, request)
        raise queue_full(route.public_name, engine.retry_after_s(team))
    try:
        await request.admitted
    except asyncio.CancelledError:
        if request in engine.waiting.get(team, ()):
            engine.drop(team, request)
            engine.admit()  # a smaller request behind it may fit
        else:
            engine.release(team, answers)
        raise
