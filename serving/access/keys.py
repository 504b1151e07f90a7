"""Looks up API keys in the object store, with a cache.

Owns the cache's time to live and its behaviour while the store does not answer. Does not know HTTP beyond the refusal,
nor what a key may do (`auth`).

Store reads do not grow with the number of requests: once a time to live, one listing returns every key id and which
records changed, and only new or changed records are read. A key missing from the listing costs no read, except that a
listing older than `_MISS_TTL_S` is repeated, since the key may be new. A revocation takes effect within the time to
live; while the store does not answer, the last known records stay valid.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

from ray_jobs.errors import StoreError
from ray_jobs.storage import Store
from ray_jobs.tenancy import api_keys
from ray_jobs.tenancy.api_keys import ApiKey
from serving.http.errors import store_unreachable

logger = logging.getLogger(__name__)

_MISS_TTL_S = 0.25
"""Seconds that a missing key, or a failed listing, is cached."""
_UNCHECKED = "this key cannot be checked"


@dataclass
class StoredKeys:
    """The keys of a store. Caches all ids and the records of used keys only."""

    store: Store
    _: KW_ONLY
    ttl_s: float
    patience_s: float = 2.0
    """Seconds that a request waits for the store before it falls back to the last known records."""
    clock: Callable[[], float] = time.monotonic
    _etags: dict[str, str] = field(default_factory=dict)
    """Id → etag of its record in the latest listing."""
    _listed_at_s: float = -math.inf
    _failed_at_s: float = -math.inf
    """Time of the latest listing, if it failed."""
    _records: dict[tuple[str, str], ApiKey | None] = field(default_factory=dict)
    """(id, etag) → record; None if the document is not a valid record, which is not accepted."""
    _reads: dict[str, tuple[asyncio.Task[bool], float]] = field(default_factory=dict)
    """Reads in progress: `listing` or an id → (task, start time)."""

    async def find(self, key: str) -> ApiKey | None:
        """Return the record of a valid key, or None. Raises ApiError 503 if validity is unknown."""
        key_id = api_keys.id_of(key)
        if key_id is None:
            return None
        known = await self._list(self.ttl_s)
        if key_id not in self._etags:
            known = await self._list(min(_MISS_TTL_S, self.ttl_s))
        if key_id not in self._etags:
            if not known:  # the key may be newer than the listing
                raise store_unreachable(_UNCHECKED)
            return None
        version = key_id, self._etags[key_id]
        if version not in self._records:
            await self._once(key_id, partial(self._read, *version))
        if version not in self._records:  # at most an older version is known
            raise store_unreachable(_UNCHECKED)
        record = self._records[version]
        return record if record is not None and record.opens(key, self.store.now()) else None

    async def _list(self, max_age_s: float) -> bool:
        """Refresh the listing if it is older than `max_age_s`. Returns False if the store does not answer."""
        now_s = self.clock()
        if now_s - self._listed_at_s <= max_age_s:
            return True
        if now_s - self._failed_at_s <= _MISS_TTL_S:
            return False
        return await self._once("listing", self._refresh_listing)

    async def _refresh_listing(self) -> bool:
        began_s = self.clock()
        try:
            etags = await asyncio.to_thread(api_keys.etags, self.store)
        except StoreError as error:
            logger.warning("the object store does not answer; API keys are checked against cached records: %s", error)
            self._failed_at_s = self.clock()
            return False
        self._etags, self._listed_at_s, self._failed_at_s = etags, began_s, -math.inf
        self._records = {version: record for version, record in self._records.items() if version in etags.items()}
        return True

    async def _read(self, key_id: str, etag: str) -> bool:
        try:
            record = await asyncio.to_thread(api_keys.read_or_report, self.store, key_id)
        except StoreError as error:
            logger.warning("API key %s cannot be read: %s", key_id, error)
            return False
        self._records[key_id, etag] = record
        return True

    async def _once(self, what: str, read: Callable[[], Coroutine[Any, Any, bool]]) -> bool:
        """Share one read among all requests that need it; each waits at most `patience_s`. Returns its result."""

        async def reading() -> bool:
            try:
                return await read()
            finally:
                del self._reads[what]

        if what not in self._reads:
            self._reads[what] = asyncio.create_task(reading()), self.clock()
        task, since_s = self._reads[what]
        await asyncio.wait({task}, timeout=max(0.0, since_s + self.patience_s - self.clock()))
        return task.done() and task.result()
