"""Indexes: which records of a folder have a value, so that a filtered listing reads no other record.

    index = Index("teams/blue/index/files/")
    index.add(store, file_id, ["purpose=fine-tune"])      # before the record is written
    index.ensure(store, lambda: [(file_id, values), …])   # entries of records from before there was an index
    index.folder("purpose=fine-tune")                     # holds {id}.json for each

Owns the empty objects `{prefix}{digest of a value}/{id}.json`. An entry may outlive its record: readers skip it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ray_jobs.digests import canonical_digest
from ray_jobs.storage.store import Store

_WRITES_AT_ONCE = 16


@dataclass(frozen=True)
class Index:
    """The index of one folder of records."""

    prefix: str

    def folder(self, value: str) -> str:
        """The prefix of a value's entries."""
        return f"{self.prefix}{canonical_digest({'value': value}, 16)}/"

    def keys(self, identifier: str, values: Iterable[str]) -> list[str]:
        return [f"{self.folder(value)}{identifier}.json" for value in values]

    def add(self, store: Store, identifier: str, values: Iterable[str]) -> None:
        """Add a record under its values."""
        keys = self.keys(identifier, values)
        if len(keys) == 1:
            store.put(keys[0], b"{}")
        elif keys:
            with ThreadPoolExecutor(min(len(keys), _WRITES_AT_ONCE)) as pool:
                list(pool.map(lambda key: store.put(key, b"{}"), keys))

    def remove(self, store: Store, identifier: str, values: Iterable[str]) -> None:
        store.delete(self.keys(identifier, values))

    def ensure(self, store: Store, records: Callable[[], Iterable[tuple[str, Iterable[str]]]]) -> None:
        """Add every record's entries, once in the life of a store; `records` gives each with its values."""
        built = f"{self.prefix}built.json"
        if store.exists(built):
            return
        for identifier, values in records():
            self.add(store, identifier, values)
        store.put(built, b"{}")
