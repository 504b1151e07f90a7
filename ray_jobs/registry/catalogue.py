"""The catalogue: prepared base models under short names, for job files that may not name a path or an address.

    catalogue/{name}.json         the entries
    catalogue-bases/{digest}/…    their prepared copies

Owns the entries. Loads no model; `ray_jobs.models.bases` prepares a base.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ray_jobs.errors import ModelError, suggestion
from ray_jobs.registry import owners
from ray_jobs.spec import NAME_RULE, JobSpec, Precision, Range, ServingSection, is_name
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents
from ray_jobs.tasks import TASKS

BASES = "catalogue-bases"
"""Where the prepared copies are: readable by every team, written by the operator."""


class CatalogueEntry(BaseModel):
    """A base that a job file may name."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    digest: str
    """Digest of its prepared copy, `catalogue-bases/{digest}`."""
    source: str
    """Source it was prepared from."""
    architecture: str
    tasks: tuple[str, ...]
    """Tasks it can be fine-tuned for."""
    max_tokens: int | None = None
    """Longest row in tokens. None: not in its configuration."""
    precision: Precision = "auto"
    """Precision in which its engine serves, and so in which its adapters are trained."""
    max_lora_rank: int = Field(64, ge=1, le=512)
    """Largest rank of the adapters that its engine serves."""
    serving: ServingSection = ServingSection()
    """Lengths and limits of its engine, which all teams share. A job may ask for less."""
    added_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def key(self) -> str:
        return f"{BASES}/{self.digest}"


_ENGINE_FIELDS = ("max_model_len", "max_loras", "max_ongoing_requests", "max_queued_requests", "kv_cache_gib")
_ENTRIES = Documents("catalogue/", CatalogueEntry, "an entry of the catalogue")


def add(store: Store, entry: CatalogueEntry) -> CatalogueEntry:
    """Write an entry. Raises ModelError if the name belongs to another base, since that would change existing jobs,
    or to a team's model."""
    require_free(store, entry.name)
    existing = _ENTRIES.update(store, entry.name, lambda old: old or entry)
    if existing.digest != entry.digest:
        raise ModelError(
            f"{entry.name!r} is another base ({existing.source}, {existing.digest}): use another name, or "
            f"`kitae bases remove {entry.name}` first"
        )
    return existing


def require_free(store: Store, name: str) -> None:
    """Raise ModelError for a name that no base can have, or that a team's model has."""
    if not is_name(name):
        raise ModelError(f"{name!r} cannot name a base: {NAME_RULE}")
    if (claim := owners.find(store, name)) is not None and claim.of == "model":
        raise ModelError(f"{name!r} is the name of a model of team {claim.team!r}: use another name")


def find(store: Store, name: str) -> CatalogueEntry | None:
    """The entry with this name; None if there is none."""
    return _ENTRIES.read(store, name) if is_name(name) else None


def find_base(store: Store, name: str, digest: str) -> CatalogueEntry | None:
    """The entry that a model was trained on, by the base's name and digest. None: its team brought the base itself."""
    entry = find(store, name)
    return entry if entry is not None and entry.digest == digest else None


def engine_problems(entry: CatalogueEntry, spec: JobSpec) -> list[tuple[str, str]]:
    """What a job asks of the shared engine of its base that the operator did not give it: (field, reason). Pure.

    A field with its default value asks for nothing. Only adapters are served by that engine.
    """
    training, wanted, unset = spec.training, spec.serving, ServingSection()
    if training.method not in ("lora", "qlora") or not TASKS[spec.task].generates:
        return []
    asked = {f"serving.{field}": (getattr(wanted, field), getattr(entry.serving, field), getattr(unset, field))
             for field in _ENGINE_FIELDS}  # fmt: skip
    rank = max([training.lora.rank, *_searched_ranks(spec)])
    asked["training.lora.rank"] = (rank, entry.max_lora_rank, None)
    problems = [
        (field, f"it is {value}; the engine of the base {entry.name!r} has {most} for all teams: ask for at most that, "
         "or let the operator set more (`kitae bases engine`)")
        for field, (value, most, default) in asked.items() if value != default and value > most
    ]  # fmt: skip
    if "auto" not in (training.precision, entry.precision) and training.precision != entry.precision:
        reason = f"it is {training.precision}; the engine of the base {entry.name!r} serves {entry.precision}"
        problems.append(("training.precision", reason))
    return problems


def set_engine(store: Store, name: str, changes: Mapping[str, Any]) -> CatalogueEntry:
    """Change options of a base's engine, which restarts with them. Raises ModelError for an unknown name."""

    def change(old: CatalogueEntry | None) -> CatalogueEntry:
        if old is None:
            raise unknown(store, name)
        return with_engine(old, changes)

    return _ENTRIES.update(store, name, change)


def with_engine(entry: CatalogueEntry, changes: Mapping[str, Any]) -> CatalogueEntry:
    """The entry with other engine options: fields of `ServingSection`, `precision`, `max_lora_rank`. Pure.

    Raises ModelError for a value out of its bounds, or longer than the base's positions.
    """
    serving = {field: value for field, value in changes.items() if field in ServingSection.model_fields}
    others = {field: value for field, value in changes.items() if field not in serving}
    try:
        engine = ServingSection.model_validate({**entry.serving.model_dump(), **serving})
        new = CatalogueEntry.model_validate({**entry.model_dump(), **others, "serving": engine})
    except ValidationError as error:
        details = [f"{each['loc'][-1]}: {each['msg']}" for each in error.errors(include_url=False)]
        raise ModelError(f"the engine of {entry.name!r} cannot have these options", details=details) from None
    if entry.max_tokens is not None and engine.max_model_len > entry.max_tokens:
        raise ModelError(
            f"max_model_len is {engine.max_model_len}, and {entry.name!r} has {entry.max_tokens} positions: ask for at "
            "most that"
        )
    return new


def entries(store: Store) -> list[CatalogueEntry]:
    """All entries, by name."""
    return list(_ENTRIES.read_all(store).values())


def remove(store: Store, name: str) -> None:
    """Remove a name; the prepared base stays, for models trained from it. Raises ModelError for an unknown name."""
    if find(store, name) is None:
        raise unknown(store, name)
    store.delete(_ENTRIES.key(name))


def unknown(store: Store, name: str) -> ModelError:
    known = [entry.name for entry in entries(store)]
    return ModelError(f"no base {name!r} in the catalogue; {suggestion(name, known)}")


def _searched_ranks(spec: JobSpec) -> list[int]:
    """The ranks that a search tries."""
    values = ((spec.search.space if spec.search is not None else None) or {}).get("lora.rank", ())
    return [int(values.max)] if isinstance(values, Range) else [int(value) for value in values]
