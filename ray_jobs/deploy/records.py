"""Deployment records: the names that the endpoint serves, one document per name in `deployments/{name}.json`.

Owns their schema and their changes. Does not know Ray, nor how a record becomes a running engine (`serving`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ray_jobs.errors import ServingError
from ray_jobs.spec import Precision, ServingSection
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents


class Deployment(BaseModel):
    """One name at the endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Value of a request's `model`; also names the Serve application."""
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
    precision: Precision = "auto"
    """Precision of training, and of serving if the hardware supports it."""
    max_lora_rank: int | None = Field(None, ge=1)
    """Largest rank of the adapters of a base's engine. None: it serves no adapters."""
    serving: ServingSection = ServingSection()
    """Lengths and limits of the engine."""

    @property
    def application(self) -> str:
        """Name of the Serve application that serves it."""
        return f"kitae-{self.base or self.name}"


_RECORDS = Documents("deployments/", Deployment, "a deployment record")

read = _RECORDS.read
read_all = _RECORDS.read_all


def write(store: Store, record: Deployment) -> Deployment:
    """Write a record by compare-and-swap; a base's limits never shrink. Returns the stored record.

    Raises ServingError if the name is taken by another kind of record or another base.
    """
    return _RECORDS.update(store, record.name, lambda old: record if old is None else merge(old, record))


def remove(store: Store, name: str) -> None:
    """Delete a record. Raises ServingError if the name is not deployed, or adapters need it."""
    records = read_all(store)
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
