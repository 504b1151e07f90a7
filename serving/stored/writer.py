"""Writes answers to the store beside the requests that made them.

Owns the queue of waiting answers, the retries, and the bound on what a team keeps. An answer that is not written is
never lost in silence: its outcome is counted and logged. Does not know routes.

    written = writer.submit("chat", record)  # returns at once
    await asyncio.wrap_future(written)       # "stored", or why it is not
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

from ray_jobs.digests import canonical_json
from ray_jobs.errors import KitaeError, StoreError
from ray_jobs.storage import Store
from ray_jobs.storage.unreadable import nested_deeper
from ray_jobs.tenancy.answers import records
from ray_jobs.tenancy.answers.records import Kind, StoredAnswer
from ray_jobs.tenancy.team_limits import TeamQuotas

logger = logging.getLogger(__name__)

Outcome = Literal["stored", "failed", "queue_full", "no_room", "too_large"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
MAX_ANSWER_BYTES = 16 * 2**20
_MAX_NESTING = 60
"""Bounds of a document that can be read again."""
_WAITING_BYTES = 256 * 2**20
_WRITES_AT_ONCE = 8
_TOTALS_TTL_S = 60.0
"""Seconds for which a team's totals are counted on; other replicas' answers of that time are not in them."""
_CLOSE_WITHIN_S = 20.0
_DELAYS_S = (0.5, 2.0, 8.0)
_NEVER = float("-inf")


@dataclass
class _TeamTotals:
    """What a team keeps, as last listed, with what this process has written since."""

    answers: int = 0
    size_bytes: int = 0
    read_at: float = _NEVER
    listing: threading.Lock = field(default_factory=threading.Lock)

    def add(self, answers: int, size_bytes: int) -> None:
        self.answers += answers
        self.size_bytes += size_bytes


@dataclass
class AnswerWriter:
    """The writes of one process. Thread-safe."""

    store: Store
    quotas: TeamQuotas
    on_outcome: Callable[[str], None]
    """Called with each answer's `Outcome`."""
    delays_s: tuple[float, ...] = _DELAYS_S
    """Seconds before each retry of a failed write."""
    _threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_WRITES_AT_ONCE, thread_name_prefix="answers"), init=False
    )
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _waiting: dict[Future[Outcome], tuple[str, int]] = field(default_factory=dict, init=False)
    """Write → its team and bytes."""
    _totals: dict[str, _TeamTotals] = field(default_factory=dict, init=False)
    _closing: threading.Event = field(default_factory=threading.Event, init=False)

    def submit(self, kind: Kind, record: StoredAnswer) -> Future[Outcome]:
        """Write an answer in the background; the result is its outcome. Raises nothing."""
        document = record.model_dump(mode="json")
        size_bytes = len(canonical_json(document))
        if size_bytes > MAX_ANSWER_BYTES or nested_deeper(document, _MAX_NESTING):
            reason = f"it has {size_bytes} bytes; {MAX_ANSWER_BYTES} and {_MAX_NESTING} levels are possible"
            return self._not_written(record, "too_large", reason)
        with self._lock:
            waiting_bytes = sum(size for _, size in self._waiting.values())
            if waiting_bytes + size_bytes <= _WAITING_BYTES and not self._closing.is_set():
                future = self._threads.submit(self._write, kind, record, size_bytes)
                self._waiting[future] = (record.team, size_bytes)
                future.add_done_callback(self._forget)
                return future
        return self._not_written(record, "queue_full", f"{waiting_bytes} bytes wait to be written")

    def settle(self, team: str, timeout_s: float) -> None:
        """Wait until the answers that a team's requests have submitted here are written."""
        with self._lock:
            mine = [future for future, (owner, _) in self._waiting.items() if owner == team]
        wait(mine, timeout_s)

    def has_room(self, team: str) -> bool:
        """Whether a team was within its limits when it was last counted; counts nothing now."""
        known = self._totals.get(team)
        return known is None or self._fits(known, team, 0)

    def close(self) -> None:
        """Write what waits, for a limited time. Blocks."""
        self._closing.set()
        with self._lock:
            waiting = list(self._waiting)
        late = wait(waiting, _CLOSE_WITHIN_S).not_done
        if late:
            logger.error("%d answers were not stored before the process ended", len(late))
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _write(self, kind: Kind, record: StoredAnswer, size_bytes: int) -> Outcome:
        try:
            if not self._try(kind, record, size_bytes):
                return self._report(record, "no_room", f"team {record.team} has reached its limit")
        except KitaeError as error:
            return self._report(record, "failed", str(error))
        except Exception:  # a bug here must not end in silence: nobody waits for this thread
            logger.exception("writing the answer %s failed", record.id)
            self.on_outcome("failed")
            return "failed"
        self.on_outcome("stored")
        return "stored"

    def _try(self, kind: Kind, record: StoredAnswer, size_bytes: int) -> bool:
        """Write it, with retries. False: its team has no room. Raises StoreError."""
        for delay_s in (*self.delays_s, None):
            try:
                with self._counted(record.team, size_bytes) as fits:
                    if fits:
                        records.write(self.store, kind, record)
                    return fits
            except StoreError:
                if delay_s is None or self._closing.wait(delay_s):
                    raise
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _counted(self, team: str, size_bytes: int) -> Iterator[bool]:
        """Count an answer before it is written, if the team has room; it is not counted if the block raises."""
        known = self._counts_of(team)
        with self._lock:
            fits = self._fits(known, team, size_bytes)
            known.add(int(fits), size_bytes * int(fits))
        try:
            yield fits
        except Exception:
            with self._lock:
                known.add(-int(fits), -size_bytes * int(fits))
            raise

    def _counts_of(self, team: str) -> _TeamTotals:
        """Return what a team keeps, listed again from time to time by one thread; others use the last listing."""
        with self._lock:
            known = self._totals.setdefault(team, _TeamTotals())
        is_stale = time.monotonic() - known.read_at >= _TOTALS_TTL_S
        if is_stale and known.listing.acquire(blocking=known.read_at == _NEVER):
            try:
                if time.monotonic() - known.read_at >= _TOTALS_TTL_S:
                    answers, held_bytes = records.totals(self.store, team)
                    with self._lock:
                        known.answers, known.size_bytes, known.read_at = answers, held_bytes, time.monotonic()
            finally:
                known.listing.release()
        return known

    def _fits(self, known: _TeamTotals, team: str, size_bytes: int) -> bool:
        limits = self.quotas.of(team)
        return known.answers < limits.stored_answers and known.size_bytes + size_bytes <= limits.stored_answer_bytes

    def _not_written(self, record: StoredAnswer, outcome: Outcome, reason: str) -> Future[Outcome]:
        done: Future[Outcome] = Future()
        done.set_result(self._report(record, outcome, reason))
        return done

    def _report(self, record: StoredAnswer, outcome: Outcome, reason: str) -> Outcome:
        logger.error("the answer %s of team %s is not stored (%s): %s", record.id, record.team, outcome, reason)
        self.on_outcome(outcome)
        return outcome

    def _forget(self, future: Future[Outcome]) -> None:
        with self._lock:
            self._waiting.pop(future, None)
