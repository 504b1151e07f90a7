"""Documents with a schema: one pydantic record per name, in `{prefix}{name}.json`. Does not know the records' fields.

SHARES = Documents("shares/", Share, "a share")
SHARES.read(store, "greeter")  # None without a document
SHARES.update(store, "greeter", lambda old: (old or Share()).with_team("support"))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from ray_jobs.errors import CorruptObject, ObjectNotFound
from ray_jobs.storage.store import Store

Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class Documents(Generic[Record]):
    """The documents of one schema."""

    prefix: str
    schema: type[Record]
    what: str
    """A record in error messages, such as "a traffic policy"."""

    def key(self, name: str) -> str:
        return f"{self.prefix}{name}.json"

    def parse(self, name: str, document: Any) -> Record:
        """The record of a document. Raises CorruptObject."""
        try:
            return self.schema.model_validate(document)
        except ValidationError as error:
            raise CorruptObject(f"{self.key(name)} is not {self.what}: {error}") from error

    def read(self, store: Store, name: str) -> Record | None:
        """One record; None if it does not exist. Raises CorruptObject."""
        try:
            return self.parse(name, store.get_json(self.key(name)))
        except ObjectNotFound:
            return None

    def read_all(self, store: Store) -> dict[str, Record]:
        """Every record by name, sorted: one listing, and one read per record."""
        return {name: self.parse(name, document) for name, document in store.documents(self.prefix).items()}

    def update(self, store: Store, name: str, change: Callable[[Record | None], Record]) -> Record:
        """Replace a record by `change(record)` (None: it does not exist) by compare-and-swap; returns the new one.

        `change` may be called several times, so it must be pure; its exceptions end the update.
        """

        def documents(old: dict[str, Any] | None) -> dict[str, Any]:
            return change(None if old is None else self.parse(name, old)).model_dump(mode="json")

        return self.parse(name, store.update_json(self.key(name), documents))
