"""Resolves a request's `model` to a route, from deployment records, registry, shares and traffic policies.

Owns the meaning of a name (`base`, `name`, `name@version`, `name@alias`, an API name `ft:…`), who may use it, and how
long that is cached. A new version, a moved alias or a changed policy takes effect after the time to live, without a
restart; while the store does not answer, the last snapshot stays in use. Does not know HTTP or Serve.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from ray_jobs import registry
from ray_jobs.deploy import records, traffic
from ray_jobs.deploy.records import Deployment
from ray_jobs.deploy.traffic import TrafficPolicy
from ray_jobs.errors import StoreError, suggestion
from ray_jobs.registry import api_names, catalogue, gated, shares
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.registry.model import ModelVersion
from ray_jobs.registry.shares import Share
from ray_jobs.storage import Store, Workspace
from ray_jobs.tasks import TASKS
from serving.access.auth import Caller
from serving.http.errors import ApiError, bad_request, store_unreachable
from serving.inference.backends import Route

logger = logging.getLogger(__name__)

_READS_AT_ONCE = 8
_MISS_TTL_S = 0.25
"""Seconds that an unknown name is cached, which limits the reads caused by a flood of wrong names."""
_READ_AHEAD = 0.75
"""Fraction of the time to live after which the snapshot is refreshed in the background."""
_PATIENCE_S = 2.0
"""Seconds that a request waits for the store before it uses the last snapshot."""


@dataclass(frozen=True)
class RoutingSnapshot:
    """Deployments and registry contents at one moment."""

    records: dict[str, Deployment]
    versions: dict[str, tuple[ModelVersion, ...]]
    """Deployed model → its versions, oldest first."""
    aliases: dict[str, dict[str, str]]
    """Deployed model → alias → version."""
    shares: dict[str, Share] = field(default_factory=dict)
    """Shared model → its share."""
    traffic: dict[str, TrafficPolicy] = field(default_factory=dict)
    """Model → its traffic policy, if it has one."""
    bases: dict[str, CatalogueEntry] = field(default_factory=dict)
    """The catalogue of base models."""
    _by_team: dict[str, RoutingSnapshot] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Cache of `visible_to` by team."""
    team: str | None = None
    """The team that sees this part; None: everything, as the operator does."""

    def visible_to(self, caller: Caller) -> RoutingSnapshot:
        """Return the part that the caller may see, so that no response or hint reveals anything else."""
        if caller.admin:
            return self
        if caller.team not in self._by_team:
            self._by_team[caller.team] = self._of_team(caller.team)
        return self._by_team[caller.team]

    def keeping(self, unreadable: Collection[str], last: RoutingSnapshot) -> RoutingSnapshot:
        """Return the snapshot with what `last` has of the records that cannot be read now, by their store keys.

        Their engines keep running, and an alias does not move to another version.
        """
        deployed, versions, aliases = dict(self.records), dict(self.versions), dict(self.aliases)
        for key in unreadable:
            kind, _, name, *rest = [*key.removesuffix(".json").split("/"), "", ""][: max(3, key.count("/") + 1)]
            if kind == "deployments" and not rest and name in last.records:
                deployed.setdefault(name, last.records[name])
                versions.setdefault(name, last.versions.get(name, ()))
                aliases.setdefault(name, last.aliases.get(name, {}))
            elif kind == "aliases" and rest and rest[0] in last.aliases.get(name, {}):
                aliases[name] = {rest[0]: last.aliases[name][rest[0]]} | aliases.get(name, {})
            elif kind == "models" and rest and (version := last.version(name, rest[0])) is not None:
                readable = [each for each in versions.get(name, ()) if each.version != version.version]
                versions[name] = tuple(sorted([*readable, version], key=lambda each: int(each.version)))
        return replace(self, records=deployed, versions=versions, aliases=aliases)

    def version(self, name: str, number: str | None) -> ModelVersion | None:
        """Return one version of a deployed model."""
        return next((version for version in self.versions.get(name, ()) if version.version == number), None)

    def names(self, caller: Caller) -> list[str]:
        """List the names that the caller may use as `model`, without aliases."""
        return _all_names(self.visible_to(caller))

    def _of_team(self, team: str) -> RoutingSnapshot:
        shared = {name: share for name, share in self.shares.items() if share.includes(team)}

        def sees(version: ModelVersion) -> bool:
            share = shared.get(version.name)
            return version.team == team or (share is not None and share.allows(version))

        versions = {name: tuple(version for version in found if sees(version)) for name, found in self.versions.items()}
        deployed = {}
        for name, record in self.records.items():
            numbers = {version.version for version in versions.get(name, ())}
            if record.kind == "base" or (numbers if record.version is None else record.version in numbers):
                deployed[name] = record
        return replace(self, records=deployed, versions=versions, team=team)

    def answers(self, record: Deployment) -> bool:
        """Whether a request may name the record. A base that a team brought itself answers only that team by its name,
        also where an adapter on it is shared."""
        return record.kind != "base" or self.team is None or record.team in (None, self.team)


def resolve(
    snapshot: RoutingSnapshot, model: str, caller: Caller, *, draw: float = 1.0, stopped: Collection[str] = ()
) -> Route:
    """Resolve a name to a route. Pure. Raises ApiError 404 if it is not deployed or not visible to the caller.

    `draw`: uniform over [0, 1), decides whether a canary answers; 1.0: never. `stopped`: ids of rollouts that this
    process has ended and that the snapshot may still contain.
    """
    visible = snapshot.visible_to(caller)
    name, at, label = api_names.registry_ref(model).partition("@")
    record = visible.records.get(name)
    if record is None or not visible.answers(record) or (at and not label) or (at and record.kind == "base"):
        raise _unknown(visible, model)
    if record.kind == "base":
        return Route(model=name, application=record.application, task=record.task, serving=record.serving)
    version = visible.version(name, _meant(visible, record, label or record.label))
    if version is None:
        raise _unknown(visible, model)
    if record.kind != "adapter":
        if version.version != record.version:
            raise _not_deployed(f"{name}@{version.version}", f"the endpoint runs {name}@{record.version}")
        exact = f"{name}@{version.version}"
        shown = _api_name(visible, record, version, label)
        return Route(
            exact,
            record.application,
            record.task,
            api_name=shown,
            serving=record.serving,
            switches=version.lineage.prompts.switches,
        )
    policy = visible.traffic.get(name)
    if policy is None or policy.alias != (label or record.label or registry.CHAMPION):
        return _adapter(visible, record, version, label)
    return _on_rollout(visible, record, version, label, policy, draw, stopped)


def _on_rollout(
    visible: RoutingSnapshot,
    record: Deployment,
    version: ModelVersion,
    label: str,
    policy: TrafficPolicy,
    draw: float,
    stopped: Collection[str],
) -> Route:
    """Resolve an alias with a traffic policy. A rollout whose version cannot answer is ignored."""

    def other(number: str | None) -> Route | None:
        found = visible.version(record.name, number)
        try:
            return None if found is None else _adapter(visible, record, found, label)
        except ApiError:
            return None

    watch = policy.watch if policy.watch is not None and policy.watch.version == version.version else None
    canary = policy.canary if policy.canary is not None and policy.canary.id not in stopped else None
    before = other(watch.back_to) if watch is not None and watch.id in stopped else None
    tried = other(traffic.choose(canary, draw))
    if tried is not None:
        route = replace(tried, rollout=canary)
    elif before is not None:
        route = before
    else:
        route = replace(_adapter(visible, record, version, label), rollout=watch)
    return replace(route, shadow=other(policy.shadow))


def _adapter(visible: RoutingSnapshot, record: Deployment, version: ModelVersion, label: str) -> Route:
    exact = f"{version.name}@{version.version}"
    base = visible.records.get(record.base or "")
    if version.kind != "adapter" or base is None or not base.runs_base(version.base_digest):
        raise _not_deployed(exact, "it was trained on another base")
    shown = _api_name(visible, record, version, label)
    return Route(
        exact,
        record.application,
        record.task,
        adapter=exact,
        api_name=shown,
        serving=base.serving,
        switches=version.lineage.prompts.switches,
    )


def _api_name(visible: RoutingSnapshot, record: Deployment, version: ModelVersion, label: str) -> str | None:
    """Return the API name of a version requested by a label: that of a checkpoint, else of the job's result."""
    if not api_names.has_api_name(record.name):
        return None
    aliases = visible.aliases.get(record.name, {})
    checkpoint = label if api_names.CHECKPOINT_ALIAS.fullmatch(label) else None
    if label and checkpoint is None and version.version != _meant(visible, record, record.label):
        steps = [alias for alias in sorted(aliases) if aliases[alias] == version.version]
        checkpoint = next((alias for alias in steps if api_names.CHECKPOINT_ALIAS.fullmatch(alias)), None)
    return api_names.api_name(version, checkpoint=checkpoint)


class Router:
    """Resolves names against a snapshot that is refreshed when it is older than the time to live."""

    def __init__(
        self,
        store: Store,
        *,
        ttl_s: float,
        stopped: Collection[str] = (),
        patience_s: float = _PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stopped = stopped
        """Ids of the rollouts that this process has ended; maintained by `traffic`."""
        self._store = store
        self._ttl_s = ttl_s
        self._patience_s = patience_s
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._since = 0.0
        """Start time of the latest read."""
        self._snapshot: RoutingSnapshot | None = None
        self._read_at = -math.inf

    async def resolve(
        self, model: Any, path: str, caller: Caller, *, draw: float | None = None, asked_at: str | None = None
    ) -> Route:
        """Resolve a request's `model` at a path. `draw` None: drawn at random. `asked_at`: the path in messages, if it
        is another one for models of the same task.

        Raises ApiError 400 without a name and for a model whose task is not answered at `path`, 404 for an unknown one.
        """
        if not isinstance(model, str) or not model:
            raise bad_request("model is missing: name one of /v1/models", param="model")
        draw = random.random() if draw is None else draw
        try:
            route = resolve(await self.snapshot(), model, caller, draw=draw, stopped=self.stopped)
        except ApiError:
            # A client often uses a model right after it was deployed.
            snapshot = await self.snapshot(max_age_s=_MISS_TTL_S)
            route = resolve(snapshot, model, caller, draw=draw, stopped=self.stopped)
        task = TASKS.get(route.task)
        if task is None or task.route != path:
            where = "no path" if task is None else task.route
            message = f"{route.public_name!r} is a {route.task} model: use {where} instead of {asked_at or path}"
            raise bad_request(message, param="model", code="wrong_task")
        return route

    def forget(self) -> None:
        """Discard the snapshot after this process has changed a deployment."""
        self._read_at = -math.inf
        self._task = None  # a read in progress may miss the change

    async def snapshot(self, *, max_age_s: float | None = None) -> RoutingSnapshot:
        """Return a snapshot not older than the time to live. Raises ApiError 503 if none could be read yet.

        Under steady traffic no request waits for the store: the snapshot is refreshed in the background before it
        expires.
        """
        limit_s = self._ttl_s if max_age_s is None else min(max_age_s, self._ttl_s)
        for _ in range(2):  # a read in progress may have begun too long ago; the next one has not
            if self._snapshot is not None and self._clock() - self._read_at <= limit_s:
                break
            task = self._reading()
            # Not cancelled with this request: others wait for it too. With a snapshot, waiting is limited.
            patience_s = None if self._snapshot is None else max(0.0, self._since + self._patience_s - self._clock())
            await asyncio.wait({task}, timeout=patience_s)
            if not task.done():
                break
            task.result()
            if self._snapshot is None and task is self._task:
                break  # it failed, and would fail again
        if self._snapshot is None:
            raise store_unreachable("the deployed models are not known")
        if self._clock() - self._read_at > self._ttl_s * _READ_AHEAD:
            self._reading()
        return self._snapshot

    def _reading(self) -> asyncio.Task[None]:
        """Return the read in progress, or start one."""
        if self._task is None or self._task.done():
            self._since = self._clock()
            self._task = asyncio.create_task(self._read(self._since))
        return self._task

    async def _read(self, began_at: float) -> None:
        try:
            found: RoutingSnapshot | None = await asyncio.to_thread(read_snapshot, self._store)
            if found is not None and self._snapshot is not None:
                found = found.keeping(self._store.unreadable.keys(), self._snapshot)
        except StoreError as error:
            logger.warning("the object store does not answer; the last known deployments stay in use: %s", error)
            found, began_at = self._snapshot, self._clock()  # delays the next try
        if self._task is asyncio.current_task():
            self._snapshot, self._read_at = found, began_at


def read_snapshot(store: Store) -> RoutingSnapshot:
    """Read records, registry, shares and policies; what cannot be read is left out. Raises StoreError."""
    deployed = records.read_all(store)
    tuned = [name for name, record in deployed.items() if record.kind != "base"]
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        homes = {name: Workspace(store, str(deployed[name].team)) for name in tuned}
        versions = pool.map(lambda name: tuple(registry.versions(homes[name], name)), tuned)
        aliases = pool.map(lambda name: registry.aliases(homes[name], name), tuned)
        shared, policies = pool.submit(shares.read_all, store), pool.submit(traffic.read_all, store)
        bases = pool.submit(catalogue.entries, store)
        return RoutingSnapshot(
            deployed,
            dict(zip(tuned, versions, strict=True)),
            dict(zip(tuned, aliases, strict=True)),
            shared.result(),
            policies.result(),
            {entry.name: entry for entry in bases.result()},
        )


def _names(visible: RoutingSnapshot, record: Deployment) -> list[str]:
    """List the names that one deployment record answers."""
    name = record.name
    if record.kind == "base":
        return [name]
    if api_names.has_api_name(name):
        meant = visible.version(name, _meant(visible, record, record.label))
        found = [] if meant is None else [api_names.api_name(meant)]
        for alias, number in sorted(visible.aliases.get(name, {}).items(), key=lambda pair: (len(pair[0]), pair[0])):
            version = visible.version(name, number) if record.kind == "adapter" else None
            if version is not None and api_names.CHECKPOINT_ALIAS.fullmatch(alias):
                found.append(api_names.api_name(version, checkpoint=alias))
        return found
    if record.kind == "adapter":
        return [name, *(f"{name}@{version.version}" for version in visible.versions.get(name, ()))]
    return [name] if record.version is None else [name, f"{name}@{record.version}"]


def _meant(visible: RoutingSnapshot, record: Deployment, label: str | None) -> str:
    """Return the version that a label means: a version or alias; without a label the champion, else the newest."""
    versions = visible.versions.get(record.name, ())
    aliases = visible.aliases.get(record.name, {})
    newest = gated.newest(versions)
    label = label or record.version or aliases.get(registry.CHAMPION) or (newest.version if newest is not None else "")
    return aliases.get(label, label)


def _all_names(visible: RoutingSnapshot) -> list[str]:
    return [name for record in visible.records.values() if visible.answers(record) for name in _names(visible, record)]


def _unknown(visible: RoutingSnapshot, model: str) -> ApiError:
    known = _all_names(visible)
    hint = suggestion(model, known, f"deployed: {', '.join(known[:10]) or 'nothing yet'}")
    return ApiError(404, f"the model {model!r} is not deployed; {hint}", code="model_not_found", param="model")


def _not_deployed(exact: str, why: str) -> ApiError:
    message = f"{exact!r} is registered and not deployed ({why}): kitae deploy {exact}"
    return ApiError(404, message, code="model_not_found", param="model")
