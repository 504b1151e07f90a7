"""Works on the open runs of every team: one process a run, by a lease on the store's clock.

Rows are answered and graded in chunks. A chunk is stored by a conditional write and then counted in the run by another,
so after a kill at any point every row has one output item and counts once. A lease is renewed while a run is worked on;
the renewal also notices that the run is cancelled, deleted, or taken by another process. Does not know how a row is
graded (`item_grading`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from ray_jobs.errors import KitaeError, ObjectNotFound, StoreError
from ray_jobs.storage import Store
from ray_jobs.tenancy.api_keys import Limits
from serving.access.auth import Caller
from serving.access.in_process import InProcess, key_problem
from serving.evals import records
from serving.evals.item_grading import grade_row
from serving.evals.model_calls import PATIENT_S, EndpointCalls
from serving.evals.question import question_of
from serving.evals.records import CHUNK_ITEMS, OPEN_RUNS, Chunk, StoredEval, StoredRun
from serving.http.eval_types import EvalError, SourceRow

logger = logging.getLogger(__name__)

_MARKER_AFTER_S = 120.0
"""Age at which a marker without a run is left from an interrupted create."""


@dataclass
class EvalRunner:
    """The runs that this process works on. Bound to one event loop."""

    store: Store
    in_process: InProcess
    runs_at_once: int = 4
    """Each asks for `CHUNK_ITEMS` rows at once."""
    poll_s: float = 5.0
    """Seconds between looks for runs that another process left."""
    lease_s: float = 60.0
    retry_after_s: tuple[float, ...] = PATIENT_S
    holder: str = field(default_factory=lambda: secrets.token_hex(8))
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _working: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def wake(self) -> None:
        """Look for runs at once. Called from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then give the leases back."""
        self._loop = asyncio.get_running_loop()
        stopping = asyncio.create_task(stop.wait())
        while not stop.is_set():
            self._wake.clear()
            try:
                await self._look()
            except KitaeError as error:
                logger.warning("open runs of evals cannot be read, which is tried again: %s", error)
            except Exception:  # a bug must not end the loop for the life of the process
                logger.exception("looking for open runs of evals failed, which is tried again")
            waiting = asyncio.create_task(self._wake.wait())
            await asyncio.wait({waiting, stopping}, timeout=self.poll_s, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        working = list(self._working.values())
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)

    async def _look(self) -> None:
        """Start work on open runs while there is room."""
        if len(self._working) >= self.runs_at_once:
            return
        for team, run_id, marked_s in await asyncio.to_thread(self._open_runs):
            if len(self._working) >= self.runs_at_once:
                return
            if run_id in self._working:
                continue
            run = await asyncio.to_thread(self._take, team, run_id, marked_s)
            if run is not None:
                self._working[run_id] = task = asyncio.create_task(self._work(run))
                task.add_done_callback(partial(self._left, run_id))

    def _left(self, run_id: str, task: asyncio.Task[None]) -> None:
        del self._working[run_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the run %s of an eval is left until its lease expires", run_id, exc_info=error)
        self._wake.set()

    def _open_runs(self) -> list[tuple[str, str, float]]:
        """List (team, run, time of its marker), oldest first."""
        found = list[tuple[str, str, float]]()
        for info in self.store.list(OPEN_RUNS.prefix):
            team, _, name = info.key.removeprefix(OPEN_RUNS.prefix).partition("/")
            found.append((team, name.removesuffix(".json"), info.modified_s))
        return sorted(found, key=lambda each: each[1])

    def _take(self, team: str, run_id: str, marked_s: float) -> StoredRun | None:
        """Take an open run's lease. None: another process has it, or it has ended."""
        name = f"{team}/{run_id}"
        marker = OPEN_RUNS.find(self.store, name)
        if marker is None:
            return None
        found = records.find_run(self.store, team, marker.eval_id, run_id)
        now_s = self.store.now_s()
        if found is None or not found.is_open:
            if found is not None or marked_s < now_s - _MARKER_AFTER_S:
                self.store.delete(OPEN_RUNS.key(name))
            return None

        def change(old: StoredRun) -> StoredRun:
            free = old.holder in (None, self.holder) or old.lease_until_s <= now_s
            lease = {"status": "in_progress", "holder": self.holder, "lease_until_s": now_s + self.lease_s}
            return old.model_copy(update=lease) if old.is_open and free else old

        taken = records.update_run(self.store, found, change)
        return taken if taken is not None and taken.is_open and taken.holder == self.holder else None

    async def _work(self, run: StoredRun) -> None:
        """Work on a run whose lease this process has, until it ends or the lease is lost."""
        working = asyncio.create_task(self._grade(run))
        renewing = asyncio.create_task(self._renew(run))
        try:
            await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await self._ended(run, working)
        finally:
            working.cancel()
            renewing.cancel()
            await asyncio.gather(working, renewing, return_exceptions=True)
            with suppress(StoreError):  # else the lease expires
                await asyncio.to_thread(records.update_run, self.store, run, self._released)

    async def _ended(self, run: StoredRun, working: asyncio.Task[None]) -> None:
        error = working.exception()
        if isinstance(error, StoreError) and not isinstance(error, ObjectNotFound):
            logger.warning("the run %s of an eval stops until the store answers: %s", run.id, error)
            await asyncio.sleep(self.poll_s)
        elif error is not None:
            logger.error("the run %s of an eval failed", run.id, exc_info=error)
            await self._finish(
                run, EvalError(code="internal_error", message="the service failed; its log has the reason")
            )

    async def _renew(self, run: StoredRun) -> None:
        """Renew the lease until it is lost. While the store does not answer, it may expire."""
        while True:
            await asyncio.sleep(self.lease_s / 4)
            with suppress(StoreError):
                found = await asyncio.to_thread(records.update_run, self.store, run, self._renewed)
                if found is None or not self._is_mine(found):
                    return

    async def _grade(self, run: StoredRun) -> None:
        """Grade the chunks that are left, then finish the run."""
        found = await asyncio.to_thread(records.load_eval, self.store, run.team, run.eval_id)
        rows = await asyncio.to_thread(records.read_rows, self.store, run)
        current: StoredRun | None = run
        while current is not None and self._is_mine(current) and current.chunks_done < current.chunks:
            caller = Caller(current.key_id, current.team, Limits(), admin=current.admin)
            if (problem := await asyncio.to_thread(key_problem, self.store, caller)) is not None:
                message = f"{problem}: start the run again with another key"
                await self._finish(run, EvalError(code="invalid_api_key", message=message))
                return
            number = current.chunks_done
            chunk = await asyncio.to_thread(records.chunks(run).read, self.store, records.chunk_name(number))
            if chunk is None:
                chunk = await self._chunk(current, found, rows, caller)
                chunk = await asyncio.to_thread(records.put_chunk, self.store, run, number, chunk)
            current = await asyncio.to_thread(self._count, run, number, chunk)
        if current is not None and self._is_mine(current):
            failed = current.first_error if current.counts.errored == current.counts.total else None
            await self._finish(run, failed)

    async def _chunk(self, run: StoredRun, found: StoredEval, rows: list[SourceRow], caller: Caller) -> Chunk:
        question = question_of(run)
        calls = EndpointCalls(self.in_process, caller, background=True, retry_after_s=self.retry_after_s)
        start, now_s = run.chunks_done * CHUNK_ITEMS, self.store.now_s()
        graded = await asyncio.gather(
            *(
                grade_row(run, found.testing_criteria, question, number, row, calls, now_s)
                for number, row in enumerate(rows[start : start + CHUNK_ITEMS], start)
            )
        )
        usage = records.added(each for _, used in graded for each in used)
        return Chunk(items=[item for item, _ in graded], usage=usage)

    def _count(self, run: StoredRun, number: int, chunk: Chunk) -> StoredRun | None:
        def change(old: StoredRun) -> StoredRun:
            is_next = self._is_mine(old) and old.chunks_done == number
            return records.with_chunk(old, chunk) if is_next else old

        return records.update_run(self.store, run, change)

    async def _finish(self, run: StoredRun, error: EvalError | None) -> None:
        """Record a run's end, then remove its marker."""
        end = {"status": "completed" if error is None else "failed", "error": error, "holder": None}

        def change(old: StoredRun) -> StoredRun:
            return old.model_copy(update=end) if self._is_mine(old) else old

        await asyncio.to_thread(records.update_run, self.store, run, change)
        await asyncio.to_thread(self.store.delete, OPEN_RUNS.key(f"{run.team}/{run.id}"))

    def _is_mine(self, run: StoredRun) -> bool:
        return run.is_open and run.holder == self.holder

    def _renewed(self, run: StoredRun) -> StoredRun:
        until_s = self.store.now_s() + self.lease_s
        return run.model_copy(update={"lease_until_s": until_s}) if self._is_mine(run) else run

    def _released(self, run: StoredRun) -> StoredRun:
        return run.model_copy(update={"holder": None, "lease_until_s": 0.0}) if self._is_mine(run) else run
