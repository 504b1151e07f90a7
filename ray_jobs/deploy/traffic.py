"""Traffic policies: promotion, canaries, shadows and rollback of a model's versions.

Owns the policy document `traffic/{name}.json` and every change of it, each a conditional write. Without a policy, the
alias alone decides (`registry`). Does not see requests: `serving.inference.traffic` counts them and reports a passed
bound. A promotion moves the alias before it updates the policy, so that a process that dies in between has promoted.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ray_jobs import registry
from ray_jobs.deploy import records
from ray_jobs.errors import ConflictError, RegistryError, ServingError
from ray_jobs.registry import CHAMPION
from ray_jobs.registry.gated import require_gated
from ray_jobs.registry.model import ModelVersion
from ray_jobs.storage import Store, Workspace
from ray_jobs.storage.documents import Documents
from ray_jobs.tasks import TASKS

WATCH_S = 1800.0
"""Default seconds for which a promotion with bounds is watched."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Bounds(_Document):
    """Bounds of a canary or a watched promotion; each process that answers requests judges its own requests."""

    max_error_rate: float = Field(0.05, ge=0.0, le=1.0)
    """Highest share of requests answered 5xx."""
    max_p95_s: float | None = Field(None, gt=0.0)
    """Highest 95th percentile of the time to an answer, or to a stream's first chunk. None: no bound."""
    min_requests: int = Field(20, ge=1, le=1000)
    """Fewest requests after which a version is judged."""


class Canary(_Document):
    """A version that gets a share of an alias's requests."""

    id: str
    """New for each canary, so that no process judges it by the requests of an earlier one."""
    version: str
    percent: float = Field(gt=0.0, le=100.0)
    """Share of the requests to the alias."""
    bounds: Bounds = Bounds()


class Watch(_Document):
    """A promoted version whose promotion is undone if it passes a bound."""

    id: str
    version: str
    back_to: str
    """The previous version."""
    until: AwareDatetime
    bounds: Bounds = Bounds()


class RolledBack(_Document):
    """The last rollback caused by a bound."""

    version: str
    """The version that was rolled back."""
    was: Literal["canary", "promoted"]
    reason: str
    at: AwareDatetime


class TrafficPolicy(_Document):
    """The versions that receive requests to one alias of a model, besides the version it points at."""

    alias: str = CHAMPION
    """The alias; requests to the bare name count as requests to the alias it resolves to."""
    canary: Canary | None = None
    shadow: str | None = None
    """A version that receives a copy of each request; its answers are dropped."""
    watch: Watch | None = None
    rolled_back: RolledBack | None = None


_POLICIES = Documents("traffic/", TrafficPolicy, "a traffic policy")

read = _POLICIES.read
read_all = _POLICIES.read_all


def choose(canary: Canary | None, draw: float) -> str | None:
    """The canary's version if it is to answer, None for the alias's version. `draw` is uniform in [0, 1). Pure."""
    return canary.version if canary is not None and draw * 100 < canary.percent else None


def promote(
    store: Store,
    name: str,
    version: str,
    *,
    alias: str = CHAMPION,
    bounds: Bounds | None = None,
    watch_s: float = WATCH_S,
    ungated: bool = False,
) -> str:
    """Let a version answer all requests to the alias; ends its canary. Returns the change as text.

    `ungated`: also one that did not pass the gate.

    With `bounds` the promotion is undone automatically if they are passed within `watch_s`; only for adapters, whose
    previous version stays loadable. Raises ConflictError if the alias is moved at the same time.
    """
    home = registry.workspace_of(store, name)
    found = registry.get(home, f"{name}@{version}")
    policy = read(store, name)
    if bounds is not None:
        _require_adapter(home, found, "bounds need")
        _require_free_alias(policy, name, alias)
    before = registry.read_alias(home, name, alias)
    now_at = None if before is None else before.version
    back_to = before.previous if before is not None and now_at == found.version else now_at
    registry.set_alias(home, name, alias, found.version, expected=now_at, ungated=ungated)
    watch = None
    if bounds is not None and back_to is not None:
        until = store.now() + timedelta(seconds=watch_s)
        watch = Watch(id=uuid.uuid4().hex, version=found.version, back_to=back_to, until=until, bounds=bounds)

    def change(old: TrafficPolicy) -> TrafficPolicy:
        shadow = None if old.shadow == found.version else old.shadow
        return TrafficPolicy(alias=alias, shadow=shadow, watch=watch)

    if watch is not None or (policy is not None and policy.alias == alias):
        _update(store, name, change)
    done = f"{name}@{alias} is version {found.version}, before {now_at or 'unset'}"
    return done if watch is None else f"{done}; it is undone automatically if {_describe_bounds(watch.bounds)}"


def start_canary(
    store: Store,
    name: str,
    version: str,
    *,
    percent: float,
    alias: str = CHAMPION,
    bounds: Bounds | None = None,
    ungated: bool = False,
) -> str:
    """Let a version answer a share of the alias's requests, until it is promoted, rolled back or passes a bound.

    `ungated`: also one that did not pass the gate.
    """
    found = _beside(store, name, version, alias, "a canary needs", ungated=ungated)
    canary = Canary(id=uuid.uuid4().hex, version=found.version, percent=percent, bounds=bounds or Bounds())

    def change(old: TrafficPolicy) -> TrafficPolicy:
        shadow = None if old.shadow == found.version else old.shadow
        return old.model_copy(update={"alias": alias, "canary": canary, "shadow": shadow, "rolled_back": None})

    _update(store, name, change)
    what = f"{name}@{found.version} answers {percent:g} % of the requests to {name}@{alias}"
    return f"{what}; it stops automatically if {_describe_bounds(canary.bounds)}"


def start_shadow(store: Store, name: str, version: str, *, alias: str = CHAMPION, ungated: bool = False) -> str:
    """Send a copy of the alias's requests to a version. `ungated`: also to one that did not pass the gate."""
    found = _beside(store, name, version, alias, "a shadow needs", ungated=ungated)

    def change(old: TrafficPolicy) -> TrafficPolicy:
        canary = None if old.canary is not None and old.canary.version == found.version else old.canary
        return old.model_copy(update={"alias": alias, "canary": canary, "shadow": found.version})

    _update(store, name, change)
    return f"{name}@{found.version} receives a copy of the requests to {name}@{alias}; its answers are dropped"


def roll_back(store: Store, name: str, *, alias: str = CHAMPION) -> str:
    """End the canary and the shadow if the alias has any, else point the alias at its previous version.

    Returns the change as text. Raises RegistryError if the alias has no previous version. Two rollbacks cancel out.
    """
    home, policy = registry.workspace_of(store, name), read(store, name)
    if policy is not None and policy.alias == alias and (policy.canary or policy.shadow):
        ended = [f"canary {policy.canary.version}"] if policy.canary else []
        ended += [f"shadow {policy.shadow}"] if policy.shadow else []

        def change(old: TrafficPolicy) -> TrafficPolicy:
            if (old.alias, old.canary, old.shadow) != (policy.alias, policy.canary, policy.shadow):
                raise ConflictError(f"the traffic of {name} was changed just now: check it and decide again")
            return old.model_copy(update={"canary": None, "shadow": None})

        _update(store, name, change)
        return f"{name}: {' and '.join(ended)} ended; {name}@{alias} is unchanged"
    now = registry.read_alias(home, name, alias)
    if now is None:
        registry.get(home, name)  # RegistryError for an unknown model
        raise RegistryError(f"{name}@{alias} is not set: nothing to roll back to")
    if now.previous is None:
        raise RegistryError(f"{name}@{alias} has always been version {now.version}: nothing to roll back to")
    registry.set_alias(home, name, alias, now.previous, expected=now.version, ungated=True)  # it answered before
    return f"{name}@{alias} is version {now.previous} again, before {now.version}"


def end_canary(store: Store, name: str, canary: Canary, reason: str) -> bool:
    """End a canary that passed a bound; True if this call ended it. Raises StoreError."""
    ours = False

    def change(old: TrafficPolicy) -> TrafficPolicy:
        nonlocal ours
        ours = old.canary is not None and old.canary.id == canary.id
        rolled_back = RolledBack(version=canary.version, was="canary", reason=reason, at=store.now())
        return old.model_copy(update={"canary": None, "rolled_back": rolled_back}) if ours else old

    _update(store, name, change)
    return ours


def undo_promotion(store: Store, name: str, watch: Watch, reason: str) -> bool:
    """Undo a promotion that passed a bound; True if this call moved the alias.

    The alias moves only from the watched version, so only once, however many processes call this. Each of them updates
    the policy, since the one that moved the alias may have died right after.
    """
    home, policy = registry.workspace_of(store, name), read(store, name)
    if policy is None or policy.watch is None or policy.watch.id != watch.id:
        return False
    try:
        registry.set_alias(home, name, policy.alias, watch.back_to, expected=watch.version, ungated=True)
        moved = True
    except ConflictError:
        moved = False

    def change(old: TrafficPolicy) -> TrafficPolicy:
        if old.watch is None or old.watch.id != watch.id:
            return old
        rolled_back = RolledBack(version=watch.version, was="promoted", reason=reason, at=store.now())
        return old.model_copy(update={"watch": None, "rolled_back": rolled_back})

    _update(store, name, change)
    return moved


def describe(policy: TrafficPolicy | None, name: str) -> list[str]:
    """A policy as lines of text; empty if the alias alone decides."""
    if policy is None:
        return []
    lines = []
    if (canary := policy.canary) is not None:
        lines.append(f"canary   {name}@{canary.version}, {canary.percent:g} % of {name}@{policy.alias}")
        lines.append(f"         stops if {_describe_bounds(canary.bounds)}")
    if policy.shadow is not None:
        lines.append(f"shadow   {name}@{policy.shadow}, copies of the requests to {name}@{policy.alias}")
    if (watch := policy.watch) is not None:
        until = watch.until.isoformat(timespec="seconds")
        lines.append(f"watched  {name}@{watch.version} until {until}, else back to {name}@{watch.back_to}")
        lines.append(f"         undone if {_describe_bounds(watch.bounds)}")
    if (gone := policy.rolled_back) is not None:
        at = gone.at.isoformat(timespec="seconds")
        lines.append(f"rolled back  {name}@{gone.version} ({gone.was}) at {at}: {gone.reason}")
    return lines


def _beside(store: Store, name: str, version: str, alias: str, what: str, *, ungated: bool) -> ModelVersion:
    """The version, if it can be served beside the one that the alias points at."""
    home = registry.workspace_of(store, name)
    found = registry.get(home, f"{name}@{version}")
    require_gated(found, f"get requests to {name}@{alias}", ungated=ungated)
    _require_adapter(home, found, what)
    _require_free_alias(read(store, name), name, alias)
    record = records.read(home, name)
    if record is None:
        raise ServingError(f"{name!r} is not deployed, so it receives no requests: kitae deploy {name}")
    base = records.base_of(home, record)
    if base is None or not base.runs_base(found.base_digest):
        raise ServingError(f"{name}@{found.version} was trained from another base than the one that runs: deploy it")
    if alias == CHAMPION and record.label not in (None, CHAMPION):
        raise ServingError(
            f"{name!r} was deployed as {name}@{record.label}, which its requests go to: kitae deploy {name} lets them "
            f"follow {name}@{CHAMPION}"
        )
    now = registry.read_alias(home, name, alias)
    if now is None:
        raise RegistryError(f"{name}@{alias} is not set: promote a version whole first (kitae promote {name} VERSION)")
    if now.version == found.version:
        raise RegistryError(f"{name}@{alias} is version {found.version} already: it receives all requests")
    return found


def _require_adapter(store: Workspace, version: ModelVersion, what: str) -> None:
    record = records.read(store, version.name)
    # A classifier's adapter is in its predictor.
    beside_others = version.kind == "adapter" and TASKS[version.task].generates
    if not beside_others or (record is not None and record.kind != "adapter"):
        raise ServingError(
            f"{what} an adapter on a shared engine, and {version.name}@{version.version} has an engine of its own: "
            "promote it whole, without a canary, shadow or bounds"
        )


def _require_free_alias(policy: TrafficPolicy | None, name: str, alias: str) -> None:
    if policy is not None and policy.alias != alias and (policy.canary or policy.shadow or policy.watch):
        raise ConflictError(
            f"{name}@{policy.alias} has a canary, a shadow or a watch, and a model has one alias with any: end it "
            f"first (kitae rollback {name} --alias {policy.alias}, or promote there)"
        )


def _update(store: Store, name: str, change: Callable[[TrafficPolicy], TrafficPolicy]) -> None:
    _POLICIES.update(store, name, lambda old: change(old or TrafficPolicy()))


def _describe_bounds(bounds: Bounds) -> str:
    slow = f" or its p95 is over {bounds.max_p95_s:g} s" if bounds.max_p95_s is not None else ""
    return f"more than {bounds.max_error_rate:.3g} of its requests fail{slow} (after {bounds.min_requests})"
