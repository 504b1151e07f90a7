"""Deploying: from a registered version to an endpoint that answers for it.

Owns the decision what a version needs (an adapter needs its base's engine), the records that say so and applying them
to Ray Serve. Knows `serving` only as import paths, so that it stays light. Applications that run are not restarted:
an adapter's new version, or an alias that moves, needs no deployment at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ray_jobs import registry
from ray_jobs.deploy import records
from ray_jobs.deploy.records import Deployment
from ray_jobs.deploy.serve_api import INGRESS, ServeClient, ServeSettings, differing, serve_config
from ray_jobs.engine import lora_capacity
from ray_jobs.errors import ServingError
from ray_jobs.registry import ModelVersion
from ray_jobs.spec import ServingSection
from ray_jobs.storage import Store
from ray_jobs.tasks import TASKS

__all__ = ["Deployed", "Deployment", "ServeSettings", "deploy", "deployed", "keep", "reapply", "undeploy"]

_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Deployed:
    """What answers now, or soon."""

    model: str
    """What to put in a request's `model`."""
    version: str
    """The version that answers."""
    base: str | None
    """The base that answers beside an adapter, by its own name."""
    url: str
    """Base URL for a client."""
    recorded_only: bool
    """The endpoint is elsewhere, and brings it up by itself."""

    def __str__(self) -> str:
        what = f"{self.model} (version {self.version})"
        if self.recorded_only:
            return f"{what} is recorded: the endpoint {self.url} starts it by itself"
        return f"{what} answers at {self.url}" + (f", beside its base {self.base}" if self.base else "")


def deploy(
    store: Store,
    ref: str,
    settings: ServeSettings,
    *,
    serving: ServingSection | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Deployed:
    """Deploy `name`, `name@version` or `name@alias`, and wait until it answers; of an endpoint elsewhere
    (`settings.endpoint_url`), only record it: that one brings it up by itself (`keep`).

    With a version or alias named, the bare name means that one from then on; without, it follows the alias champion,
    else the newest. `serving` None: the options of the job that made the version. `progress` gets a line and the
    seconds so far. Raises RegistryError for an unknown model, MachineError for a port in use, ServingError otherwise.
    """
    version = registry.get(store, ref)
    label = ref.partition("@")[2] or None
    wanted = needed_records(version, label, _options(version, serving), lora_rank=_lora_rank(store, version))
    elsewhere = settings.endpoint_url is not None
    answers = Deployed(version.name, version.version, wanted[-1].base, settings.url, recorded_only=elsewhere)
    if elsewhere:
        for record in wanted:
            records.write(store, record)
        return answers
    with ServeClient(settings) as client:
        client.check()
        for record in wanted:
            records.write(store, record)
        _apply(store, client, settings)
        client.wait_running([INGRESS, wanted[0].application], progress)
    return answers


def undeploy(store: Store, name: str, settings: ServeSettings) -> str:
    """Stop answering for a name; what became of it, in words. Raises ServingError where it is not deployed, or is a
    base that adapters need."""
    if settings.endpoint_url is not None:
        records.remove(store, name)
        return f"{name} is recorded as undeployed: the endpoint {settings.endpoint_url} stops it by itself"
    with ServeClient(settings) as client:
        client.details()  # refuses before anything is written
        records.remove(store, name)
        _apply(store, client, settings)
    return f"{name} no longer answers at the endpoint"


def reapply(store: Store, settings: ServeSettings, progress: Callable[[str, float], None] | None = None) -> None:
    """Bring up the endpoint, with everything that is recorded as deployed: after Ray was started anew."""
    applications = [record.application for record in records.read_all(store).values()]
    with ServeClient(settings) as client:
        client.check()
        _apply(store, client, settings)
        client.wait_running([INGRESS, *dict.fromkeys(applications)], progress)


def keep(store: Store, settings: ServeSettings) -> list[str]:
    """Make Serve run what is recorded, if it does not. Which applications were not as recorded; waits for none.

    For an endpoint whose Ray cluster another manages: KubeRay knows the ingress alone, starts new clusters with it, and
    takes away whatever else runs when it tells a cluster its config again. Several may do it at once.
    """
    with ServeClient(settings) as client:
        config = serve_config(records.read_all(store).values(), settings)
        changed = differing(client.details(), config)
        if changed:
            _apply(store, client, settings)
    return changed


def deployed(store: Store) -> list[Deployment]:
    """Every name the endpoint answers for."""
    return list(records.read_all(store).values())


def needed_records(
    version: ModelVersion, label: str | None, serving: ServingSection, *, lora_rank: int | None
) -> list[Deployment]:
    """The records that make a version answer: the one with the engine first. Pure."""
    precision = version.lineage.spec.training.precision
    generates = TASKS[version.task].generates
    base_key = f"bases/{version.base_digest}"
    own = Deployment(
        name=version.name,
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
            f"the model {version.name!r} has the name of its own base model, which the endpoint answers for too; "
            "register it under another name"
        )
    base = Deployment(
        name=version.base_name,
        kind="base",
        task=version.task,
        key=base_key,
        precision=precision,
        max_lora_rank=lora_capacity(lora_rank),
        serving=serving,
    )
    adapter = own.model_copy(update={"kind": "adapter", "key": None, "version": None, "base": base.name})
    return [base, adapter]


def _apply(store: Store, client: ServeClient, settings: ServeSettings) -> None:
    """Serve takes its config whole, so two who deploy at once must both end with everybody's records applied."""
    applied = None
    while (current := records.read_all(store)) != applied:
        client.apply(serve_config(current.values(), settings))
        applied = current


def _options(version: ModelVersion, serving: ServingSection | None) -> ServingSection:
    return version.lineage.spec.serving if serving is None else serving


def _lora_rank(store: Store, version: ModelVersion) -> int | None:
    """The rank an engine needs for an adapter: PEFT's `r`, or the largest of `rank_pattern`."""
    if version.kind != "adapter":
        return None
    config = store.get_json(f"{version.key}/{_ADAPTER_CONFIG}")
    return max([int(config["r"]), *(int(rank) for rank in config.get("rank_pattern", {}).values())])
