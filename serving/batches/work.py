"""The work on one batch: checks its input file, sends its lines, appends results to the log, and ends it.

One worker at a time has a batch, by a lease on the store's clock. It may be killed at any time: the next one continues
from the log (`progress`). Requests run on the event loop, calls of the store in threads.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray_jobs.errors import CorruptObject, ObjectNotFound, StoreError
from ray_jobs.storage import Store
from ray_jobs.tenancy.api_keys import Limits
from serving.access.auth import Caller
from serving.access.in_process import Answer, key_problem
from serving.batches import input_file, records
from serving.batches.ending import Ending, output_line
from serving.batches.input_file import BatchLine
from serving.batches.progress import BatchEnd, BatchLog, FinishedLines, LineFailure, counted
from serving.batches.records import ApiBatch
from serving.http.batch_types import BatchError
from serving.http.errors import internal_error

logger = logging.getLogger(__name__)

_AT_ONCE = 256
"""Lines of a batch that are sent at once; how many run is the engine's matter (`serving.inference.background`)."""
_BYTES_AT_ONCE = 8 * 2**20
"""Bytes of lines of a batch that are sent at once."""
_READ_AHEAD = 64
_BUSY = frozenset({429, 503, 507})
"""Statuses after which a line is sent again for as long as its batch may run."""
_TRIES = 3
"""Tries of a line that the service fails to answer."""
_LONGEST_PAUSE_S = 30.0


class Post(Protocol):
    """How a line is sent: `InProcess.post`."""

    def __call__(
        self, path: str, body: dict[str, Any], caller: Caller, *, background: bool = False
    ) -> Awaitable[Answer]: ...


@dataclass(frozen=True)
class Pace:
    """How often a worker writes."""

    lines: int = 256
    """Results in memory at which they are written."""
    bytes: int = 4 * 2**20
    every_s: float = 5.0
    """Seconds between writes, which also renew the lease and find a cancellation. What a killed process loses."""
    retry_s: float = 1.0
    """Seconds before a busy model or store is asked again; doubled each time."""


@dataclass(frozen=True)
class LineResult:
    """The result of a line."""

    number: int
    content: bytes
    """Its line of the output or the error file."""
    ok: bool
    input_tokens: int = 0
    output_tokens: int = 0


class LeaseLost(Exception):
    """Another worker has the batch."""


@dataclass(eq=False)
class BatchWork:
    """A worker on one batch."""

    store: Store
    ending: Ending
    post: Post
    batch: ApiBatch
    pace: Pace = field(default_factory=Pace)
    worker: str = field(default_factory=lambda: secrets.token_hex(8))
    stopping: bool = False
    _due: bool = False
    """Whether to write and look at the batch now."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _sent: dict[asyncio.Task[LineResult], int] = field(default_factory=dict)
    """Requests that run → bytes of their lines."""
    _entries: list[FinishedLines] = field(default_factory=list)
    _results: list[LineResult] = field(default_factory=list)
    """Not yet in the log."""
    _unwritten: tuple[FinishedLines, bytes, bytes] | None = None
    """The next entry, kept unchanged until it is known to be written."""

    async def run(self) -> None:
        """Work until the batch has ended, or another worker has it."""
        self.batch = await asyncio.to_thread(self._claim)
        if not self._is_mine():
            return
        try:
            ready = await asyncio.to_thread(self._prepare)
            if ready and await self._answer_lines():
                await asyncio.to_thread(self.ending.finish, self.batch)
        except LeaseLost:
            logger.info("batch %s: another process works on it", self.batch.id)
            await asyncio.to_thread(self._release)
        except (ObjectNotFound, CorruptObject) as error:
            logger.error("batch %s cannot go on: %s", self.batch.id, error)
            message = "the batch's input file, or what was done of it, cannot be read any more: create a new batch"
            await asyncio.to_thread(self.ending.fail, self.batch, [BatchError(code="unreadable", message=message)])

    def stop(self) -> None:
        """Hand the batch over with what is done."""
        self.stopping = True
        self._changed.set()

    def look(self) -> None:
        """Look at the batch now: it may be cancelled."""
        self._due = True
        self._changed.set()

    # ---- before the lines ------------------------------------------------------------------------------------------

    def _claim(self) -> ApiBatch:
        now_s = self.store.now_s()
        return records.update(
            self.store, self.batch, lambda old: old if old.is_over else records.leased(old, self.worker, now_s)
        )

    def _is_mine(self) -> bool:
        return self.batch.is_over or (self.batch.lease is not None and self.batch.lease.worker == self.worker)

    def _prepare(self) -> bool:
        """Check the input file, if it was not. Returns whether lines are to be sent or files to be made."""
        if self.batch.is_over:  # its process ended before it cleaned up
            self.ending.close(self.batch)
            return False
        if self.batch.total is None:
            if self.batch.status == "cancelling" or self.store.now_s() >= self.batch.expires_at:
                self.ending.cancel_unread(self.batch)
                return False
            found = input_file.checked(self.ending.pieces(self.batch), self.batch.endpoint, self.ending.max_line_bytes)
            if found.errors:
                self.ending.fail(self.batch, found.errors, found.total)
                return False
            now_s = self.store.now_s()

            def begin(old: ApiBatch) -> ApiBatch:
                status = "in_progress" if old.status == "validating" else old.status
                begun = {"status": status, "total": found.total, "model": found.model, "in_progress_at": int(now_s)}
                return old if old.total is not None else old.model_copy(update=begun)

            self.batch = records.update(self.store, self.batch, begin)
        self._entries = BatchLog(self.store, self.batch).read()
        return True

    # ---- the lines -------------------------------------------------------------------------------------------------

    async def _answer_lines(self) -> bool:
        """Send the lines without a result. Returns whether the batch has its end; False: it is handed over."""
        if self._end() is not None:
            return True
        caller = self._caller()
        unread = _LineReader(self._open_lines())
        write_at_s = time.monotonic()
        self._due = True  # the key, and a cancellation, before a line is sent
        try:
            while True:
                self._collect()
                while self._has_room() and (line := await unread.next()) is not None:
                    self._send(line, caller)
                    await asyncio.sleep(0)  # requests of clients are handled in between
                over = unread.ended and not self._sent and not self.stopping
                if over or self.stopping or self._due or self._must_write() or time.monotonic() >= write_at_s:
                    self._due = False
                    if self.stopping:
                        self._collect()
                        await self._cancel_sent()
                    await self._write(BatchEnd(status="completed") if over else None)
                    if self._end() is not None:
                        return True
                    if self.stopping:
                        await asyncio.to_thread(self._release)
                        return False
                    write_at_s = time.monotonic() + self.pace.every_s
                    continue
                if not any(task.done() for task in self._sent):
                    self._changed.clear()
                    # Not `wait_for`, which can lose a cancellation in Python 3.11.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(max(0.0, write_at_s - time.monotonic())):
                            await self._changed.wait()
        finally:
            await self._cancel_sent()

    def _send(self, line: BatchLine, caller: Caller) -> None:
        task = asyncio.create_task(self._answer(line, caller))
        self._sent[task] = line.size_bytes
        task.add_done_callback(lambda _: self._changed.set())

    def _collect(self) -> None:
        """Take the results of the requests that have ended."""
        for task in [task for task in self._sent if task.done()]:
            del self._sent[task]
            self._results.append(task.result())

    async def _cancel_sent(self) -> None:
        """Cancel the requests that run, and wait until they have ended."""
        sent, self._sent = self._sent, {}
        for task in sent:
            task.cancel()
        await asyncio.gather(*sent, return_exceptions=True)

    def _open_lines(self) -> Iterator[BatchLine]:
        done = {number for entry in self._entries for number in (*entry.completed, *entry.failed)}
        for number, raw in input_file.raw_lines(self.ending.pieces(self.batch), self.ending.max_line_bytes):
            if number not in done:
                yield input_file.parse(number, raw, self.batch.endpoint, self.ending.max_line_bytes)

    def _has_room(self) -> bool:
        if self.stopping or self._due or len(self._sent) >= _AT_ONCE:
            return False
        return sum(self._sent.values()) < _BYTES_AT_ONCE and not self._must_write()

    def _must_write(self) -> bool:
        held_bytes = sum(len(result.content) for result in self._results)
        return len(self._results) >= self.pace.lines or held_bytes >= self.pace.bytes

    async def _answer(self, line: BatchLine, caller: Caller) -> LineResult:
        """Send a line until it has an answer that counts."""
        pause_s, tries = self.pace.retry_s, 0
        while True:
            try:
                answer = await self.post(self.batch.endpoint, line.body, caller, background=True)
            except Exception:  # a route's own failure, as a live request gets it
                logger.exception("a line of batch %s failed", self.batch.id)
                answer = Answer(500, secrets.token_hex(16), internal_error().body())
            tries += answer.status not in _BUSY
            if (answer.status < 500 and answer.status not in _BUSY) or tries >= _TRIES:
                return _result(line, answer)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    # ---- the log ---------------------------------------------------------------------------------------------------

    def _end(self) -> BatchEnd | None:
        return self._entries[-1].end if self._entries else None

    async def _write(self, end: BatchEnd | None) -> None:
        """Write the results and renew the lease; with an end, or one that the batch's state asks for, end the log.

        Retries while the store is away. Raises LeaseLost.
        """
        pause_s = self.pace.retry_s
        while True:
            try:
                await asyncio.to_thread(self._write_once, end)
                return
            except (ObjectNotFound, CorruptObject):
                raise
            except StoreError as error:
                logger.warning("batch %s waits for the store: %s", self.batch.id, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _write_once(self, end: BatchEnd | None) -> None:
        now_s = self.store.now_s()
        self.batch = records.update(self.store, self.batch, lambda old: self._renewed(old, now_s))
        if self.batch.is_over or not self._is_mine():
            raise LeaseLost
        end = end or self._early_end(now_s)
        if self._unwritten is None and (self._results or end is not None):
            self._unwritten = _entry(self.worker, now_s, self._results, end)
            self._results = []
        if self._unwritten is not None:
            if not BatchLog(self.store, self.batch).append(len(self._entries), *self._unwritten):
                raise LeaseLost
            self._entries.append(self._unwritten[0])
            self._unwritten = None

    def _renewed(self, old: ApiBatch, now_s: float) -> ApiBatch:
        if old.is_over or not records.is_free(old, self.worker, now_s):
            return old
        return counted(records.leased(old, self.worker, now_s), self._entries)

    def _early_end(self, now_s: float) -> BatchEnd | None:
        """How the batch ends before all its lines have a result; None: it does not."""
        if self.batch.status == "cancelling":
            return BatchEnd(status="cancelled", rest=_not_run("batch_cancelled", "the batch was cancelled"))
        if now_s >= self.batch.expires_at:
            return BatchEnd(status="expired", rest=_not_run("batch_expired", "the completion window of 24h has ended"))
        if (problem := key_problem(self.store, self._caller())) is not None:
            return BatchEnd(status="completed", rest=_not_run("invalid_api_key", problem))
        return None

    def _caller(self) -> Caller:
        return Caller(self.batch.key_id, self.batch.team, Limits(), admin=self.batch.admin)

    def _release(self) -> None:
        with suppress(StoreError):
            records.update(self.store, self.batch, lambda old: records.released(old, self.worker))


class _LineReader:
    """Takes lines from an iterator that reads the store, several at a time in a thread."""

    def __init__(self, lines: Iterator[BatchLine]) -> None:
        self._lines = lines
        self._ahead: list[BatchLine] = []
        self.ended = False

    async def next(self) -> BatchLine | None:
        if not self._ahead and not self.ended:
            self._ahead = await asyncio.to_thread(self._read)
            self.ended = not self._ahead
        return self._ahead.pop() if self._ahead else None

    def _read(self) -> list[BatchLine]:
        found: list[BatchLine] = []
        for line in self._lines:
            found.append(line)
            if len(found) >= _READ_AHEAD or sum(each.size_bytes for each in found) >= _BYTES_AT_ONCE // 2:
                break
        return found[::-1]


def _entry(
    worker: str, at_s: float, results: list[LineResult], end: BatchEnd | None
) -> tuple[FinishedLines, bytes, bytes]:
    """An entry of the log with its lines of the output file and of the error file."""
    completed, failed = ([each for each in results if each.ok is ok] for ok in (True, False))
    entry = FinishedLines(
        worker=worker,
        at=at_s,
        completed=tuple(each.number for each in completed),
        failed=tuple(each.number for each in failed),
        input_tokens=sum(each.input_tokens for each in results),
        output_tokens=sum(each.output_tokens for each in results),
        end=end,
    )
    return entry, *(b"".join(each.content for each in some) for some in (completed, failed))  # type: ignore[return-value]


def _result(line: BatchLine, answer: Answer) -> LineResult:
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": answer.body}
    content = output_line(answer.request_id, line.custom_id, response, None)
    usage = answer.body.get("usage") if answer.ok else None
    tokens = usage if isinstance(usage, dict) else {}
    read = tokens.get("prompt_tokens", tokens.get("input_tokens")) or 0
    generated = tokens.get("completion_tokens", tokens.get("output_tokens")) or 0
    return LineResult(line.number, content, answer.ok, int(read), int(generated))


def _not_run(code: str, why: str) -> LineFailure:
    return LineFailure(code=code, message=f"this request was not run: {why}")
