"""The usage ledger of one process: counts requests and tokens in memory and writes them to the store.

Owns unwritten rows; `ray_jobs.tenancy.usage` stores and reads usage. Knows no price and no limit.

    ledger = UsageLedger(store)
    app = ObservabilityMiddleware(app, metrics, on_end=[ledger.count])
    BackgroundLoop([PeriodicTask("usage", 10.0, ledger.flush, at_shutdown=True)])

A killed process loses the usage since its last flush. While the store does not answer, nothing is lost: memory holds
one row for each day, team, key and model, up to `max_rows`; beyond it new rows are counted under the key and model
`other`, so that sums by team and day stay correct.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

from ray_jobs.errors import KitaeError, StoreUnreachable
from ray_jobs.storage import Store
from ray_jobs.tenancy import usage
from ray_jobs.tenancy.usage import UsageRow
from serving.observability.metrics import OTHER, FinishedRequest

_NUMBERS_KEPT = timedelta(days=30)
"""Age of a day from which no row is added to it any more."""


class UsageLedger:
    """Thread-safe."""

    def __init__(
        self,
        store: Store,
        *,
        writer: str | None = None,
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
        max_rows: int = 10_000,
    ) -> None:
        """`writer`: name of this process, unique among all processes that ever write; None: a random name."""
        self._store = store
        self._writer = writer or f"api-{secrets.token_hex(8)}"
        self._today = today
        self._max_rows = max_rows
        self._rows: dict[tuple[date, str, str, str, str], UsageRow] = {}
        self._batches: dict[tuple[str, date], tuple[int, list[UsageRow]]] = {}
        """Team and day → number and rows of an object that is not known to be written."""
        self._last_number: dict[tuple[str, date], int] = {}
        """Team and day → number of its newest batch. Without gaps, which keeps a day's summary short."""
        self._lock = threading.Lock()
        self._flushing = threading.Lock()

    def count(self, done: FinishedRequest) -> None:
        """Count a request that a model answered. Refused requests and requests without a model are not counted."""
        refused = done.prompt_tokens is None and done.status >= 400
        if refused or done.model is None or done.team is None or done.key_id is None:
            return
        row = UsageRow(
            day=self._today(),
            team=done.team,
            key_id=done.key_id,
            model=done.model,
            kind="inference",
            requests=1,
            prompt_tokens=done.prompt_tokens or 0,
            completion_tokens=done.completion_tokens or 0,
        )
        with self._lock:
            if row.identity not in self._rows and len(self._rows) >= self._max_rows:
                row = row.model_copy(update={"key_id": OTHER, "model": OTHER})
            known = self._rows.get(row.identity)
            self._rows[row.identity] = row if known is None else known.plus(row)

    def flush(self) -> None:
        """Write all unwritten rows. Raises the first StoreError; unwritten rows are kept for the next flush.

        Blocks for up to the store's patience.
        """
        failure: KitaeError | None = None
        with self._flushing:
            self._assign_batches()
            for (team, day), (number, rows) in list(self._batches.items()):
                try:
                    # A conflict means that an earlier try was written and only its answer was lost.
                    usage.write(self._store, team, day, self._writer, number, rows)
                except StoreUnreachable:
                    raise  # the other batches would time out too
                except KitaeError as error:
                    failure = failure or error
                    continue
                del self._batches[team, day]
        if failure is not None:
            raise failure

    def _assign_batches(self) -> None:
        """Assign rows to batches. Rows of a team and day with an unwritten batch wait for it, which limits memory to
        two rows for each identity while the store does not answer."""
        with self._lock:
            waiting: dict[tuple[str, date], list[UsageRow]] = {}
            for row in self._rows.values():
                if (row.team, row.day) not in self._batches:
                    waiting.setdefault((row.team, row.day), []).append(row)
            latest = max((day for _, day in waiting), default=date.min)
            self._last_number = {
                group: number for group, number in self._last_number.items() if latest - group[1] < _NUMBERS_KEPT
            }
            for group, rows in waiting.items():
                number = self._last_number[group] = self._last_number.get(group, 0) + 1
                self._batches[group] = number, rows
                for row in rows:
                    del self._rows[row.identity]
