"""A request's key → its record, as the object store has it.

Owns how long what was read is believed and what answers while the store is away. Does not know HTTP beyond the refusal,
nor what a key may do (`auth`).

What is asked of the store does not grow with what is sent here: one listing of the keys each time to live says which
there are and which of them changed, and only a record that is new or changed is read. A key that is in no listing costs
nothing, however many of such arrive, but that a listing older than a moment is made anew: the key may have been made
meanwhile. A revocation acts after a time to live at most; while the store is away, what was known last goes on to hold.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from ray_jobs.errors import CorruptObject, StoreError
from ray_jobs.storage import Store
from ray_jobs.tenancy import api_keys
from ray_jobs.tenancy.api_keys import ApiKey
from serving.http.errors import ApiError

logger = logging.getLogger(__name__)

_MISS_TTL_S = 0.25
"""How long a key that is not there is believed not to be there, and a store that is away to be away."""
_PATIENCE_S = 2.0
"""How long a request waits for a store that does not answer, before what was known last holds."""


class KeySource(Protocol):
    """Where keys are looked up."""

    async def find(self, key: str) -> ApiKey | None:
        """The record of a key that may be used now; None for any other text. Raises ApiError 503: it is not known."""
        ...


class StoredKeys:
    """The keys of a store. Remembers the ids there are and the records of those that were used, and nothing else."""

    def __init__(
        self,
        store: Store,
        *,
        ttl_s: float,
        patience_s: float = _PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._patience_s = patience_s
        self._clock = clock
        self._etags: dict[str, str] | None = None
        """Id → etag of its record, as last listed. None: they never were."""
        self._listed_at_s = 0.0
        self._failed_at_s: float | None = None
        """When a listing last failed. None: none has since the last that did not."""
        self._records: dict[str, tuple[str, ApiKey | None]] = {}
        """Id → (etag, record; None for a document that is none)."""
        self._reads: dict[str, tuple[asyncio.Task[bool], float]] = {}
        """What is being read: the listing or an id → (its task, since when)."""

    async def find(self, key: str) -> ApiKey | None:
        """As KeySource says."""
        key_id = api_keys.id_of(key)
        if key_id is None:
            return None
        known = await self._list(self._ttl_s)
        if self._etag(key_id) is None:
            known = await self._list(min(_MISS_TTL_S, self._ttl_s))
        etag = self._etag(key_id)
        if etag is None:
            if not known:  # it may have been made since
                raise _not_known()
            return None
        record = await self._record(key_id, etag)
        return record if record is not None and record.opens(key, datetime.now(UTC)) else None

    def _etag(self, key_id: str) -> str | None:
        return None if self._etags is None else self._etags.get(key_id)

    async def _list(self, max_age_s: float) -> bool:
        """See to it that the listing is no older. False: it is, for the store does not answer."""
        now_s = self._clock()
        if self._etags is not None and now_s - self._listed_at_s <= max_age_s:
            return True
        if self._failed_at_s is not None and now_s - self._failed_at_s <= _MISS_TTL_S:
            return False
        return await self._once("listing", self._list_anew)

    async def _list_anew(self) -> bool:
        began_s = self._clock()
        try:
            etags = await asyncio.to_thread(api_keys.etags, self._store)
        except StoreError as error:
            logger.warning("the object store does not answer; the API keys known last still open: %s", error)
            self._failed_at_s = self._clock()
            return False
        self._etags, self._listed_at_s, self._failed_at_s = etags, began_s, None
        self._records = {key_id: found for key_id, found in self._records.items() if key_id in etags}
        return True

    async def _record(self, key_id: str, etag: str) -> ApiKey | None:
        """As it was when it was listed, or later. Raises ApiError 503: what is known of it is known to be outdated."""
        found = self._records.get(key_id)
        if found is None or found[0] != etag:
            await self._once(key_id, partial(self._read, key_id, etag))
            found = self._records.get(key_id)
        if found is None or found[0] != etag:
            raise _not_known()
        return found[1]

    async def _read(self, key_id: str, etag: str) -> bool:
        try:
            record = await asyncio.to_thread(api_keys.read, self._store, key_id)
        except CorruptObject:
            logger.exception("API key %s opens nothing", key_id)
            record = None
        except StoreError as error:
            logger.warning("API key %s cannot be read: %s", key_id, error)
            return False
        self._records[key_id] = (etag, record)
        return True

    async def _once(self, what: str, read: Callable[[], Coroutine[Any, Any, bool]]) -> bool:
        """Let all who want the same share one read, and none of them wait longer for it than patience lasts."""

        async def reading() -> bool:
            try:
                return await read()
            finally:
                del self._reads[what]

        if what not in self._reads:
            self._reads[what] = asyncio.create_task(reading()), self._clock()
        task, since_s = self._reads[what]
        await asyncio.wait({task}, timeout=max(0.0, since_s + self._patience_s - self._clock()))
        return task.done() and task.result()


def _not_known() -> ApiError:
    message = "the object store does not answer, so whether this key is one is not known: try again in a moment"
    return ApiError(503, message, code="store_unreachable", headers={"Retry-After": "5"})
