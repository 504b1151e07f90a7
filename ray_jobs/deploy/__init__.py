"""Deploying: from a registered version to an endpoint that serves it.

Owns the records that a version needs (an adapter needs its base's engine) and applying them to Ray Serve. Knows
`serving` only as import paths, so that it stays light. Running applications are not restarted: a new version of an
adapter, or a moved alias, needs no deployment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel, Field

from ray_jobs import registry
from ray_jobs.deploy import records
from ray_jobs.deploy.records import Deployment
from ray_jobs.deploy.serve_api import INGRESS, ServeClient, ServeSettings, differing, serve_config, with_running
from ray_jobs.engine import lora_capacity
from ray_jobs.errors import ServingError
from ray_jobs.registry import catalogue
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.registry.gated import require_gated
from ray_jobs.registry.model import ModelVersion
from ray_jobs.spec import ServingSection
from ray_jobs.storage import Store, Workspace
from ray_jobs.storage.documents import Documents
from ray_jobs.tasks import TASKS

__all__ = ["Deployed", "Deployment", "ServeSettings", "deploy", "reapply", "reconcile", "undeploy"]


class _AdapterConfig(BaseModel):
    """PEFT's configuration of an adapter, which a job's pods wrote."""

    r: int = Field(ge=1)
    rank_pattern: dict[str, int] = {}


_ADAPTERS = Documents("", _AdapterConfig, "an adapter's configuration")


@dataclass(frozen=True)
class Deployed:
    """The result of a deployment."""

    model: str
    """Value of a request's `model`."""
    version: str
    base: str | None
    """Name of the base that is served beside an adapter."""
    url: str
    """Base URL for a client."""
    recorded_only: bool
    """True if the endpoint is elsewhere and reconciles the records itself."""

    def __str__(self) -> str:
        what = f"{self.model} (version {self.version})"
        if self.recorded_only:
            return f"{what} is recorded: the endpoint {self.url} starts it automatically"
        return f"{what} answers at {self.url}" + (f", beside its base {self.base}" if self.base else "")


def deploy(
    store: Workspace,
    ref: str,
    settings: ServeSettings,
    *,
    ungated: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> Deployed:
    """Deploy `name`, `name@version` or `name@alias`, and wait until it answers. For an endpoint elsewhere
    (`settings.endpoint_url`), only write the records, which that endpoint reconciles.

    With a version or alias, the bare name resolves to it from then on; without, it follows the alias champion, else
    the newest gated version. `ungated`: also a version that did not pass the gate. `progress` is called with a line and
    the elapsed seconds. Raises RegistryError for an unknown model, another team's or an ungated version, MachineError
    for a port in use, else ServingError.
    """
    version = registry.get(store, ref)
    registry.require_owner(store, version.name)
    require_gated(version, f"answer for {version.name}", ungated=ungated)
    label = ref.partition("@")[2] or None
    entry = catalogue.find_base(store, version.base_name, version.base_digest)
    serving, rank = version.lineage.spec.serving, _lora_rank(store, version)
    if entry is not None and (problems := catalogue.engine_problems(entry, version.lineage.spec)):
        raise ServingError(
            f"{version.name!r} cannot be served", details=[f"{field}: {reason}" for field, reason in problems]
        )
    wanted = needed_records(version, label, serving, lora_rank=rank, entry=entry)
    own = [record for record in wanted if record.team is not None]
    elsewhere = settings.endpoint_url is not None
    answers = Deployed(version.name, version.version, wanted[-1].base, settings.url, recorded_only=elsewhere)
    if elsewhere:
        for record in own:
            records.write(store, record)
        return answers
    with ServeClient(settings) as client:
        client.check()
        for record in own:
            records.write(store, record)
        _apply(store, client, settings)
        client.wait_running([INGRESS, wanted[0].application], progress)
    return answers


def undeploy(store: Store, name: str, settings: ServeSettings) -> str:
    """Undeploy a name; returns the outcome as text. Raises ServingError if it is not deployed, or is a base that
    adapters need."""
    if registry.owner(store, name) is None:
        deployed = records.read_all(store)
        raise ServingError(f"{name!r} is not deployed; deployed: {', '.join(deployed) or 'nothing'}")
    home = registry.workspace_of(store, name)
    if settings.endpoint_url is not None:
        records.remove(home, name)
        return f"{name} is recorded as undeployed: the endpoint {settings.endpoint_url} stops it automatically"
    with ServeClient(settings) as client:
        client.details()  # raises before anything is written
        records.remove(home, name)
        _apply(store, client, settings)
    return f"{name} no longer answers at the endpoint"


def reapply(store: Store, settings: ServeSettings, progress: Callable[[str, float], None] | None = None) -> None:
    """Start the endpoint with every recorded deployment, after a restart of Ray."""
    applications = [record.application for record in records.read_all(store).values()]
    with ServeClient(settings) as client:
        client.check()
        _apply(store, client, settings)
        client.wait_running([INGRESS, *dict.fromkeys(applications)], progress)


def reconcile(store: Store, settings: ServeSettings) -> list[str]:
    """Make Serve run the recorded deployments; returns the applications that differed, and waits for none.

    For an endpoint on a Ray cluster that KubeRay manages: KubeRay knows the ingress alone, starts new clusters with it,
    and removes other applications whenever it applies its config. Several processes may call this at once.
    """
    with ServeClient(settings) as client:
        details = client.details()
        config = serve_config(records.read_all(store).values(), settings)
        changed = differing(details, with_running(config, details, records.unreadable(store)))
        if changed:
            _apply(store, client, settings)
    return changed


def needed_records(
    version: ModelVersion,
    label: str | None,
    serving: ServingSection,
    *,
    lora_rank: int | None,
    entry: CatalogueEntry | None = None,
) -> list[Deployment]:
    """The records that serve a version, the one with the engine first. Pure. `entry`: its base in the catalogue."""
    precision = version.lineage.spec.training.precision
    generates = TASKS[version.task].generates
    base_key = f"bases/{version.base_digest}" if entry is None else entry.key
    own = Deployment(
        name=version.name,
        team=version.team,
        kind="full" if generates else "predictor",
        task=version.task,
        key=version.key,
        base_key=base_key if version.kind == "adapter" and not generates else None,
        version=version.version,
        label=label,
        precision=precision,
        serving=serving,
    )
    if version.kind != "adapter" or not generates:
        return [own]
    assert lora_rank is not None
    if version.base_name == version.name:
        raise ServingError(
            f"the model {version.name!r} has the name of its own base model, which the endpoint also serves; "
            "register it under another name"
        )
    own_base = Deployment(
        name=version.base_name,
        team=version.team,
        kind="base",
        task=version.task,
        key=base_key,
        precision=precision,
        max_lora_rank=lora_capacity(lora_rank),
        serving=serving,
    )
    base = own_base if entry is None else records.catalogue_base(entry)
    of_base = {"base": base.name, "base_digest": version.base_digest}
    adapter = own.model_copy(update={"kind": "adapter", "key": None, "version": None, **of_base})
    return [base, adapter]


def _apply(store: Store, client: ServeClient, settings: ServeSettings) -> None:
    """Apply all records until they no longer change: Serve takes its config whole, and deployments may run at once."""
    applied = None
    while (current := records.read_all(store)) != applied:
        config = serve_config(current.values(), settings)
        if unreadable := records.unreadable(store):
            config = with_running(config, client.details(), unreadable)
        client.apply(config)
        applied = current


def _lora_rank(store: Workspace, version: ModelVersion) -> int | None:
    """The rank that an adapter needs of an engine: PEFT's `r`, or the largest of `rank_pattern`."""
    if version.kind != "adapter":
        return None
    config = _ADAPTERS.read(store, f"{version.key}/adapter_config")
    if config is None:
        raise ServingError(f"{version.name}@{version.version} has no adapter_config.json: register it again")
    return max([config.r, *config.rank_pattern.values()])
