"""The catalogue: prepared base models under short names, for job files that may not name a path or an address.

    catalogue/{name}.json

Owns the entries. Loads no model; `ray_jobs.models.bases` prepares a base.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ray_jobs.errors import ModelError, suggestion
from ray_jobs.registry import owners
from ray_jobs.spec import NAME_RULE, is_name
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents


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
    added_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def key(self) -> str:
        return f"bases/{self.digest}"


_ENTRIES = Documents("catalogue/", CatalogueEntry, "an entry of the catalogue")


def add(store: Store, entry: CatalogueEntry) -> CatalogueEntry:
    """Write an entry. Raises ModelError if the name belongs to another base, since that would change existing jobs,
    or to a team's model."""
    if not is_name(entry.name):
        raise ModelError(f"{entry.name!r} cannot name a base: {NAME_RULE}")
    if (team := owners.claimed_by(store, entry.name)) is not None:
        raise ModelError(f"{entry.name!r} is the name of a model of team {team!r}: use another name")
    existing = _ENTRIES.update(store, entry.name, lambda old: old or entry)
    if existing.digest != entry.digest:
        raise ModelError(
            f"{entry.name!r} is another base ({existing.source}, {existing.digest}): use another name, or "
            f"`kitae bases remove {entry.name}` first"
        )
    return existing


def find(store: Store, name: str) -> CatalogueEntry | None:
    """The entry with this name; None if there is none."""
    return _ENTRIES.read(store, name) if is_name(name) else None


def entries(store: Store) -> list[CatalogueEntry]:
    """All entries, by name."""
    return list(_ENTRIES.read_all(store).values())


def remove(store: Store, name: str) -> None:
    """Remove a name; the prepared base stays, for models trained from it. Raises ModelError for an unknown name."""
    if find(store, name) is None:
        known = [entry.name for entry in entries(store)]
        raise ModelError(f"no base {name!r} in the catalogue; {suggestion(name, known)}")
    store.delete(_ENTRIES.key(name))
