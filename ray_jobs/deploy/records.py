"""Deployment records: the names that the endpoint serves, one document per name in `deployments/{name}.json`.

Owns their schema and their changes. Does not know Ray, nor how a record becomes a running engine (`serving`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ray_jobs.errors import CorruptObject, ObjectNotFound, ServingError
from ray_jobs.spec import Precision, ServingSection
from ray_jobs.storage import Store

PREFIX = "deployments/"

DeploymentKind = Literal["base", "adapter", "full", "predictor"]


class Deployment(BaseModel):
    """One name at the endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Value of a request's `model`; also names the Serve application."""
    kind: DeploymentKind
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


def read(store: Store, name: str) -> Deployment | None:
    """One record; None if the name is not deployed."""
    try:
        return _parse(store, f"{PREFIX}{name}.json")
    except ObjectNotFound:
        return None


def read_all(store: Store) -> dict[str, Deployment]:
    """Every record by name, sorted."""
    return {name: _validated(document, f"{PREFIX}{name}.json") for name, document in store.documents(PREFIX).items()}


def write(store: Store, record: Deployment) -> Deployment:
    """Write a record by compare-and-swap; a base's limits never shrink. Returns the stored record.

    Raises ServingError if the name is taken by another kind of record or another base.
    """

    def change(old: dict[str, Any] | None) -> dict[str, Any]:
        if old is None:
            return record.model_dump(mode="json")
        return merge(_validated(old, f"{PREFIX}{record.name}.json"), record).model_dump(mode="json")

    return _validated(store.update_json(f"{PREFIX}{record.name}.json", change), f"{PREFIX}{record.name}.json")


def remove(store: Store, name: str) -> None:
    """Delete a record. Raises ServingError if the name is not deployed, or adapters need it."""
    records = read_all(store)
    if name not in records:
        known = ", ".join(records) or "nothing"
        raise ServingError(f"{name!r} is not deployed; deployed: {known}")
    needed_by = [record.name for record in records.values() if record.base == name]
    if needed_by:
        raise ServingError(f"{name!r} is the base of {', '.join(needed_by)}: undeploy those first")
    store.delete(f"{PREFIX}{name}.json")


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


def _parse(store: Store, key: str) -> Deployment:
    return _validated(store.get_json(key), key)


def _validated(document: Any, key: str) -> Deployment:
    try:
        return Deployment.model_validate(document)
    except ValidationError as error:
        raise CorruptObject(f"{key} is not a deployment record: {error}") from error
