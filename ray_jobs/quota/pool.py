"""What teams may use: nominal quotas, borrowing and lending limits, in a cohort. Pure.

Owns the form of a quota file (`teams:`, `flavors:` and `queues:` of the chart's values) and how much of a flavour a
team can get at all. Does not know Kubernetes objects (`queues`) nor any job.

One resource of a flavour is counted: GPUs where it has them, else CPU cores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ray_jobs.errors import KitaeError, SpecError, suggestion
from ray_jobs.quota import amounts
from ray_jobs.quota.amounts import Amount
from ray_jobs.spec import read_yaml

Strategy = Literal["BestEffortFIFO", "StrictFIFO"]
Within = Literal["Never", "LowerPriority", "LowerOrNewerEqualPriority"]
Reclaim = Literal["Never", "LowerPriority", "Any"]
Kind = Literal["gpu", "cpu"]
"""Of work, and of the flavours it can run on."""

COHORT = "kitae"
FIELDS = ("nominal", "borrow", "lend")
"""Of Limits."""
NONE = "none"
"""For `borrow` and `lend`: no limit."""


@dataclass(frozen=True)
class Limits:
    """Of one team in one flavour, in GPUs or cores."""

    nominal: Amount
    borrow: Amount | None = None
    """Most it may use beyond `nominal`. None: whatever others lend."""
    lend: Amount | None = None
    """Most of `nominal` that others may use. None: all of it."""


@dataclass(frozen=True)
class Team:
    """A team's queue."""

    limits: Mapping[str, Limits]
    """By flavour, in the order in which Kueue tries them."""
    cohort: str | None = COHORT
    strategy: Strategy = "BestEffortFIFO"
    within: Within = "Never"
    """Whom of its own a job may preempt."""
    reclaim: Reclaim = "Never"
    """Whom of those that borrow in the cohort a job may preempt, to have the team's nominal quota."""
    borrow_first: bool = True
    """Whether a job borrows in the first flavour that has room, rather than look for room in the next."""
    preempt_first: bool = False
    """The same of preempting."""


@dataclass(frozen=True)
class Pool:
    """The teams, and the flavours they share."""

    teams: Mapping[str, Team]
    kinds: Mapping[str, Kind]
    """By flavour."""
    prices: Mapping[str, float] = field(default_factory=dict)
    """Of an hour of one GPU or core, by flavour. One that is missing costs nothing."""
    shared: Mapping[tuple[str, str], Amount] = field(default_factory=dict)
    """A cohort's own quota, by (cohort, flavour): every team in it may borrow from it."""

    def most(self, team: str, flavor: str) -> Amount:
        """What a team could use of a flavour with everybody else idle."""
        own = self.teams[team]
        limits = own.limits[flavor]
        if own.cohort is None:
            return limits.nominal
        others = sum(
            (
                lendable(other.limits[flavor])
                for name, other in self.teams.items()
                if name != team and other.cohort == own.cohort and flavor in other.limits
            ),
            self.shared.get((own.cohort, flavor), Amount(0)),
        )
        return limits.nominal + (others if limits.borrow is None else min(limits.borrow, others))

    def nominal(self, flavor: str) -> Amount:
        """Over all teams and cohorts."""
        own = sum((team.limits[flavor].nominal for team in self.teams.values() if flavor in team.limits), Amount(0))
        return own + sum((amount for (_, name), amount in self.shared.items() if name == flavor), Amount(0))

    def flavors_of(self, team: str, kind: Kind) -> list[str]:
        return [flavor for flavor in self.teams[team].limits if self.kinds.get(flavor, "gpu") == kind]

    def price(self, flavor: str) -> float:
        return self.prices.get(flavor, 0.0)


def lendable(limits: Limits) -> Amount:
    """What others may have of it."""
    return limits.nominal if limits.lend is None else min(limits.lend, limits.nominal)


# ---- files


def _amount(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    try:
        return amounts.parse(value)
    except KitaeError as error:
        raise ValueError(str(error)) from error


Quantity = Annotated[Amount, BeforeValidator(_amount), Field(ge=0)]


_AS_THE_CHART = Team({}, within="LowerPriority", reclaim="Any")
"""What the chart gives a queue where its values do not say otherwise (`queues.preemption`)."""


class _Section(BaseModel):
    """Of a values file that says more than quotas: what it says besides is not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class _Preemption(_Section):
    within: Within | None = Field(None, alias="withinClusterQueue")
    reclaim: Reclaim | None = Field(None, alias="reclaimWithinCohort")


class _Queues(_Section):
    """Of all teams alike."""

    cohort: str | None = None
    strategy: Strategy | None = Field(None, alias="queueingStrategy")
    preemption: _Preemption = _Preemption()
    borrows: Literal["MayStopSearch", "TryNextFlavor"] | None = Field(None, alias="whenCanBorrow")


class _Quota(_Section):
    model_config = ConfigDict(extra="forbid")

    nominal: Quantity | None = None
    borrow: Quantity | None = Field(None, alias="borrowingLimit")
    lend: Quantity | None = Field(None, alias="lendingLimit")


class _Quotas(_Section):
    """Of one team in one flavour."""

    model_config = ConfigDict(extra="forbid")

    cpu: _Quota | None = None
    memory: _Quota | None = None
    gpu: _Quota | None = None


class _TeamSection(_Section):
    quotas: dict[str, _Quotas] = {}


class _FlavorSection(_Section):
    resource: str | None = None
    price_per_hour: float | None = Field(None, ge=0, alias="pricePerHour")


class QuotaFile(_Section):
    """The chart's values, as far as quotas go; what a proposal leaves out stays as it is."""

    teams: dict[str, _TeamSection] = {}
    flavors: dict[str, _FlavorSection] = {}
    queues: _Queues = _Queues()


def load(path: Path) -> QuotaFile:
    """Read a quota file. SpecError naming everything that is wrong with it."""
    return parse(read_yaml(path, "quota file"), source=str(path))


def parse(document: Any, *, source: str) -> QuotaFile:
    """As `load`, of a document."""
    if not isinstance(document, dict) or not isinstance(document.get("teams"), dict):
        raise SpecError(f"{source} has no mapping `teams:`; `kitae quota set TEAM … --values` prints one")
    try:
        return QuotaFile.model_validate(document)
    except ValidationError as error:
        details = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise SpecError(f"{source}: {len(details)} field(s) are wrong", details=details) from error


def pool_of(file: QuotaFile, *, source: str) -> Pool:
    """A quota file by itself, in which every quota says its nominal."""
    return with_file(Pool({}, {}), file, source=source)


def with_file(pool: Pool, file: QuotaFile, *, source: str) -> Pool:
    """What a pool would be with a proposal. SpecError naming everything that cannot be."""
    problems: list[str] = []
    teams = dict(pool.teams)
    kinds = {**pool.kinds, **{name: _kind(section.resource) for name, section in file.flavors.items()}}
    prices = {**pool.prices}
    prices.update({name: s.price_per_hour for name, s in file.flavors.items() if s.price_per_hour is not None})
    for name, section in file.teams.items():
        old = teams.get(name, _AS_THE_CHART)
        limits = dict(old.limits)
        for flavor, resources in section.quotas.items():
            where = f"teams.{name}.quotas.{flavor}"
            if flavor not in kinds:
                kinds[flavor] = "gpu" if resources.gpu is not None else "cpu"
            quota = resources.gpu if kinds[flavor] == "gpu" else resources.cpu
            if quota is None:
                continue  # memory, or the cores that go with GPUs: not what is counted
            before = limits.get(flavor)
            if before is None and quota.nominal is None:
                problems.append(f"{where}: nominal is required of a quota that is new")
                continue
            given = quota.model_dump(exclude_unset=True)
            limits[flavor] = replace(before, **given) if before else Limits(**{"nominal": Amount(0), **given})
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
        raise SpecError(f"{source}: {len(problems)} quota(s) cannot be", details=problems)
    return replace(pool, teams=teams, kinds=kinds, prices=prices)


def with_settings(pool: Pool, settings: Iterable[str]) -> Pool:
    """What a pool would be with `team.flavor=N[,borrow=N][,lend=N]` each. SpecError naming everything wrong."""
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
            problems.append(f"{setting!r}: no flavour {flavor!r}; {suggestion(flavor, pool.kinds)}")
            continue
        try:
            changed = _with_parts(known.get(flavor, Limits(Amount(0))), value)
        except KitaeError as error:
            problems.append(f"{setting!r}: {error.message}")
            continue
        problems += [f"{setting!r}: {text}" for text in problems_of(changed)]
        teams[team] = replace(teams[team], limits={**known, flavor: changed})
    if problems:
        raise SpecError(f"{len(problems)} setting(s) are wrong", details=problems)
    return replace(pool, teams=teams)


def _with_parts(limits: Limits, value: str) -> Limits:
    for i, part in enumerate(value.split(",")):
        key, equals, number = part.partition("=") if i or "=" in part else ("nominal", "=", part)
        if key not in FIELDS or not equals:
            raise SpecError(f"{part!r} is none of N, borrow=N and lend=N")
        limits = with_field(limits, key, number)
    return limits


def with_field(limits: Limits, field: str, text: str) -> Limits:
    """The limits with one of FIELDS as it is written on the command line: an amount, or NONE where there may be none.
    SpecError for what is no quantity."""
    if field == "nominal":
        return replace(limits, nominal=amounts.parse(text))
    most = None if text == NONE else amounts.parse(text)
    return replace(limits, borrow=most) if field == "borrow" else replace(limits, lend=most)


def problems_of(limits: Limits) -> list[str]:
    """What cannot be of it, each with its value and the limit."""
    found = [
        f"{name} is {amounts.text(value)}: it cannot be below 0"
        for name, value in (("nominal", limits.nominal), ("borrow", limits.borrow), ("lend", limits.lend))
        if value is not None and value < 0
    ]
    if limits.lend is not None and limits.lend > limits.nominal >= 0:
        found.append(
            f"lend is {amounts.text(limits.lend)}, more than nominal {amounts.text(limits.nominal)}: lower the first "
            "or raise the second"
        )
    return found


def _kind(resource: str | None) -> Kind:
    return "cpu" if resource in (None, "cpu") else "gpu"
