"""Which version of a model gets which requests: promoting, canaries, shadows, and the way back.

Owns the policy document `traffic/{name}.json` and every change of it. What a name means without one is the alias's
(`registry`). Does not know requests: who counts them (`serving.inference.traffic`) says when a bound is passed.

Every change is one conditional write. A promotion moves the alias first and tidies the policy after it, so that a
process that dies in between has promoted.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ray_jobs import registry
from ray_jobs.deploy import records
from ray_jobs.errors import ConflictError, CorruptObject, ObjectNotFound, RegistryError, ServingError
from ray_jobs.registry import CHAMPION, ModelVersion
from ray_jobs.storage import Store
from ray_jobs.tasks import TASKS

PREFIX = "traffic/"
WATCH_S = 1800.0
"""How long a promotion with bounds is watched, if nothing else is said."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Bounds(_Document):
    """What a version must keep to while it is on trial; judged by each process that answers requests, on its own."""

    max_error_rate: float = Field(0.05, ge=0.0, le=1.0)
    """Highest share of requests answered 5xx."""
    max_p95_s: float | None = Field(None, gt=0.0)
    """Longest 95th percentile of the time to an answer, or to a stream's first piece. None: any."""
    min_requests: int = Field(20, ge=1, le=1000)
    """Nothing is judged by fewer."""


class Canary(_Document):
    """A version that gets a share of an alias's requests."""

    id: str
    """New for each canary, so that no process judges this one by what it saw of an earlier one."""
    version: str
    percent: float = Field(gt=0.0, le=100.0)
    """Of the requests to the alias."""
    bounds: Bounds = Bounds()


class Watch(_Document):
    """A version that was promoted whole and goes back if it passes a bound."""

    id: str
    version: str
    back_to: str
    """The version before it."""
    until: AwareDatetime
    bounds: Bounds = Bounds()


class RolledBack(_Document):
    """The last time a bound was passed."""

    version: str
    """The version that was taken away."""
    was: Literal["canary", "promoted"]
    reason: str
    at: AwareDatetime


class TrafficPolicy(_Document):
    """Who answers the requests to one alias of a model, besides the version it points at."""

    alias: str = CHAMPION
    """Whose requests these are; those to the bare name belong to the alias that answers for it."""
    canary: Canary | None = None
    shadow: str | None = None
    """A version that gets a copy of each request; its answers are dropped."""
    watch: Watch | None = None
    rolled_back: RolledBack | None = None


def choose(canary: Canary | None, draw: float) -> str | None:
    """The canary's version if it is to answer, None for the alias's own. `draw` is uniform over [0, 1). Pure."""
    return canary.version if canary is not None and draw * 100 < canary.percent else None


def read(store: Store, name: str) -> TrafficPolicy | None:
    """One model's policy; None where there never was one."""
    try:
        return _parsed(name, store.get_json(_key(name)))
    except ObjectNotFound:
        return None


def read_all(store: Store) -> dict[str, TrafficPolicy]:
    """Every model's policy by its name: one listing, and a read each."""
    return {name: _parsed(name, document) for name, document in store.documents(PREFIX).items()}


def promote(
    store: Store,
    name: str,
    version: str,
    *,
    alias: str = CHAMPION,
    bounds: Bounds | None = None,
    watch_s: float = WATCH_S,
) -> str:
    """Let a version answer all requests to the alias; ends a canary there. Returns what was done, in words.

    With `bounds` the alias goes back by itself if they are passed within `watch_s`; that is for adapters, whose former
    version is always at hand. ConflictError if somebody else moves the alias at the same time.
    """
    found = registry.get(store, f"{name}@{version}")
    if bounds is not None:
        _need_adapter(store, found, "bounds need")
    policy = read(store, name)
    _need_free_alias(policy, name, alias, changes_it=bounds is not None)
    before = registry.read_alias(store, name, alias)
    now_at = None if before is None else before.version
    back_to = before.previous if before is not None and now_at == found.version else now_at
    registry.set_alias(store, name, alias, found.version, expected=now_at)
    watch = None
    if bounds is not None and back_to is not None:
        until = datetime.now(UTC) + timedelta(seconds=watch_s)
        watch = Watch(id=_new_id(), version=found.version, back_to=back_to, until=until, bounds=bounds)

    def change(old: TrafficPolicy) -> TrafficPolicy:
        shadow = None if old.shadow == found.version else old.shadow
        return TrafficPolicy(alias=alias, shadow=shadow, watch=watch)

    if watch is not None or (policy is not None and policy.alias == alias):
        _update(store, name, change)
    done = f"{name}@{alias} is version {found.version}, before {now_at or 'unset'}"
    return done if watch is None else f"{done}; it goes back by itself if {_bounds_told(watch.bounds)}"


def start_canary(
    store: Store, name: str, version: str, *, percent: float, alias: str = CHAMPION, bounds: Bounds | None = None
) -> str:
    """Let a version answer a share of the alias's requests, until it is promoted, rolled back or passes a bound."""
    found = _beside(store, name, version, alias, "a canary needs")
    canary = Canary(id=_new_id(), version=found.version, percent=percent, bounds=bounds or Bounds())

    def change(old: TrafficPolicy) -> TrafficPolicy:
        shadow = None if old.shadow == found.version else old.shadow
        return old.model_copy(update={"alias": alias, "canary": canary, "shadow": shadow, "rolled_back": None})

    _update(store, name, change)
    what = f"{name}@{found.version} answers {percent:g} % of the requests to {name}@{alias}"
    return f"{what}; it stops by itself if {_bounds_told(canary.bounds)}"


def start_shadow(store: Store, name: str, version: str, *, alias: str = CHAMPION) -> str:
    """Let a version get a copy of the alias's requests."""
    found = _beside(store, name, version, alias, "a shadow needs")

    def change(old: TrafficPolicy) -> TrafficPolicy:
        canary = None if old.canary is not None and old.canary.version == found.version else old.canary
        return old.model_copy(update={"alias": alias, "canary": canary, "shadow": found.version})

    _update(store, name, change)
    return f"{name}@{found.version} gets a copy of the requests to {name}@{alias}; nobody sees its answers"


def roll_back(store: Store, name: str, *, alias: str = CHAMPION) -> str:
    """End the canary and the shadow if there are any, else let the alias point where it did before.

    Returns what was done, in words. RegistryError where there is nothing to go back to. Rolled back twice, an alias is
    where it was.
    """
    policy = read(store, name)
    if policy is not None and policy.alias == alias and (policy.canary or policy.shadow):
        ended = [f"canary {policy.canary.version}"] if policy.canary else []
        ended += [f"shadow {policy.shadow}"] if policy.shadow else []

        def change(old: TrafficPolicy) -> TrafficPolicy:
            if (old.alias, old.canary, old.shadow) != (policy.alias, policy.canary, policy.shadow):
                raise ConflictError(f"the traffic of {name} was changed just now: look at it and decide anew")
            return old.model_copy(update={"canary": None, "shadow": None})

        _update(store, name, change)
        return f"{name}: {' and '.join(ended)} ended; {name}@{alias} stays where it is"
    now = registry.read_alias(store, name, alias)
    if now is None:
        registry.get(store, name)  # RegistryError for an unknown model
        raise RegistryError(f"{name}@{alias} is not set, so there is nothing to go back to")
    if now.previous is None:
        raise RegistryError(f"{name}@{alias} was version {now.version} from the first: there is nothing to go back to")
    registry.set_alias(store, name, alias, now.previous, expected=now.version)
    return f"{name}@{alias} is version {now.previous} again, before {now.version}"


def end_canary(store: Store, name: str, canary: Canary, reason: str) -> bool:
    """Take a canary off because it passed a bound; whether it was this call that did. StoreError if nobody could."""
    ours = False

    def change(old: TrafficPolicy) -> TrafficPolicy:
        nonlocal ours
        ours = old.canary is not None and old.canary.id == canary.id
        rolled_back = RolledBack(version=canary.version, was="canary", reason=reason, at=datetime.now(UTC))
        return old.model_copy(update={"canary": None, "rolled_back": rolled_back}) if ours else old

    _update(store, name, change)
    return ours


def undo_promotion(store: Store, name: str, watch: Watch, reason: str) -> bool:
    """Take a promotion back because it passed a bound; whether it was this call that moved the alias.

    The alias moves only from the watched version, so it does so once, however many processes find the same. The
    policy is tidied by each of them: the one that moved the alias may have died right after.
    """
    policy = read(store, name)
    if policy is None or policy.watch is None or policy.watch.id != watch.id:
        return False
    try:
        registry.set_alias(store, name, policy.alias, watch.back_to, expected=watch.version)
        moved = True
    except ConflictError:
        moved = False

    def change(old: TrafficPolicy) -> TrafficPolicy:
        if old.watch is None or old.watch.id != watch.id:
            return old
        rolled_back = RolledBack(version=watch.version, was="promoted", reason=reason, at=datetime.now(UTC))
        return old.model_copy(update={"watch": None, "rolled_back": rolled_back})

    _update(store, name, change)
    return moved


def told(policy: TrafficPolicy | None, name: str) -> list[str]:
    """A policy in words, a line each; none where the alias alone decides."""
    if policy is None:
        return []
    lines = []
    if (canary := policy.canary) is not None:
        lines.append(f"canary   {name}@{canary.version}, {canary.percent:g} % of {name}@{policy.alias}")
        lines.append(f"         stops if {_bounds_told(canary.bounds)}")
    if policy.shadow is not None:
        lines.append(f"shadow   {name}@{policy.shadow}, copies of the requests to {name}@{policy.alias}")
    if (watch := policy.watch) is not None:
        until = watch.until.isoformat(timespec="seconds")
        lines.append(f"watched  {name}@{watch.version} until {until}, else back to {name}@{watch.back_to}")
        lines.append(f"         goes back if {_bounds_told(watch.bounds)}")
    if (gone := policy.rolled_back) is not None:
        at = gone.at.isoformat(timespec="seconds")
        lines.append(f"rolled back  {name}@{gone.version} ({gone.was}) at {at}: {gone.reason}")
    return lines


def _beside(store: Store, name: str, version: str, alias: str, what: str) -> ModelVersion:
    """The version, if it can answer beside the one the alias points at."""
    found = registry.get(store, f"{name}@{version}")
    _need_adapter(store, found, what)
    _need_free_alias(read(store, name), name, alias, changes_it=True)
    record = records.read(store, name)
    if record is None:
        raise ServingError(f"{name!r} is not deployed, so it gets no requests: kitae deploy {name}")
    base = records.read(store, record.base or "")
    if base is None or base.key != f"bases/{found.base_digest}":
        raise ServingError(f"{name}@{found.version} was trained from another base than the one that runs: deploy it")
    if alias == CHAMPION and record.label not in (None, CHAMPION):
        raise ServingError(
            f"{name!r} was deployed as {name}@{record.label}, which its requests go to: kitae deploy {name} lets them "
            f"follow {name}@{CHAMPION}"
        )
    now = registry.read_alias(store, name, alias)
    if now is None:
        raise RegistryError(f"{name}@{alias} is not set: promote a version whole first (kitae promote {name} VERSION)")
    if now.version == found.version:
        raise RegistryError(f"{name}@{alias} is version {found.version} already: it gets all of the requests")
    return found


def _need_adapter(store: Store, version: ModelVersion, what: str) -> None:
    record = records.read(store, version.name)
    beside_others = (
        version.kind == "adapter" and TASKS[version.task].generates
    )  # a classifier's adapter is in its predictor
    if not beside_others or (record is not None and record.kind != "adapter"):
        raise ServingError(
            f"{what} an adapter on a shared engine, and {version.name}@{version.version} has an engine of its own: "
            "promote it whole, without a canary, shadow or bounds"
        )


def _need_free_alias(policy: TrafficPolicy | None, name: str, alias: str, *, changes_it: bool) -> None:
    if changes_it and policy is not None and policy.alias != alias and (policy.canary or policy.shadow or policy.watch):
        raise ConflictError(
            f"{name}@{policy.alias} has a canary, a shadow or a watch, and a model has one alias with any: end it "
            f"first (kitae rollback {name} --alias {policy.alias}, or promote there)"
        )


def _update(store: Store, name: str, change: Callable[[TrafficPolicy], TrafficPolicy]) -> TrafficPolicy:
    def documents(old: dict[str, Any] | None) -> dict[str, Any]:
        return change(TrafficPolicy() if old is None else _parsed(name, old)).model_dump(mode="json")

    return _parsed(name, store.update_json(_key(name), documents))


def _bounds_told(bounds: Bounds) -> str:
    slow = f" or its p95 is over {bounds.max_p95_s:g} s" if bounds.max_p95_s is not None else ""
    return f"more than {bounds.max_error_rate:.3g} of its requests fail{slow} (after {bounds.min_requests})"


def _parsed(name: str, document: Any) -> TrafficPolicy:
    try:
        return TrafficPolicy.model_validate(document)
    except ValidationError as error:
        raise CorruptObject(f"{_key(name)} is not a traffic policy: {error}") from error


def _new_id() -> str:
    return uuid.uuid4().hex


def _key(name: str) -> str:
    return f"{PREFIX}{name}.json"
