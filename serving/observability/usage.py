"""The ledger: what this process answered for whom, added up in memory and written to the store every few seconds.

Owns what is not written yet; storing and reading usage is `ray_jobs.tenancy.usage`. Knows no price and no limit.

    ledger = Ledger(store)
    app = Observed(app, metrics, on_end=[ledger.count])
    await ledger.run(stop)  # a background task; `stop` set: one last flush

A process that is killed loses what it counted since its last flush, at most `every_s` seconds' worth. One whose store
is away loses nothing and keeps one row for each day, team, key and model, up to a number; from there on the team's and
the day's sums stay right, and only the split by key and model is lost.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime

from ray_jobs.errors import KitaeError, StoreUnreachable
from ray_jobs.storage import Store
from ray_jobs.tenancy import usage
from ray_jobs.tenancy.usage import UsageRow
from serving.observability.metrics import OTHER, Finished

logger = logging.getLogger(__name__)

_MAX_ROWS = 10_000


@dataclass(frozen=True)
class _Batch:
    """Rows that have a name in the store, which they keep until they are known to be there."""

    number: int
    rows: tuple[UsageRow, ...]


class Ledger:
    """Safe to share between threads."""

    def __init__(
        self,
        store: Store,
        *,
        every_s: float = 10.0,
        writer: str | None = None,
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
        max_rows: int = _MAX_ROWS,
    ) -> None:
        """`writer` names this process among all that ever write; None: a random name."""
        self._store = store
        self._every_s = every_s
        self._writer = writer or f"api-{secrets.token_hex(8)}"
        self._today = today
        self._max_rows = max_rows
        self._rows: dict[tuple[date, str, str, str, str], UsageRow] = {}
        self._batches: dict[tuple[str, date], _Batch] = {}
        self._last_number = 0
        self._lock = threading.Lock()
        self._flushing = threading.Lock()

    def count(self, done: Finished) -> None:
        """Count a request that a model answered; what was refused, or is no model's, costs nobody anything."""
        if done.model is None or done.team is None or done.key_id is None:
            return
        if done.prompt_tokens is None and done.status >= 400:
            return
        self.add(
            done.team,
            done.key_id,
            done.model,
            prompt_tokens=done.prompt_tokens or 0,
            completion_tokens=done.completion_tokens or 0,
        )

    def add(
        self,
        team: str,
        key_id: str,
        model: str,
        *,
        requests: int = 1,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
    ) -> None:
        """Count what one request used. Takes microseconds; nothing is written."""
        row = UsageRow(
            day=self._today(),
            team=team,
            key_id=key_id,
            model=model,
            kind="inference",
            requests=requests,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )
        with self._lock:
            if row.identity not in self._rows and len(self._rows) >= self._max_rows:
                row = row.model_copy(update={"key_id": OTHER, "model": OTHER})
            known = self._rows.get(row.identity)
            self._rows[row.identity] = row if known is None else known.plus(row)

    def flush(self) -> None:
        """Write what is not written yet. Raises the first StoreError; what was not written is kept for the next time.

        Blocks as long as the store's patience lasts.
        """
        failure: KitaeError | None = None
        with self._flushing:
            self._name_rows()
            for (team, day), batch in list(self._batches.items()):
                try:
                    # Refused because it is there: an earlier try got through, and only its answer was lost.
                    usage.write(self._store, team, day, self._writer, batch.number, batch.rows)
                except StoreUnreachable:
                    raise  # the others would wait as long, for nothing
                except KitaeError as error:
                    failure = failure or error
                    continue
                del self._batches[team, day]
        if failure is not None:
            raise failure

    async def run(self, stop: asyncio.Event) -> None:
        """Flush every few seconds until `stop` is set, and once more then. A store that fails ends nothing."""
        stopped = False
        while not stopped:
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._every_s)
            stopped = stop.is_set()
            try:
                await asyncio.to_thread(self.flush)
            except KitaeError as error:
                logger.warning("usage is not written yet, and kept: %s", error)

    def _name_rows(self) -> None:
        """Give rows their name in the store. Those of a team and day whose last batch is not written yet wait for it,
        so that a store that is away makes this process hold no more than two rows for each identity."""
        with self._lock:
            waiting: dict[tuple[str, date], list[UsageRow]] = {}
            for row in self._rows.values():
                if (row.team, row.day) not in self._batches:
                    waiting.setdefault((row.team, row.day), []).append(row)
            for group, rows in waiting.items():
                self._last_number += 1
                self._batches[group] = _Batch(self._last_number, tuple(rows))
                for row in rows:
                    del self._rows[row.identity]
