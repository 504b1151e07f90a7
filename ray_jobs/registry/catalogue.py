"""The catalogue: prepared base models under short names, for job files that may not name a path or an address.

    catalogue/{name}.json

Owns the entries. Loads no model; `ray_jobs.models.bases` prepares a base.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ray_jobs.errors import ConflictError, ModelError, ObjectNotFound, suggestion
from ray_jobs.spec import NAME_RULE, is_name
from ray_jobs.storage import Store

_PREFIX = "catalogue/"


class CatalogueEntry(BaseModel):
    """A base that a job file may name."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    digest: str
    """Digest of its prepared copy, `bases/{digest}`."""
    source: str
    """Source it was prepared from."""
    architecture: str
    tasks: tuple[str, ...]
    """Tasks it can be fine-tuned for."""
    max_tokens: int | None = None
    """Longest row in tokens. None: not in its configuration."""
    added_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def key(self) -> str:
        return f"bases/{self.digest}"


def add(store: Store, entry: CatalogueEntry) -> CatalogueEntry:
    """Write an entry. Raises ModelError if the name belongs to another base, since that would change existing jobs."""
    if not is_name(entry.name):
        raise ModelError(f"{entry.name!r} cannot name a base: {NAME_RULE}")
    try:
        store.put_json(f"{_PREFIX}{entry.name}.json", entry.model_dump(mode="json"), if_absent=True)
    except ConflictError:
        existing = find(store, entry.name)
        if existing is not None and existing.digest != entry.digest:
            raise ModelError(
                f"{entry.name!r} is another base ({existing.source}, {existing.digest}): use another name, or "
                f"`kitae bases remove {entry.name}` first"
            ) from None
        return existing or entry
    return entry


def find(store: Store, name: str) -> CatalogueEntry | None:
    """The entry with this name; None if there is none."""
    if not is_name(name):
        return None
    try:
        return _parse(store.get_json(f"{_PREFIX}{name}.json"))
    except ObjectNotFound:
        return None


def entries(store: Store) -> list[CatalogueEntry]:
    """All entries, by name."""
    return [_parse(document) for document in store.documents(_PREFIX).values()]


def remove(store: Store, name: str) -> None:
    """Remove a name; the prepared base stays, for models trained from it. Raises ModelError for an unknown name."""
    if find(store, name) is None:
        known = [entry.name for entry in entries(store)]
        raise ModelError(f"no base {name!r} in the catalogue; {suggestion(name, known)}")
    store.delete(f"{_PREFIX}{name}.json")


def _parse(document: Any) -> CatalogueEntry:
    return CatalogueEntry.model_validate(document)
