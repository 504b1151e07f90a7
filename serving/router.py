"""A request's `model` → where it is answered, from the deployment records and the registry.

Owns what a name means (`base`, `name`, `name@version`, `name@alias`) and how long that is believed. A new version or a
moved alias counts after the time to live, without any restart; while the store is away, what was known last still
answers. Does not know HTTP nor Serve.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ray_jobs import registry
from ray_jobs.deploy import records
from ray_jobs.deploy.records import Deployment
from ray_jobs.errors import StoreError
from ray_jobs.registry import ModelVersion
from ray_jobs.storage import Store
from serving.backends import Route
from serving.errors import ApiError, bad_request

logger = logging.getLogger(__name__)

_NEAR_NAMES = 3
_READS_AT_ONCE = 8
_MISS_TTL_S = 0.25
"""How long an unknown name is believed to be unknown: a flood of wrong names must not become a flood of reads."""
_PATHS = {"chat": "/v1/chat/completions", "text_classification": "/v1/classify"}


@dataclass(frozen=True)
class Snapshot:
    """What was deployed and registered at one moment."""

    records: dict[str, Deployment]
    versions: dict[str, tuple[ModelVersion, ...]]
    """Of every deployed model, oldest first."""
    aliases: dict[str, dict[str, str]]
    """Of every deployed model: alias → version."""

    def names(self) -> list[str]:
        """Everything a request may put into `model`, aliases aside."""
        found = []
        for name, record in self.records.items():
            found.append(name)
            if record.kind == "adapter":
                found += [f"{name}@{version.version}" for version in self.versions.get(name, ())]
            elif record.version is not None:
                found.append(f"{name}@{record.version}")
        return found


def resolve(snapshot: Snapshot, model: str) -> Route:
    """Where a name is answered. Pure. Raises ApiError 404 for one that is not."""
    name, at, label = model.partition("@")
    record = snapshot.records.get(name)
    if record is None or (at and not label) or (at and record.kind == "base"):
        raise _unknown(snapshot, model)
    if record.kind == "base":
        return Route(model=name, application=record.application, task=record.task)
    version = _version(snapshot, model, record, label or record.label)
    exact = f"{name}@{version.version}"
    if record.kind == "adapter":
        base = snapshot.records.get(record.base or "")
        if version.kind != "adapter" or base is None or base.key != f"bases/{version.base_digest}":
            raise _not_deployed(exact, "it was trained from another base")
        return Route(model=exact, application=record.application, task=record.task, adapter=exact)
    if version.version != record.version:
        raise _not_deployed(exact, f"the endpoint runs {name}@{record.version}")
    return Route(model=exact, application=record.application, task=record.task)


def check_task(route: Route, task: str) -> None:
    """Raises ApiError 400 where a model does not do what the path is for."""
    if route.task != task:
        where = _PATHS.get(route.task, "no path here")
        message = f"{route.model!r} does {route.task}, which is at {where}, not at {_PATHS[task]}"
        raise bad_request(message, param="model", code="wrong_task")


class Router:
    """Resolves names against a snapshot that is read anew when it is older than the time to live."""

    def __init__(self, store: Store, *, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._clock = clock
        self._lock = asyncio.Lock()
        self._snapshot: Snapshot | None = None
        self._read_at = 0.0

    async def resolve(self, model: Any, task: str) -> Route:
        """Where a request's `model` is answered. Raises ApiError: 400 without a name, 404 for an unknown one."""
        if not isinstance(model, str) or not model:
            raise bad_request("model is missing: name one of /v1/models", param="model")
        try:
            route = resolve(await self.snapshot(), model)
        except ApiError:
            # It may have been deployed a moment ago; whoever deployed it asks for it at once.
            route = resolve(await self.snapshot(max_age_s=_MISS_TTL_S), model)
        check_task(route, task)
        return route

    async def snapshot(self, *, max_age_s: float | None = None) -> Snapshot:
        """What is deployed now, at most a time to live ago. Raises ApiError 503 if it never could be read."""
        limit_s = self._ttl_s if max_age_s is None else min(max_age_s, self._ttl_s)
        async with self._lock:
            if self._snapshot is None or self._clock() - self._read_at > limit_s:
                try:
                    self._snapshot = await asyncio.to_thread(read_snapshot, self._store)
                except StoreError as error:
                    if self._snapshot is None:
                        message = "the object store does not answer, so what is deployed is not known"
                        raise ApiError(503, message, code="store_unreachable", headers={"Retry-After": "5"}) from error
                    logger.warning("the object store does not answer; what was deployed last still answers: %s", error)
                self._read_at = self._clock()
            return self._snapshot


def read_snapshot(store: Store) -> Snapshot:
    """Read records and registry. Raises StoreError."""
    deployed = records.read_all(store)
    names = [name for name, record in deployed.items() if record.kind != "base"]
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        versions = pool.map(lambda name: tuple(registry.versions(store, name)), names)
        aliases = pool.map(lambda name: registry.aliases(store, name), names)
        return Snapshot(deployed, dict(zip(names, versions, strict=True)), dict(zip(names, aliases, strict=True)))


def _version(snapshot: Snapshot, model: str, record: Deployment, label: str | None) -> ModelVersion:
    """The registry's rule: a version, else an alias; with neither named the champion, else the newest."""
    versions = snapshot.versions.get(record.name, ())
    aliases = snapshot.aliases.get(record.name, {})
    if record.version is not None and label is None:
        label = record.version
    if label is None:
        label = aliases.get(registry.CHAMPION) or (versions[-1].version if versions else "")
    number = aliases.get(label, label)
    for version in versions:
        if version.version == number:
            return version
    raise _unknown(snapshot, model)


def _unknown(snapshot: Snapshot, model: str) -> ApiError:
    names = snapshot.names()
    near = difflib.get_close_matches(model, names, n=_NEAR_NAMES, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else f"deployed: {', '.join(names[:10]) or 'nothing yet'}"
    return ApiError(404, f"the model {model!r} is not deployed; {hint}", code="model_not_found", param="model")


def _not_deployed(exact: str, why: str) -> ApiError:
    message = f"{exact!r} is registered and not deployed ({why}): kitae deploy {exact}"
    return ApiError(404, message, code="model_not_found", param="model")
