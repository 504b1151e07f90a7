"""Quota files (`teams:`, `flavors:` and `queues:` of the chart's values) and `--set` settings, applied to a pool. Pure.

Owns the form and the checks of what a user proposes. Does not know Kubernetes objects nor any job.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ray_jobs.cluster.quantities import parse, text
from ray_jobs.errors import SpecError, suggestion
from ray_jobs.kueue.pool import Pool, QuotaLimits, Reclaim, Strategy, TeamQuota, UnitKind, WithinQueue
from ray_jobs.spec import problems as invalid
from ray_jobs.spec import read_yaml

NO_LIMIT = "none"
"""Text of an absent `borrow` or `lend` limit."""
_CHART_DEFAULT = TeamQuota({}, within="LowerPriority", reclaim="Any")
"""The chart's default policy (`queues.preemption`)."""

QuotaAmount = Annotated[Decimal, BeforeValidator(parse), Field(ge=0)]


class _ValuesSection(BaseModel):
    """A part of a values file. Fields that are not about quotas are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Preemption(_ValuesSection):
    within: WithinQueue | None = Field(None, alias="withinClusterQueue")
    reclaim: Reclaim | None = Field(None, alias="reclaimWithinCohort")


class _QueuePolicy(_ValuesSection):
    """Policy of every team's queue."""

    cohort: str | None = None
    strategy: Strategy | None = Field(None, alias="queueingStrategy")
    preemption: _Preemption = _Preemption()
    borrows: Literal["MayStopSearch", "TryNextFlavor"] | None = Field(None, alias="whenCanBorrow")


class _ResourceQuota(_ValuesSection, extra="forbid"):
    nominal: QuotaAmount | None = None
    borrow: QuotaAmount | None = Field(None, alias="borrowingLimit")
    lend: QuotaAmount | None = Field(None, alias="lendingLimit")


class _FlavorQuotas(_ValuesSection, extra="forbid"):
    """One team's quotas of one flavor."""

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
    document = read_yaml(path, "quota file")
    if not isinstance(document, dict) or not isinstance(document.get("teams"), dict):
        raise SpecError(f"{path} has no mapping `teams:`; `kitae quota set TEAM … --values` prints one")
    try:
        return QuotaFile.model_validate(document)
    except ValidationError as error:
        details = [f"{where}: {message}" for where, message in invalid.problems(error.errors(), document)]
        raise SpecError(f"{path}: {len(details)} field(s) are wrong", details=details) from error


def pool_of(file: QuotaFile, *, source: str) -> Pool:
    """The pool of a quota file alone; every quota in it needs `nominal`."""
    return with_file(Pool({}, {}), file, source=source)


def with_file(pool: Pool, file: QuotaFile, *, source: str) -> Pool:
    """The pool with a proposal applied. SpecError lists every problem."""
    problems: list[str] = []
    teams = dict(pool.teams)
    kinds: dict[str, UnitKind] = dict(pool.kinds)
    prices = dict(pool.prices)
    for name, section in file.flavors.items():
        kinds[name] = "cpu" if section.resource in (None, "cpu") else "gpu"
        if section.price_per_hour is not None:
            prices[name] = section.price_per_hour
    policy = file.queues.model_dump(exclude_none=True)
    policy |= policy.pop("preemption")
    if "borrows" in policy:
        policy["borrow_first"] = policy.pop("borrows") == "MayStopSearch"
    for name, team in file.teams.items():
        old = teams.get(name, _CHART_DEFAULT)
        limits = dict(old.limits)
        for flavor, resources in team.quotas.items():
            where = f"teams.{name}.quotas.{flavor}"
            kind = kinds.setdefault(flavor, "cpu" if resources.gpu is None else "gpu")
            quota = resources.gpu if kind == "gpu" else resources.cpu
            if quota is None:
                continue  # memory, or the cores beside GPUs: not the counted resource
            before = limits.get(flavor)
            if before is None and quota.nominal is None:
                problems.append(f"{where}: nominal is required for a new quota")
                continue
            given = quota.model_dump(exclude_unset=True)
            limits[flavor] = replace(before or QuotaLimits(Decimal(0)), **given)
            problems += [f"{where}: {problem}" for problem in problems_of(limits[flavor])]
        teams[name] = replace(old, limits=limits)
    teams = {name: replace(quotas, **policy) for name, quotas in teams.items()}
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
        if flavor not in pool.kinds:
            problems.append(f"{setting!r}: no flavor {flavor!r}; {suggestion(flavor, pool.kinds)}")
            continue
        try:
            changed = _with_parts(teams[team].limits.get(flavor, QuotaLimits(Decimal(0))), value)
        except ValueError as error:
            problems.append(f"{setting!r}: {error}")
            continue
        problems += [f"{setting!r}: {problem}" for problem in problems_of(changed)]
        teams[team] = replace(teams[team], limits={**teams[team].limits, flavor: changed})
    if problems:
        raise SpecError(f"{len(problems)} setting(s) are wrong", details=problems)
    return replace(pool, teams=teams)


def _with_parts(limits: QuotaLimits, value: str) -> QuotaLimits:
    for i, part in enumerate(value.split(",")):
        key, equals, number = part.partition("=") if i or "=" in part else ("nominal", "=", part)
        if key not in ("nominal", "borrow", "lend") or not equals:
            raise ValueError(f"{part!r} is none of N, borrow=N and lend=N")
        limits = with_field(limits, key, number)
    return limits


def with_field(limits: QuotaLimits, field: str, value: str) -> QuotaLimits:
    """The limits with one field set to an amount or to NO_LIMIT. ValueError if the text is no quantity."""
    if field == "nominal":
        return replace(limits, nominal=parse(value))
    most = None if value == NO_LIMIT else parse(value)
    return replace(limits, borrow=most) if field == "borrow" else replace(limits, lend=most)


def problems_of(limits: QuotaLimits) -> list[str]:
    """Inconsistencies of the limits, each with its value and the bound."""
    found = [
        f"{name} is {text(value)}: it cannot be below 0"
        for name, value in asdict(limits).items()
        if value is not None and value < 0
    ]
    if limits.lend is not None and limits.lend > limits.nominal >= 0:
        found.append(
            f"lend is {text(limits.lend)}, more than nominal {text(limits.nominal)}: lower lend or raise nominal"
        )
    return found
