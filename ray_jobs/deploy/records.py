"""Deployment records: the names that the endpoint serves, one document per name in `deployments/{team}/{name}.json`.

Owns their schema and their changes. Does not know Ray, nor how a record becomes a running engine (`serving`).

A job's pods may write any record of their team. So only the records of a name's owner count, and a record's store keys
must be those that follow from the kind, the name and the version. The engine of a base in the catalogue has no record:
it follows from the catalogue's entry, which only the operator writes.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ray_jobs import registry
from ray_jobs.engine import LORA_RANKS, lora_capacity
from ray_jobs.errors import ServingError
from ray_jobs.registry import catalogue, owners
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.spec import Precision, ServingSection, is_name
from ray_jobs.storage import Store, Workspace
from ray_jobs.storage.documents import Documents
from ray_jobs.tasks import TASKS

_OWN_BASE_KEY = re.compile(r"bases/[0-9A-Za-z_-]+")
_BASE_KEY = re.compile(rf"(bases|{catalogue.BASES})/[0-9A-Za-z_-]+")


class Deployment(BaseModel):
    """One name at the endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Value of a request's `model`; also names the Serve application."""
    team: str | None = None
    """The team whose name it is. None: it is a base of the catalogue."""
    kind: Literal["base", "adapter", "full", "predictor"]
    """`base`: an engine and its adapters. `adapter`: served by its base's engine. `full`: its own engine.
    `predictor`: a model that does not generate."""
    task: str
    """The task, which determines the routes."""
    key: str | None = None
    """Store key of the engine's model. None for an adapter: its versions are loaded on request."""
    base_key: str | None = None
    """Store key of the base of a predictor that is an adapter. None: `key` holds the whole model."""
    version: str | None = None
    """The registered version that its own engine runs. None for a base and for an adapter."""
    label: str | None = None
    """Version or alias that the bare name resolves to. None: the alias champion, else the newest version."""
    base: str | None = None
    """An adapter's base: the name of the record whose engine serves it."""
    base_digest: str | None = None
    """Digest of that base."""
    precision: Precision = "auto"
    """Precision of training, and of serving if the hardware supports it."""
    max_lora_rank: int | None = Field(None, ge=1, le=LORA_RANKS[-1])
    """Largest rank of the adapters of a base's engine. None: it serves no adapters."""
    serving: ServingSection = ServingSection()
    """Lengths and limits of the engine."""

    def runs_base(self, digest: str) -> bool:
        """True if this is the engine of the base with that digest."""
        return self.kind == "base" and self.key is not None and self.key.rpartition("/")[2] == digest

    @property
    def application(self) -> str:
        """Name of the Serve application that serves it."""
        return f"kitae-{self.base or self.name}"


def why_wrong(path: str, record: Deployment) -> str | None:
    """Why a record at `{name}` or `{team}/{name}` is not served; None: it is. Pure."""
    name = path.rpartition("/")[2]
    own_key = f"models/{name}/{record.version}"
    numbered = record.version is not None and record.version.isdecimal()
    if record.name != name or not is_name(name):
        return "it has the name of another model"
    if record.task not in TASKS:
        return f"this version of Kitae does not know the task {record.task[:40]!r}"
    if record.label is not None and not is_name(record.label):
        return "its label is neither a version nor an alias"
    if record.kind == "base":
        keys_fit = record.key is not None and _OWN_BASE_KEY.fullmatch(record.key) and record.base_key is None
    elif record.kind == "adapter":
        keys_fit = record.key is None and record.base_key is None and record.base is not None and is_name(record.base)
    else:
        keys_fit = numbered and record.key == own_key and _fits_base(record.base_key)
    if not keys_fit or (record.kind != "adapter" and record.base is not None):
        return "its store keys are not those of its kind, name and version"
    return None


def _fits_base(key: str | None) -> bool:
    return key is None or _BASE_KEY.fullmatch(key) is not None


_RECORDS = Documents("deployments/", Deployment, "a deployment record", why_wrong)


def read(store: Workspace, name: str) -> Deployment | None:
    """A team's record; None if it does not exist. Raises CorruptObject."""
    found = _RECORDS.read(store, name)
    return None if found is None else found.model_copy(update={"team": store.team})


def read_all(store: Store) -> dict[str, Deployment]:
    """What the endpoint serves, by name: every team's records, and the catalogue's bases that their adapters need."""
    found = {}
    for path, record in _RECORDS.read_all(store.root).items():
        team, _, name = path.partition("/")
        if owners.claimed_by(store, name) == team:
            found[name] = record.model_copy(update={"team": team})
    adapters = [record for record in found.values() if record.base is not None and record.base_digest is not None]
    for name, digest in {(str(record.base), str(record.base_digest)) for record in adapters}:
        if (entry := catalogue.find_base(store, name, digest)) is not None:
            found[name] = catalogue_base(entry)
    return dict(sorted(found.items()))


def base_of(store: Workspace, record: Deployment) -> Deployment | None:
    """The record of the engine that serves an adapter; None if it is not deployed."""
    if record.base is None:
        return None
    entry = catalogue.find_base(store, record.base, record.base_digest or "")
    return read(store, record.base) if entry is None else catalogue_base(entry)


def catalogue_base(entry: CatalogueEntry) -> Deployment:
    """The engine of a base in the catalogue. Pure."""
    return Deployment(
        name=entry.name,
        kind="base",
        task=next(task for task in entry.tasks if TASKS[task].generates),
        key=entry.key,
        precision=entry.precision,
        max_lora_rank=lora_capacity(entry.max_lora_rank),
        serving=entry.serving,
    )


def unreadable(store: Store) -> list[str]:
    """Names of the records that could not be read when they were last listed."""
    return [path.rpartition("/")[2].removesuffix(".json") for path in store.unreadable.keys(_RECORDS.kind)]


def write(store: Workspace, record: Deployment) -> Deployment:
    """Write a record by compare-and-swap; a base's limits never shrink. Returns the stored record.

    Raises ServingError if the name is taken by another kind of record or another base, RegistryError for a base under
    another team's name.
    """
    if record.kind == "base":
        registry.claim_base(store, record.name)
    return _RECORDS.update(store, record.name, lambda old: record if old is None else merge(old, record))


def remove(store: Workspace, name: str) -> None:
    """Delete a team's record. Raises ServingError if the name is not deployed, or adapters need it."""
    records = read_all(store)
    if store.path(_RECORDS.key(name)) in store.unreadable.keys(_RECORDS.kind):
        store.delete(_RECORDS.key(name))
        return
    if name not in records:
        known = ", ".join(records) or "nothing"
        raise ServingError(f"{name!r} is not deployed; deployed: {known}")
    needed_by = [record.name for record in records.values() if record.base == name]
    if needed_by:
        raise ServingError(f"{name!r} is the base of {', '.join(needed_by)}: undeploy those first")
    store.delete(_RECORDS.key(name))


def merge(old: Deployment, new: Deployment) -> Deployment:
    """The record after `new` is deployed over `old`. Pure.

    A base's engine serves several adapters, so its limits are the largest that any of them requested.
    """
    if (old.kind == "base") != (new.kind == "base"):
        raise ServingError(
            f"the name {new.name!r} is taken by a deployed {old.kind}; give the model another name, or undeploy that "
            "first"
        )
    if new.kind != "base":
        return new
    if old.key != new.key:
        raise ServingError(
            f"another base model is deployed as {new.name!r} ({old.key}, not {new.key}); undeploy it first, or rename "
            "the base model's directory"
        )
    if old.precision != new.precision:
        raise ServingError(
            f"the engine of {new.name!r} serves {old.precision}, and this model was trained in {new.precision}; train "
            f"with precision: {old.precision}, or undeploy what that engine serves first"
        )
    return old.model_copy(
        update={
            "max_lora_rank": max(filter(None, [old.max_lora_rank, new.max_lora_rank]), default=None),
            "serving": old.serving.model_copy(
                update={
                    field: max(getattr(old.serving, field), getattr(new.serving, field))
                    for field in ("max_model_len", "max_loras", "kv_cache_gib")
                }
            ),
        }
    )
