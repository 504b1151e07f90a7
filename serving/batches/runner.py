"""Which open batches this process works on. Runs on the event loop beside the requests.

Any number of processes may run it on one store: a batch has one worker at a time (`work`), and when its process dies
another takes it over once its lease has expired. Does not know how a batch is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from ray_jobs.errors import KitaeError
from ray_jobs.storage import Store
from serving.batches import records
from serving.batches.ending import Ending
from serving.batches.records import LEASE_S, ORPHAN_AFTER_S, OpenBatch, OpenList
from serving.batches.work import BatchWork, Pace, Post

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 32
"""Batches that one process works on at once."""
MAX_OF_TEAM = 2
"""Those of one team: its others wait, and other teams' do not wait for it."""
_STOP_WITHIN_S = 10.0


@dataclass(eq=False)
class BatchRunner:
    """Works on the open batches of a store."""

    store: Store
    ending: Ending
    post: Post
    every_s: float = 5.0
    """Seconds between looks at the open batches."""
    pace: Pace = field(default_factory=Pace)
    _open: OpenList = field(init=False)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict, init=False)
    """By batch id."""
    _working: dict[str, BatchWork] = field(default_factory=dict, init=False)
    _not_before_s: dict[str, float] = field(default_factory=dict, init=False)
    """By batch id: when to look again at one that another process has, or that failed."""
    _woken: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _wake: Callable[[], object] = field(default=lambda: None, init=False)

    def __post_init__(self) -> None:
        self._open = OpenList(self.store)

    def wake(self) -> None:
        """Look at the open batches now: one was created or cancelled. May be called from any thread."""
        self._wake()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set. Failures of the store or of a batch do not end the loop."""
        loop = asyncio.get_running_loop()
        self._wake = lambda: loop.call_soon_threadsafe(self._woken.set)
        try:
            while not stop.is_set():
                try:
                    await self._start_due()
                except KitaeError as error:
                    logger.warning("batches are delayed: %s", error)
                except Exception:  # a bug met in one batch must not end all others
                    logger.exception("batches are delayed")
                await self._wait(stop)
                for work in self._working.values():
                    if self._woken.is_set():
                        work.look()
                self._woken.clear()
            for work in self._working.values():
                work.stop()
            if self._tasks:  # one that does not stop in time is taken over once its lease has expired
                await asyncio.wait(self._tasks.values(), timeout=_STOP_WITHIN_S)
        finally:
            self._wake = lambda: None
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _wait(self, stop: asyncio.Event) -> None:
        """Wait until the next look is due."""
        waits = [asyncio.create_task(event.wait()) for event in (stop, self._woken)]
        await asyncio.wait(waits, timeout=self.every_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _start_due(self) -> None:
        """Start the work on open batches, within the limits: each team's oldest first, the teams in turn."""
        opened = await asyncio.to_thread(self._open.list)
        known = {name for batches in opened.values() for name in batches}
        self._not_before_s = {name: at for name, at in self._not_before_s.items() if name in known}
        running = Counter(work.batch.team for work in self._working.values())
        now_s = self.store.now_s()
        ranked: list[tuple[int, str, str, OpenBatch]] = []
        for team, batches in opened.items():
            idle = sorted(name for name in batches if name not in self._tasks and self._is_due(name, now_s))
            ranked += [(running[team] + rank, name, team, batches[name]) for rank, name in enumerate(idle)]
        for rank, name, team, entry in sorted(ranked, key=lambda one: one[:2]):
            if rank < MAX_OF_TEAM and len(self._tasks) < MAX_AT_ONCE:
                task = self._tasks[name] = asyncio.create_task(self._work(team, name, entry))
                task.add_done_callback(lambda _, name=name: self._tasks.pop(name, None))  # type: ignore[misc]

    def _is_due(self, name: str, now_s: float) -> bool:
        return self._not_before_s.get(name, 0.0) <= now_s

    async def _work(self, team: str, name: str, entry: OpenBatch) -> None:
        try:
            batch = await asyncio.to_thread(records.find, self.store, team, name)
            if batch is None:
                self._not_before_s[name] = self.store.now_s() + LEASE_S
                await asyncio.to_thread(self._drop_orphan, team, name, entry)
                return
            work = BatchWork(self.store, self.ending, self.post, batch, self.pace)
            self._working[name] = work
            await work.run()
            lease = work.batch.lease
            if lease is not None and lease.worker != work.worker:
                self._not_before_s[name] = lease.until
        except KitaeError as error:
            self._not_before_s[name] = self.store.now_s() + LEASE_S
            logger.warning("batch %s is delayed: %s", name, error)
        except Exception:  # retried, here or in another process
            self._not_before_s[name] = self.store.now_s() + LEASE_S
            logger.exception("batch %s is delayed", name)
        finally:
            self._working.pop(name, None)
            self._woken.set()  # its place is free

    def _drop_orphan(self, team: str, name: str, entry: OpenBatch) -> None:
        """Remove the entry of a batch that was never created."""
        old = self.store.now_s() - entry.at >= ORPHAN_AFTER_S
        with suppress(KitaeError):
            if old and not records.exists(self.store, team, name):
                records.leave(self.store, team, name)
