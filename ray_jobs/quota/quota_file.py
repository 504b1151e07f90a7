"""Quota files (`teams:`, `flavors:` and `queues:` of the chart's values) and `--set` settings, applied to a pool. Pure.

Owns the form and the checks of what a user proposes. Does not know Kubernetes objects nor any job.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ray_jobs.errors import KitaeError, SpecError, suggestion
from ray_jobs.kueue.pool import Pool, QuotaLimits, Reclaim, Strategy, TeamQuota, UnitKind, WithinQueue
from ray_jobs.quota import amounts
from ray_jobs.quota.amounts import Amount
from ray_jobs.spec import read_yaml

FIELDS = ("nominal", "borrow", "lend")
"""Fields of QuotaLimits."""
NO_LIMIT = "none"
"""Text of an absent `borrow` or `lend` limit."""


def _amount(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    try:
        return amounts.parse(value)
    except KitaeError as error:
        raise ValueError(str(error)) from error


QuotaAmount = Annotated[Amount, BeforeValidator(_amount), Field(ge=0)]


_CHART_DEFAULT = TeamQuota({}, within="LowerPriority", reclaim="Any")
"""The chart's default policy (`queues.preemption`)."""


class _ValuesSection(BaseModel):
    """A part of a values file. Fields that are not about quotas are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class _Preemption(_ValuesSection):
    within: WithinQueue | None = Field(None, alias="withinClusterQueue")
    reclaim: Reclaim | None = Field(None, alias="reclaimWithinCohort")


class _QueuePolicy(_ValuesSection):
    """Policy of every team's queue."""

    cohort: str | None = None
    strategy: Strategy | None = Field(None, alias="queueingStrategy")
    preemption: _Preemption = _Preemption()
    borrows: Literal["MayStopSearch", "TryNextFlavor"] | None = Field(None, alias="whenCanBorrow")


class _ResourceQuota(_ValuesSection):
    model_config = ConfigDict(extra="forbid")

    nominal: QuotaAmount | None = None
    borrow: QuotaAmount | None = Field(None, alias="borrowingLimit")
    lend: QuotaAmount | None = Field(None, alias="lendingLimit")


class _FlavorQuotas(_ValuesSection):
    """One team's quotas of one flavor."""

    model_config = ConfigDict(extra="forbid")

    cpu: _ResourceQuota | None = None
    memory: _ResourceQuota | None = None
    gpu: _ResourceQuota | None = None


class _TeamSection(_ValuesSection):
    quotas: dict[str, _FlavorQuotas] = {}


class _FlavorSection(_ValuesSection):
    resource: str | None = None
    price_per_hour: float | None = Field(None, ge=0, alias="pricePerHour")


class QuotaFile(_ValuesSection):
    """The quotas in the chart's values. What a proposal leaves out stays unchanged."""

    teams: dict[str, _TeamSection] = {}
    flavors: dict[str, _FlavorSection] = {}
    queues: _QueuePolicy = _QueuePolicy()


def load(path: Path) -> QuotaFile:
    """Read a quota file. SpecError lists every problem."""
    return parse(read_yaml(path, "quota file"), source=str(path))


def parse(document: Any, *, source: str) -> QuotaFile:
    """Validate a document. SpecError lists every problem."""
    if not isinstance(document, dict) or not isinstance(document.get("teams"), dict):
        raise SpecError(f"{source} has no mapping `teams:`; `kitae quota set TEAM … --values` prints one")
    try:
        return QuotaFile.model_validate(document)
    except ValidationError as error:
        details = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise SpecError(f"{source}: {len(details)} field(s) are wrong", details=details) from error


def pool_of(file: QuotaFile, *, source: str) -> Pool:
    """The pool of a quota file alone; every quota in it needs `nominal`."""
    return with_file(Pool({}, {}), file, source=source)


def with_file(pool: Pool, file: QuotaFile, *, source: str) -> Pool:
    """The pool with a proposal applied. SpecError lists every problem."""
    problems: list[str] = []
    teams = dict(pool.teams)
    kinds = {**pool.kinds, **{name: _kind(section.resource) for name, section in file.flavors.items()}}
    prices = {**pool.prices}
    prices.update({name: s.price_per_hour for name, s in file.flavors.items() if s.price_per_hour is not None})
    for name, section in file.teams.items():
        old = teams.get(name, _CHART_DEFAULT)
        limits = dict(old.limits)
        for flavor, resources in section.quotas.items():
            where = f"teams.{name}.quotas.{flavor}"
            if flavor not in kinds:
                kinds[flavor] = "gpu" if resources.gpu is not None else "cpu"
            quota = resources.gpu if kinds[flavor] == "gpu" else resources.cpu
            if quota is None:
                continue  # memory, or the cores beside GPUs: not the counted resource
            before = limits.get(flavor)
            if before is None and quota.nominal is None:
                problems.append(f"{where}: nominal is required for a new quota")
                continue
            given = quota.model_dump(exclude_unset=True)
            limits[flavor] = replace(before, **given) if before else QuotaLimits(**{"nominal": Amount(0), **given})
            problems += [f"{where}: {text}" for text in problems_of(limits[flavor])]
        teams[name] = replace(old, limits=limits)
    changes: dict[str, Any] = {
        "cohort": file.queues.cohort,
        "strategy": file.queues.strategy,
        "within": file.queues.preemption.within,
        "reclaim": file.queues.preemption.reclaim,
        "borrow_first": None if file.queues.borrows is None else file.queues.borrows == "MayStopSearch",
    }
    changes = {field: value for field, value in changes.items() if value is not None}
    teams = {name: replace(team, **changes) for name, team in teams.items()}
    if problems:
        raise SpecError(f"{source}: {len(problems)} quota(s) are wrong", details=problems)
    return replace(pool, teams=teams, kinds=kinds, prices=prices)


def with_settings(pool: Pool, settings: Iterable[str]) -> Pool:
    """The pool with each `team.flavor=N[,borrow=N][,lend=N]` applied. SpecError lists every problem."""
    problems: list[str] = []
    teams = dict(pool.teams)
    for setting in settings:
        place, equals, value = setting.partition("=")
        team, dot, flavor = place.rpartition(".")
        if not (equals and dot and team and flavor):
            problems.append(f"{setting!r} is not TEAM.FLAVOR=N[,borrow=N][,lend=N]")
            continue
        if team not in teams:
            problems.append(f"{setting!r}: no team {team!r}; {suggestion(team, teams)}")
            continue
        known = teams[team].limits
        if flavor not in pool.kinds:
            problems.append(f"{setting!r}: no flavor {flavor!r}; {suggestion(flavor, pool.kinds)}")
            continue
        try:
            changed = _with_parts(known.get(flavor, QuotaLimits(Amount(0))), value)
        except KitaeError as error:
            problems.append(f"{setting!r}: {error.message}")
            continue
        problems += [f"{setting!r}: {text}" for text in problems_of(changed)]
        teams[team] = replace(teams[team], limits={**known, flavor: changed})
    if problems:
        raise SpecError(f"{len(problems)} setting(s) are wrong", details=problems)
    return replace(pool, teams=teams)


def _with_parts(limits: QuotaLimits, value: str) -> QuotaLimits:
    for i, part in enumerate(value.split(",")):
        key, equals, number = part.partition("=") if i or "=" in part else ("nominal", "=", part)
        if key not in FIELDS or not equals:
            raise SpecError(f"{part!r} is none of N, borrow=N and lend=N")
        limits = with_field(limits, key, number)
    return limits


def with_field(limits: QuotaLimits, field: str, text: str) -> QuotaLimits:
    """The limits with one of FIELDS set to a text: an amount, or NO_LIMIT. SpecError if it is no quantity."""
    if field == "nominal":
        return replace(limits, nominal=amounts.parse(text))
    most = None if text == NO_LIMIT else amounts.parse(text)
    return replace(limits, borrow=most) if field == "borrow" else replace(limits, lend=most)


def problems_of(limits: QuotaLimits) -> list[str]:
    """Inconsistencies of the limits, each with its value and the bound."""
    found = [
        f"{name} is {amounts.text(value)}: it cannot be below 0"
        for name, value in (("nominal", limits.nominal), ("borrow", limits.borrow), ("lend", limits.lend))
        if value is not None and value < 0
    ]
    if limits.lend is not None and limits.lend > limits.nominal >= 0:
        found.append(
            f"lend is {amounts.text(limits.lend)}, more than nominal {amounts.text(limits.nominal)}: lower lend "
            "or raise nominal"
        )
    return found


def _kind(resource: str | None) -> UnitKind:
    return "cpu" if resource in (None, "cpu") else "gpu"
