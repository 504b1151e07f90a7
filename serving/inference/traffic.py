"""How versions on trial do, in this process: their outcomes, the end of those that pass a bound, and shadow requests.

Owns the sliding window of each trial and what is done when it passes a bound: this process stops sending to the version
at once, then tells the store, for as long as it takes. Does not know which version a request goes to (`router`), nor
what the document looks like that says so (`ray_jobs.deploy.traffic`).

    traffic = Traffic(store)
    router = Router(store, ttl_s=2.0, stopped=traffic.stopped)
    traffic.mirror(route, ask)                            # the copy, if the route has a shadow
    pieces = traffic.measured(route, ask(route))          # an answer in pieces
    async with traffic.watched(route): …                  # an answer in one
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ray_jobs.deploy import traffic as policies
from ray_jobs.deploy.traffic import Bounds, Canary, Watch
from ray_jobs.errors import KitaeError, StoreError
from ray_jobs.storage import Store
from serving.http import errors
from serving.http.errors import ApiError
from serving.inference.backends import Pieces, Route, close

logger = logging.getLogger(__name__)

_WINDOW = 200
"""Outcomes that are remembered of a trial, unless it needs more to be judged by."""
_TRIALS_KEPT = 1024
_SHADOWS_AT_ONCE = 8
_SHADOW_TIMEOUT_S = 120.0
_LONGEST_RETRY_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """How one request went."""

    ok: bool
    seconds: float
    """To the answer, or to a stream's first piece: how fast a client reads on is no matter of the version."""


@dataclass
class ShadowFigures:
    """What became of the copies for one shadow version, since this process began."""

    answered: int = 0
    failed: int = 0
    dropped: int = 0
    """Not sent, since as many as may were in flight."""


def judge(bounds: Bounds, outcomes: Sequence[Outcome]) -> str | None:
    """Why a version must go, in words; None while it may stay. Pure."""
    count = len(outcomes)
    if count < bounds.min_requests:
        return None
    failed = sum(not outcome.ok for outcome in outcomes)
    if failed / count > bounds.max_error_rate:
        return f"{failed} of {count} requests failed, and at most {bounds.max_error_rate:.3g} of them may"
    seconds = sorted(outcome.seconds for outcome in outcomes if outcome.ok)
    if bounds.max_p95_s is not None and len(seconds) >= bounds.min_requests:
        p95_s = seconds[math.ceil(0.95 * len(seconds)) - 1]
        if p95_s > bounds.max_p95_s:
            return f"the p95 of {len(seconds)} requests is {p95_s:.3g} s, and may be {bounds.max_p95_s:g} s"
    return None


class Traffic:
    """One process's trials and shadows. Belongs to the event loop it is used in."""

    def __init__(
        self, store: Store | None = None, *, retry_s: float = 1.0, shadows_at_once: int = _SHADOWS_AT_ONCE
    ) -> None:
        """`store` None: a version that passes a bound is stopped here and nowhere else."""
        self.stopped: set[str] = set()
        """Ids of the trials that ended here; the router heeds them before the store does."""
        self.shadows: dict[str, ShadowFigures] = {}
        """By shadow, as `name@version`."""
        self._store = store
        self._retry_s = retry_s
        self._shadows_at_once = shadows_at_once
        self._windows: OrderedDict[str, deque[Outcome]] = OrderedDict()
        self._writing: set[asyncio.Task[None]] = set()
        self._shadowing: set[asyncio.Task[None]] = set()

    def observe(self, route: Route, *, ok: bool, seconds: float) -> None:
        """Count one outcome for the trial that the route belonged to when the request came; act if it is one too many.

        What a caller did wrong (4xx) is no outcome of the version, and must not be told.
        """
        trial = route.trial
        if trial is None or trial.id in self.stopped:
            return
        if isinstance(trial, Watch) and datetime.now(UTC) > trial.until:
            self._windows.pop(trial.id, None)
            return
        window = self._windows.setdefault(trial.id, deque(maxlen=max(_WINDOW, trial.bounds.min_requests)))
        self._windows.move_to_end(trial.id)
        while len(self._windows) > _TRIALS_KEPT:
            self._windows.popitem(last=False)
        window.append(Outcome(ok, seconds))
        reason = judge(trial.bounds, window)
        if reason is not None:
            self._stop(route.model.partition("@")[0], trial, reason)

    @asynccontextmanager
    async def watched(self, route: Route) -> AsyncIterator[None]:
        """Counts what happens inside as one outcome."""
        started = time.monotonic()
        try:
            yield
        except Exception as error:
            if _is_failure(error):
                self.observe(route, ok=False, seconds=time.monotonic() - started)
            raise
        self.observe(route, ok=True, seconds=time.monotonic() - started)

    async def measured(self, route: Route, pieces: Pieces) -> Pieces:
        """An answer's pieces as they are; counts it as one outcome. Closing it closes the answer."""
        started = time.monotonic()
        first_s: float | None = None
        ok: bool | None = None
        try:
            async for piece in pieces:
                first_s = time.monotonic() - started if first_s is None else first_s
                status = _refused(piece)
                ok = None if 400 <= status < 500 else status < 500
                yield piece
                if status:
                    return
            ok = first_s is not None
        except Exception as error:
            ok = False if _is_failure(error) else None
            raise
        finally:
            # A client that goes away has had its first piece, or it has waited too long for it, or it tells nothing.
            seconds = time.monotonic() - started if first_s is None else first_s
            slow_s = route.trial.bounds.max_p95_s if route.trial is not None else None
            if ok is not None:
                self.observe(route, ok=ok, seconds=seconds)
            elif first_s is None and slow_s is not None and seconds > slow_s:
                self.observe(route, ok=True, seconds=seconds)
            await close(pieces)

    def mirror(self, route: Route, ask: Callable[[Route], Pieces]) -> None:
        """Send a copy to the route's shadow, if it has one; nobody waits for it, and its answer is only counted."""
        shadow = route.shadow
        if shadow is None:
            return
        figures = self.shadows.setdefault(shadow.model, ShadowFigures())
        if len(self._shadowing) >= self._shadows_at_once:
            figures.dropped += 1
            return
        _start(self._shadow(figures, shadow, ask), self._shadowing)

    async def settled(self) -> None:
        """Wait until nothing is under way: shadows answered, ended trials told to the store."""
        while tasks := [*self._writing, *self._shadowing]:
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _shadow(self, figures: ShadowFigures, shadow: Route, ask: Callable[[Route], Pieces]) -> None:
        pieces = ask(shadow)
        try:
            async with asyncio.timeout(_SHADOW_TIMEOUT_S):
                statuses = [_refused(piece) async for piece in pieces]
            failed = not statuses or statuses[-1] >= 500
        except Exception as error:  # noqa: BLE001  # a shadow's failure is a figure, and nobody's error
            logger.info("the shadow %s failed: %s", shadow.model, error)
            failed = True
        finally:
            await close(pieces)
        figures.failed += failed
        figures.answered += not failed

    def _stop(self, name: str, trial: Canary | Watch, reason: str) -> None:
        self.stopped.add(trial.id)
        self._windows.pop(trial.id, None)
        logger.warning("%s@%s is taken away: %s", name, trial.version, reason)
        if self._store is not None:
            _start(self._tell(self._store, name, trial, reason), self._writing)

    async def _tell(self, store: Store, name: str, trial: Canary | Watch, reason: str) -> None:
        """Write it down, again and again while the store does not answer: the other processes may not have noticed."""
        delay_s = self._retry_s
        while True:
            try:
                if isinstance(trial, Canary):
                    ours = await asyncio.to_thread(policies.end_canary, store, name, trial, reason)
                else:
                    ours = await asyncio.to_thread(policies.undo_promotion, store, name, trial, reason)
            except StoreError as error:
                logger.warning("%s@%s could not be rolled back yet: %s", name, trial.version, error)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _LONGEST_RETRY_S)
            except KitaeError as error:
                logger.error("%s@%s cannot be rolled back for everybody: %s", name, trial.version, error)
                return
            else:
                logger.warning("%s@%s is rolled back%s", name, trial.version, "" if ours else " by another process")
                return


def _start(work: Any, among: set[asyncio.Task[None]]) -> None:
    task = asyncio.get_running_loop().create_task(work)
    among.add(task)  # the loop itself holds its tasks only weakly
    task.add_done_callback(among.discard)


def _refused(piece: dict[str, Any] | str) -> int:
    """The status of a refusal; 0 for a piece of an answer."""
    return errors.from_engine(piece["error"]).status if isinstance(piece, dict) and "error" in piece else 0


def _is_failure(error: Exception) -> bool:
    return not isinstance(error, ApiError) or error.status >= 500
