"""Measures rollouts in this process, ends those that exceed a bound, and sends shadow requests.

A rollout is a canary or a watched promotion. Owns its sliding window of outcomes and its end: this process stops
routing to the version at once and records the end in the store, with retries. Does not route requests (`router`), nor
know the format of the traffic policy (`ray_jobs.deploy.traffic`).

    traffic = Traffic(store)
    router = Router(store, ttl_s=2.0, stopped=traffic.stopped)
    traffic.mirror(route, ask)                            # sends a copy if the route has a shadow
    chunks = traffic.measured(route, ask(route))          # measures a response in chunks
    async with traffic.watched(route): …                  # measures a single response
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ray_jobs import registry
from ray_jobs.deploy import traffic as policies
from ray_jobs.deploy.traffic import Bounds, Canary, Watch
from ray_jobs.errors import KitaeError, StoreError
from ray_jobs.storage import Store
from ray_jobs.tenancy import audit
from serving.http import errors
from serving.http.errors import ApiError
from serving.inference.backends import Chunks, Route
from serving.inference.percentiles import p95

logger = logging.getLogger(__name__)

_WINDOW = 200
"""Outcomes kept for a rollout, unless its `min_requests` is larger."""
_ROLLOUTS_KEPT = 1024
_MAX_SHADOWS = 8
_SHADOW_TIMEOUT_S = 120.0
_MAX_RETRY_S = 60.0


@dataclass(frozen=True)
class RequestOutcome:
    ok: bool
    seconds: float
    """Time to the response, or to a stream's first chunk; later chunks depend on the client's reading speed."""


def judge(bounds: Bounds, outcomes: Sequence[RequestOutcome]) -> str | None:
    """Return which bound the outcomes exceed, in words, or None. Pure."""
    count = len(outcomes)
    if count < bounds.min_requests:
        return None
    failed = sum(not outcome.ok for outcome in outcomes)
    if failed / count > bounds.max_error_rate:
        return f"{failed} of {count} requests failed; the maximum error rate is {bounds.max_error_rate:.3g}"
    seconds = [outcome.seconds for outcome in outcomes if outcome.ok]
    if bounds.max_p95_s is not None and len(seconds) >= bounds.min_requests:
        p95_s = p95(seconds)
        if p95_s > bounds.max_p95_s:
            return f"the p95 of {len(seconds)} requests is {p95_s:.3g} s; the maximum is {bounds.max_p95_s:g} s"
    return None


class Traffic:
    """The rollouts and shadow requests of one process. Bound to one event loop."""

    def __init__(self, store: Store | None = None, *, retry_s: float = 1.0) -> None:
        """`store` None: a rollout that exceeds a bound ends in this process only."""
        self.stopped: set[str] = set()
        """Ids of the rollouts ended here; the router ignores them before the store is updated."""
        self._store = store
        self._now = store.now if store is not None else partial(datetime.now, UTC)
        self._retry_s = retry_s
        self._windows: OrderedDict[str, deque[RequestOutcome]] = OrderedDict()
        self._writing: set[asyncio.Task[None]] = set()
        self._shadowing: set[asyncio.Task[None]] = set()

    def observe(self, route: Route, *, ok: bool, seconds: float) -> None:
        """Count one outcome for the route's rollout, and end the rollout if it exceeds a bound.

        Errors of the client (4xx) are not outcomes of the version and must not be passed.
        """
        rollout = route.rollout
        if rollout is None or rollout.id in self.stopped:
            return
        if isinstance(rollout, Watch) and self._now() > rollout.until:
            self._windows.pop(rollout.id, None)
            return
        window = self._windows.setdefault(rollout.id, deque(maxlen=max(_WINDOW, rollout.bounds.min_requests)))
        self._windows.move_to_end(rollout.id)
        while len(self._windows) > _ROLLOUTS_KEPT:
            self._windows.popitem(last=False)
        window.append(RequestOutcome(ok, seconds))
        reason = judge(rollout.bounds, window)
        if reason is not None:
            self._stop(route.model.partition("@")[0], rollout, reason)

    @asynccontextmanager
    async def watched(self, route: Route) -> AsyncIterator[None]:
        """Measure the block as one outcome."""
        started = time.monotonic()
        try:
            yield
        except Exception as error:
            if _is_failure(error):
                self.observe(route, ok=False, seconds=time.monotonic() - started)
            raise
        self.observe(route, ok=True, seconds=time.monotonic() - started)

    async def measured(self, route: Route, chunks: Chunks) -> Chunks:
        """Yield a response's chunks unchanged and count it as one outcome. Closing it closes the response."""
        started = time.monotonic()
        first_s: float | None = None
        ok: bool | None = None
        try:
            async for chunk in chunks:
                first_s = time.monotonic() - started if first_s is None else first_s
                error = chunk.get("error") if isinstance(chunk, dict) else None
                status = 0 if error is None else errors.from_engine(error).status
                ok = None if 400 <= status < 500 else status < 500
                yield chunk
                if status:
                    return
            ok = first_s is not None
        except Exception as failure:
            ok = False if _is_failure(failure) else None
            raise
        finally:
            # A client that disconnects before the first chunk counts only if it waited longer than the bound.
            seconds = time.monotonic() - started if first_s is None else first_s
            slow_s = route.rollout.bounds.max_p95_s if route.rollout is not None else None
            if ok is not None:
                self.observe(route, ok=ok, seconds=seconds)
            elif first_s is None and slow_s is not None and seconds > slow_s:
                self.observe(route, ok=True, seconds=seconds)
            await chunks.aclose()

    def mirror(self, route: Route, ask: Callable[[Route], Chunks]) -> None:
        """Send a copy to the route's shadow, if it has one, in the background; its response is dropped."""
        if route.shadow is not None and len(self._shadowing) < _MAX_SHADOWS:
            _start(_shadow(route.shadow, ask), self._shadowing)

    async def settled(self) -> None:
        """Wait for all shadow requests and for the recording of ended rollouts."""
        while tasks := [*self._writing, *self._shadowing]:
            await asyncio.gather(*tasks, return_exceptions=True)

    def _stop(self, name: str, rollout: Canary | Watch, reason: str) -> None:
        self.stopped.add(rollout.id)
        self._windows.pop(rollout.id, None)
        logger.warning("%s@%s gets no more requests: %s", name, rollout.version, reason)
        if self._store is not None:
            _start(self._record_end(self._store, name, rollout, reason), self._writing)

    async def _record_end(self, store: Store, name: str, rollout: Canary | Watch, reason: str) -> None:
        """Record the end of a rollout for all processes; retries while the store does not answer."""
        delay_s = self._retry_s
        while True:
            try:
                ours = await asyncio.to_thread(_end, store, name, rollout, reason)
            except StoreError as error:
                logger.warning("%s@%s is not rolled back yet: %s", name, rollout.version, error)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _MAX_RETRY_S)
            except KitaeError as error:
                logger.error("%s@%s cannot be rolled back in other processes: %s", name, rollout.version, error)
                return
            else:
                logger.warning("%s@%s is rolled back%s", name, rollout.version, "" if ours else " by another process")
                return


class _EndedElsewhere(KitaeError):
    """Another process has ended the rollout."""


def _end(store: Store, name: str, rollout: Canary | Watch, reason: str) -> bool:
    """End a rollout for all processes, with an entry in the audit log; True if this call ended it."""
    policy = policies.read(store, name)
    if policy is None or rollout.id not in {each.id for each in (policy.canary, policy.watch) if each is not None}:
        return False
    actor, team = audit.Actor(name="endpoint", via="endpoint"), registry.owner(store, name)
    details: dict[str, audit.Value] = {"version": rollout.version, "reason": reason}
    target = f"{name}@{policy.alias}"
    try:
        with audit.recorded(store, actor, "traffic.rollback", target, team=team, details=details):
            if isinstance(rollout, Canary):
                ours = policies.end_canary(store, name, rollout, reason)
            else:
                ours = policies.undo_promotion(store, name, rollout, reason)
            if not ours:
                raise _EndedElsewhere("another process has ended it")
    except _EndedElsewhere:
        return False
    return True


async def _shadow(shadow: Route, ask: Callable[[Route], Chunks]) -> None:
    try:
        async with asyncio.timeout(_SHADOW_TIMEOUT_S), aclosing(ask(shadow)) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, dict) and "error" in chunk:
                    failure = errors.from_engine(chunk["error"])
                    if failure.status >= 500:  # else the request is at fault
                        raise failure
    except Exception as error:  # noqa: BLE001  # the client's own request is not affected
        logger.info("the shadow %s failed: %s", shadow.model, error)


def _start(work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]) -> None:
    task = asyncio.get_running_loop().create_task(work)
    among.add(task)  # the event loop holds only weak references
    task.add_done_callback(among.discard)


def _is_failure(error: Exception) -> bool:
    return not isinstance(error, ApiError) or error.status >= 500
