"""A request's `model` → where it is answered, from the deployment records, the registry, shares and traffic policies.

Owns what a name means (`base`, `name`, `name@version`, `name@alias`, a wire name `ft:…`), who sees it, and how long
that is believed. A new version, a moved alias or a changed policy counts after the time to live, without any restart;
while the store is away, what was known last still answers. Does not know HTTP nor Serve.
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
from typing import Any, Protocol

from ray_jobs import registry
from ray_jobs.deploy import records, traffic
from ray_jobs.deploy.records import Deployment
from ray_jobs.deploy.traffic import TrafficPolicy
from ray_jobs.errors import StoreError, suggestion
from ray_jobs.registry import ModelVersion, api_names, catalogue, shares
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.registry.shares import Share
from ray_jobs.storage import Store
from ray_jobs.tasks import TASKS
from serving.http.errors import ApiError, bad_request
from serving.inference.backends import Route

logger = logging.getLogger(__name__)

_READS_AT_ONCE = 8
_MISS_TTL_S = 0.25
"""How long an unknown name is believed to be unknown: a flood of wrong names must not become a flood of reads."""
_READ_AHEAD = 0.75
"""The part of the time to live after which it is read again, before anybody has to wait for it."""
_PATIENCE_S = 2.0
"""How long a request waits for a store that does not answer, before what was known last holds."""


class Viewer(Protocol):
    """Whoever asks, as far as it decides what there is for them."""

    @property
    def team(self) -> str: ...

    @property
    def admin(self) -> bool:
        """Sees every model."""
        ...


@dataclass(frozen=True)
class Snapshot:
    """What was deployed and registered at one moment."""

    records: dict[str, Deployment]
    versions: dict[str, tuple[ModelVersion, ...]]
    """Of every deployed model, oldest first."""
    aliases: dict[str, dict[str, str]]
    """Of every deployed model: alias → version."""
    shares: dict[str, Share] = field(default_factory=dict)
    """Of every model that is shared."""
    traffic: dict[str, TrafficPolicy] = field(default_factory=dict)
    """Of every model that has one."""
    bases: dict[str, CatalogueEntry] = field(default_factory=dict)
    """The catalogue."""
    _seen: dict[str, Snapshot] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What each team sees, once it has asked."""

    def seen_by(self, viewer: Viewer) -> Snapshot:
        """What there is for whoever asks. The rest is gone, so that no answer and no hint can speak of it."""
        if viewer.admin:
            return self
        if viewer.team not in self._seen:
            self._seen[viewer.team] = self._of_team(viewer.team)
        return self._seen[viewer.team]

    def names(self, viewer: Viewer) -> list[str]:
        """Everything they may put into `model`, aliases aside."""
        seen = self.seen_by(viewer)
        return [name for record in seen.records.values() for name in _names(seen, record)]

    def _of_team(self, team: str) -> Snapshot:
        versions = {
            name: tuple(version for version in found if self._is_for(team, version))
            for name, found in self.versions.items()
        }
        deployed = {}
        for name, record in self.records.items():
            numbers = {version.version for version in versions.get(name, ())}
            if record.kind == "base" or (numbers if record.version is None else record.version in numbers):
                deployed[name] = record
        return replace(self, records=deployed, versions=versions)

    def _is_for(self, team: str, version: ModelVersion) -> bool:
        shared = self.shares.get(version.name)
        return api_names.owner(version) == team or (shared is not None and shared.includes(team))


def resolve(
    snapshot: Snapshot, model: str, viewer: Viewer, *, draw: float = 1.0, stopped: Collection[str] = ()
) -> Route:
    """Where a name is answered. Pure. Raises ApiError 404 for one that is not, or not for whoever asks.

    `draw`, uniform over [0, 1), decides whether a canary answers; 1.0: never. `stopped` are the ids of trials that this
    process has ended and the snapshot may still have.
    """
    seen = snapshot.seen_by(viewer)
    name, at, label = api_names.registry_ref(model).partition("@")
    record = seen.records.get(name)
    if record is None or (at and not label) or (at and record.kind == "base"):
        raise _unknown(seen, model)
    if record.kind == "base":
        return Route(model=name, application=record.application, task=record.task)
    version = _version(seen, model, record, label or record.label)
    if record.kind != "adapter":
        if version.version != record.version:
            raise _not_deployed(f"{name}@{version.version}", f"the endpoint runs {name}@{record.version}")
        exact = f"{name}@{version.version}"
        return Route(exact, record.application, record.task, wire=_wire(seen, record, version, label))
    policy = seen.traffic.get(name)
    if policy is None or policy.alias != (label or record.label or registry.CHAMPION):
        return _adapter(seen, record, version, label)
    return _on_trial(seen, record, version, label, policy, draw, stopped)


def _on_trial(
    seen: Snapshot,
    record: Deployment,
    version: ModelVersion,
    label: str,
    policy: TrafficPolicy,
    draw: float,
    stopped: Collection[str],
) -> Route:
    """An alias's route under its policy. A version on trial that cannot answer is as if there were no trial."""

    def other(number: str | None) -> Route | None:
        found = next((found for found in seen.versions[record.name] if found.version == number), None)
        try:
            return None if found is None else _adapter(seen, record, found, label)
        except ApiError:
            return None

    watch = policy.watch if policy.watch is not None and policy.watch.version == version.version else None
    canary = policy.canary if policy.canary is not None and policy.canary.id not in stopped else None
    before = other(watch.back_to) if watch is not None and watch.id in stopped else None
    tried = other(traffic.choose(canary, draw))
    if tried is not None:
        route = replace(tried, trial=canary)
    elif before is not None:
        route = before
    else:
        route = replace(_adapter(seen, record, version, label), trial=watch)
    return replace(route, shadow=other(policy.shadow))


def _adapter(seen: Snapshot, record: Deployment, version: ModelVersion, label: str) -> Route:
    exact = f"{version.name}@{version.version}"
    base = seen.records.get(record.base or "")
    if version.kind != "adapter" or base is None or base.key != f"bases/{version.base_digest}":
        raise _not_deployed(exact, "it was trained from another base")
    shown = _wire(seen, record, version, label)
    return Route(exact, record.application, record.task, adapter=exact, wire=shown)


def _wire(seen: Snapshot, record: Deployment, version: ModelVersion, label: str) -> str | None:
    """What clients call what they asked for by this label: a checkpoint by its step, else the job's result."""
    if not api_names.has_wire_name(record.name):
        return None
    aliases = seen.aliases.get(record.name, {})
    checkpoint = label if api_names.CHECKPOINT_ALIAS.fullmatch(label) else None
    if label and checkpoint is None and version.version != _meant(seen, record, record.label):
        steps = [alias for alias in sorted(aliases) if aliases[alias] == version.version]
        checkpoint = next((alias for alias in steps if api_names.CHECKPOINT_ALIAS.fullmatch(alias)), None)
    return api_names.wire_name(version, checkpoint=checkpoint)


def check_path(route: Route, path: str) -> None:
    """Raises ApiError 400 where the model's task is not answered at `path`."""
    task = TASKS.get(route.task)
    if task is None or task.route != path:
        where = "no path here" if task is None else task.route
        message = f"{route.shown!r} does {route.task}, which is at {where}, not at {path}"
        raise bad_request(message, param="model", code="wrong_task")


class Router:
    """Resolves names against a snapshot that is read anew when it is older than the time to live."""

    stopped: Collection[str] = ()
    """Ids of the trials that this process has ended; whoever ends them (`traffic`) adds to it."""

    def __init__(
        self,
        store: Store,
        *,
        ttl_s: float,
        stopped: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stopped = stopped
        self._store = store
        self._ttl_s = ttl_s
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._since = 0.0
        """When the last read began."""
        self._snapshot: Snapshot | None = None
        self._read_at = -math.inf

    async def resolve(self, model: Any, path: str, viewer: Viewer, *, draw: float | None = None) -> Route:
        """Where a request's `model` is answered. Raises ApiError: 400 without a name, 404 for an unknown one.

        `draw` None: at random whether a canary answers.
        """
        if not isinstance(model, str) or not model:
            raise bad_request("model is missing: name one of /v1/models", param="model")
        draw = random.random() if draw is None else draw
        try:
            route = resolve(await self.snapshot(), model, viewer, draw=draw, stopped=self.stopped)
        except ApiError:
            # It may have been deployed a moment ago; whoever deployed it asks for it at once.
            snapshot = await self.snapshot(max_age_s=_MISS_TTL_S)
            route = resolve(snapshot, model, viewer, draw=draw, stopped=self.stopped)
        check_path(route, path)
        return route

    def forget(self) -> None:
        """Read anew before the next answer: what is deployed was changed here."""
        self._read_at = -math.inf
        self._task = None  # a read that is under way may have passed what was changed

    async def snapshot(self, *, max_age_s: float | None = None) -> Snapshot:
        """What is deployed now, at most a time to live ago. Raises ApiError 503 if it never could be read.

        While requests come, none of them waits for the store: it is read beside them before the time to live is over.
        """
        limit_s = self._ttl_s if max_age_s is None else min(max_age_s, self._ttl_s)
        for _ in range(2):  # a read that is under way may have begun too long ago; the one after it has not
            if self._snapshot is not None and self._clock() - self._read_at <= limit_s:
                break
            task = self._reading()
            # Whoever asks may go away, and the others wait on. What is known need not wait for a store that is away.
            patience_s = None if self._snapshot is None else max(0.0, self._since + _PATIENCE_S - self._clock())
            await asyncio.wait({task}, timeout=patience_s)
            if not task.done():
                break
            task.result()
            if self._snapshot is None and task is self._task:
                break  # it failed, and would again
        if self._snapshot is None:
            message = "the object store does not answer, so what is deployed is not known"
            raise ApiError(503, message, code="store_unreachable", headers={"Retry-After": "5"})
        if self._clock() - self._read_at > self._ttl_s * _READ_AHEAD:
            self._reading()
        return self._snapshot

    def _reading(self) -> asyncio.Task[None]:
        """The read that is under way, or a new one."""
        if self._task is None or self._task.done():
            self._since = self._clock()
            self._task = asyncio.create_task(self._read(self._since))
        return self._task

    async def _read(self, began_at: float) -> None:
        try:
            found: Snapshot | None = await asyncio.to_thread(read_snapshot, self._store)
        except StoreError as error:
            logger.warning("the object store does not answer; what was deployed last still answers: %s", error)
            found, began_at = self._snapshot, self._clock()  # so that it is not asked again at once
        if self._task is asyncio.current_task():
            self._snapshot, self._read_at = found, began_at


def read_snapshot(store: Store) -> Snapshot:
    """Read records, registry, shares and policies. Raises StoreError."""
    deployed = records.read_all(store)
    tuned = [name for name, record in deployed.items() if record.kind != "base"]
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        versions = pool.map(lambda name: tuple(registry.versions(store, name)), tuned)
        aliases = pool.map(lambda name: registry.aliases(store, name), tuned)
        shared, policies = pool.submit(shares.read_all, store), pool.submit(traffic.read_all, store)
        bases = pool.submit(catalogue.entries, store)
        return Snapshot(
            deployed,
            dict(zip(tuned, versions, strict=True)),
            dict(zip(tuned, aliases, strict=True)),
            shared.result(),
            policies.result(),
            {entry.name: entry for entry in bases.result()},
        )


def _names(seen: Snapshot, record: Deployment) -> list[str]:
    """What one record answers for."""
    name, versions = record.name, seen.versions.get(record.name, ())
    if record.kind == "base":
        return [name]
    if api_names.has_wire_name(name):
        by_number = {version.version: version for version in versions}
        meant = by_number.get(_meant(seen, record, record.label))
        found = [] if meant is None else [api_names.wire_name(meant)]
        for alias, number in sorted(seen.aliases.get(name, {}).items(), key=lambda pair: (len(pair[0]), pair[0])):
            if api_names.CHECKPOINT_ALIAS.fullmatch(alias) and number in by_number and record.kind == "adapter":
                found.append(api_names.wire_name(by_number[number], checkpoint=alias))
        return found
    if record.kind == "adapter":
        return [name, *(f"{name}@{version.version}" for version in versions)]
    return [name] if record.version is None else [name, f"{name}@{record.version}"]


def _meant(seen: Snapshot, record: Deployment, label: str | None) -> str:
    """The registry's rule: a version, else an alias; with neither named the champion, else the newest."""
    versions = seen.versions.get(record.name, ())
    aliases = seen.aliases.get(record.name, {})
    if record.version is not None and label is None:
        label = record.version
    if label is None:
        label = aliases.get(registry.CHAMPION) or (versions[-1].version if versions else "")
    return aliases.get(label, label)


def _version(seen: Snapshot, model: str, record: Deployment, label: str | None) -> ModelVersion:
    number = _meant(seen, record, label)
    for version in seen.versions.get(record.name, ()):
        if version.version == number:
            return version
    raise _unknown(seen, model)


def _unknown(seen: Snapshot, model: str) -> ApiError:
    known = [name for record in seen.records.values() for name in _names(seen, record)]
    hint = suggestion(model, known, f"deployed: {', '.join(known[:10]) or 'nothing yet'}")
    return ApiError(404, f"the model {model!r} is not deployed; {hint}", code="model_not_found", param="model")


def _not_deployed(exact: str, why: str) -> ApiError:
    message = f"{exact!r} is registered and not deployed ({why}): kitae deploy {exact}"
    return ApiError(404, message, code="model_not_found", param="model")
