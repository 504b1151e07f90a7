"""The catalogue: base models under short names, prepared in the store, for whoever may name no path or address.

    catalogue/{name}.json

Owns the entries. How a base is prepared is `ray_jobs.models.bases`'; nothing here loads a model.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ray_jobs.errors import ConflictError, ModelError, ObjectNotFound, suggestion
from ray_jobs.storage import Store

_PREFIX = "catalogue/"
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,46}[a-z0-9])?")


class CatalogueEntry(BaseModel):
    """A base that a job file may call by its name."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    digest: str
    """Of its prepared copy, `bases/{digest}`."""
    source: str
    """Where it came from."""
    architecture: str
    tasks: tuple[str, ...]
    """What it can be fine-tuned for."""
    max_tokens: int | None = None
    """The longest row it takes. None: its configuration does not say."""
    added_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def key(self) -> str:
        return f"bases/{self.digest}"


def add(store: Store, entry: CatalogueEntry) -> CatalogueEntry:
    """Write an entry. ModelError where the name means another base: jobs that name it must not change what they do."""
    if not _NAME.fullmatch(entry.name):
        raise ModelError(
            f"{entry.name!r} cannot name a base: lower-case letters, digits, '.', '_' and '-', at most 48, starting "
            "and ending with a letter or digit"
        )
    try:
        store.put_json(f"{_PREFIX}{entry.name}.json", entry.model_dump(mode="json"), if_absent=True)
    except ConflictError:
        there = find(store, entry.name)
        if there is not None and there.digest != entry.digest:
            raise ModelError(
                f"{entry.name!r} is another base already ({there.source}, {there.digest}): name this one otherwise, or "
                f"`kitae bases remove {entry.name}` first"
            ) from None
        return there or entry
    return entry


def find(store: Store, name: str) -> CatalogueEntry | None:
    """The entry of that name; None for what is not, or cannot be, one."""
    if not _NAME.fullmatch(name):
        return None
    try:
        return _parse(store.get_json(f"{_PREFIX}{name}.json"))
    except ObjectNotFound:
        return None


def entries(store: Store) -> list[CatalogueEntry]:
    """All of them, by name."""
    return [_parse(document) for document in store.documents(_PREFIX).values()]


def remove(store: Store, name: str) -> None:
    """Take a name out; the prepared base stays, for the models that were trained from it. ModelError if unknown."""
    if find(store, name) is None:
        known = [entry.name for entry in entries(store)]
        raise ModelError(f"no base {name!r} in the catalogue; {suggestion(name, known)}")
    store.delete(f"{_PREFIX}{name}.json")


def _parse(document: Any) -> CatalogueEntry:
    return CatalogueEntry.model_validate(document)
