"""Documents with a schema: one pydantic record per name, in `{prefix}{name}.json`. Does not know the records' fields.

The only way to read records. A document may be damaged, forged, or written by a newer version: it is bounded, checked
and read alone. A list skips what cannot be read and reports it to `store.unreadable`. Unknown fields are ignored on
reading and kept on writing.

SHARES = Documents("shares/", Share, "a share")
SHARES.read(store, "greeter")  # None without a document
SHARES.update(store, "greeter", lambda old: (old or Share()).with_team("support"))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from ray_jobs.errors import ConflictError, CorruptObject, ObjectNotFound
from ray_jobs.storage.store import Store
from ray_jobs.storage.unreadable import summary

Record = TypeVar("Record", bound=BaseModel)

_READS_AT_ONCE = 16


@dataclass(frozen=True)
class Documents(Generic[Record]):
    """The documents of one schema."""

    prefix: str
    schema: type[Record]
    what: str
    """A record in error messages, such as "a traffic policy"; without the article its kind in metrics."""
    check: Callable[[str, Record], str | None] | None = None
    """Why a record is not accepted under its name; None: it is. Raises nothing."""

    @property
    def kind(self) -> str:
        return self.what.split(" ", 1)[1]

    def key(self, name: str) -> str:
        return f"{self.prefix}{name}.json"

    def parse(self, name: str, document: Any) -> Record:
        """The record of a document. Raises CorruptObject."""
        try:
            record = self.schema.model_validate(document, extra="ignore")
        except ValidationError as error:
            raise CorruptObject(f"{self.key(name)} is not {self.what}: {summary(error)}") from None
        if self.check is not None and (reason := self.check(name, record)) is not None:
            raise CorruptObject(f"{self.key(name)} is not {self.what}: {reason}")
        return record

    def read(self, store: Store, name: str) -> Record | None:
        """One record; None if it does not exist. Raises CorruptObject."""
        try:
            return self.parse(name, store.get_json(self.key(name)))
        except ObjectNotFound:
            return None

    def find(self, store: Store, name: str) -> Record | None:
        """One record; None if it does not exist or cannot be read, which is reported."""
        try:
            found = self.read(store, name)
        except CorruptObject as error:
            store.unreadable.report(self.kind, store.path(self.key(name)), error.message)
            return None
        store.unreadable.clear(self.kind, [store.path(self.key(name))])
        return found

    def names(self, store: Store) -> list[str]:
        """Names of all documents, sorted; one request per 1,000."""
        keys = (info.key for info in store.list(self.prefix))
        return [key.removeprefix(self.prefix).removesuffix(".json") for key in keys if key.endswith(".json")]

    def read_all(self, store: Store) -> dict[str, Record]:
        """Every readable record by name, sorted: one listing, and one read per record."""
        names = self.names(store)
        present, folder = {store.path(self.key(name)) for name in names}, store.path(self.prefix)
        known = [path for path in store.unreadable.keys(self.kind) if path.startswith(folder)]
        store.unreadable.clear(self.kind, [path for path in known if path not in present])
        return self.read_some(store, names)

    def read_some(self, store: Store, names: Iterable[str]) -> dict[str, Record]:
        """The readable records of these names, in their order, read in parallel."""
        wanted = list(names)
        if not wanted:
            return {}
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            found = zip(wanted, pool.map(lambda name: self.find(store, name), wanted), strict=True)
            return {name: record for name, record in found if record is not None}

    def create(self, store: Store, name: str, record: Record) -> None:
        """Write a new record. Raises ConflictError if the document exists."""
        store.put_json(self.key(name), record.model_dump(mode="json"), if_absent=True)

    def get_or_create(self, store: Store, name: str, record: Record) -> Record:
        """Write a new record. Returns the stored one if the document exists, such as by another process."""
        try:
            self.create(store, name, record)
        except ConflictError:
            stored = self.read(store, name)
            if stored is None:
                raise  # deleted meanwhile
            return stored
        return record

    def change(self, store: Store, name: str, change: Callable[[Record], Record]) -> Record:
        """Change an existing record as `update` does. Raises ObjectNotFound where it does not exist."""

        def apply(old: Record | None) -> Record:
            if old is None:
                raise ObjectNotFound(f"{self.what} {name} does not exist")
            return change(old)

        return self.update(store, name, apply)

    def update(self, store: Store, name: str, change: Callable[[Record | None], Record]) -> Record:
        """Replace a record by `change(record)` (None: it does not exist) by compare-and-swap; returns the new one.

        `change` may be called several times, so it must be pure; its exceptions end the update.
        """

        def documents(old: dict[str, Any] | None) -> dict[str, Any]:
            if old is None:
                return change(None).model_dump(mode="json")
            before = self.parse(name, old)
            new = change(before).model_dump(mode="json")
            kept: dict[str, Any] = with_unknown_fields(old, before.model_dump(mode="json"), new)
            return kept

        return self.parse(name, store.update_json(self.key(name), documents))


def with_unknown_fields(stored: Any, read: Any, new: Any) -> Any:
    """The new document with the fields of the stored one that reading it left out. Pure.

    `read`: what was read of the stored document. Items of lists are matched by their position.
    """
    if isinstance(stored, dict) and isinstance(read, dict) and isinstance(new, dict):
        kept = {name: value for name, value in stored.items() if name not in read and name not in new}
        known = {name: with_unknown_fields(stored.get(name), read.get(name), value) for name, value in new.items()}
        return kept | known
    if isinstance(stored, list) and isinstance(read, list) and isinstance(new, list) and len(stored) == len(read):
        pairs = [with_unknown_fields(*items) for items in zip(stored, read, new, strict=False)]
        return pairs + new[len(pairs) :]
    return new
