"""Quotas of teams: nominal quota, limits and the policy of each team's queue; usage of a resource in a cohort. Pure.

One resource of a flavor is counted: GPUs where it has them, else CPU cores. Knows no Kubernetes objects (`queues`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

Strategy = Literal["BestEffortFIFO", "StrictFIFO"]
WithinQueue = Literal["Never", "LowerPriority", "LowerOrNewerEqualPriority"]
Reclaim = Literal["Never", "LowerPriority", "Any"]
UnitKind = Literal["gpu", "cpu"]
"""The unit in which work and flavors are counted."""

SCALE = 1000
_UNLIMITED = 10**30
"""Above every quantity, bytes of memory included."""


@dataclass(frozen=True)
class QuotaLimits:
    """One team's quota of one flavor, in GPUs or cores."""

    nominal: Decimal
    borrow: Decimal | None = None
    """Upper limit of usage beyond `nominal`. None: whatever others lend."""
    lend: Decimal | None = None
    """Part of `nominal` that others may use. None: all of it."""

    @property
    def lendable(self) -> Decimal:
        """Part of the nominal quota that others may use."""
        return self.nominal if self.lend is None else min(self.lend, self.nominal)


@dataclass(frozen=True)
class TeamQuota:
    """A team's quotas and the policy of its queue."""

    limits: Mapping[str, QuotaLimits]
    """By flavor, in the order in which Kueue tries them."""
    cohort: str | None = "kitae"
    """By default, that of the chart's queues."""
    strategy: Strategy = "BestEffortFIFO"
    within: WithinQueue = "Never"
    """`preemption.withinClusterQueue`: which jobs of its own team a job may preempt."""
    reclaim: Reclaim = "Never"
    """`preemption.reclaimWithinCohort`: which borrowing jobs a job may preempt to get the team's nominal quota."""
    borrow_first: bool = True
    """A job borrows in the first flavor that has room, instead of trying the next flavor."""
    preempt_first: bool = False
    """A job preempts in the first flavor where it can, instead of trying the next flavor."""


@dataclass(frozen=True)
class Pool:
    """The teams and the flavors they share."""

    teams: Mapping[str, TeamQuota]
    kinds: Mapping[str, UnitKind]
    """By flavor."""
    prices: Mapping[str, float] = field(default_factory=dict)
    """Price of one GPU hour or core hour, by flavor. A missing price counts as 0."""
    shared: Mapping[tuple[str, str], Decimal] = field(default_factory=dict)
    """A cohort's own quota, by (cohort, flavor): every team in the cohort may borrow from it."""

    def nominal(self, flavor: str) -> Decimal:
        """Sum over all teams and cohorts."""
        own = sum((team.limits[flavor].nominal for team in self.teams.values() if flavor in team.limits), Decimal(0))
        return own + sum((amount for (_, name), amount in self.shared.items() if name == flavor), Decimal(0))

    def flavors_of(self, team: str, kind: UnitKind) -> list[str]:
        """The team's flavors that are counted in this unit."""
        return [flavor for flavor in self.teams[team].limits if self.kinds.get(flavor, "gpu") == kind]

    def price(self, flavor: str) -> float:
        """Price of one GPU hour or core hour."""
        return self.prices.get(flavor, 0.0)


class CohortUsage:
    """Usage and quota of one resource, by team; Kueue's arithmetic of a flat cohort.

    Follows `available` and `potentialAvailable` in Kueue's pkg/cache/scheduler/resource_node.go, with one cohort above
    the queues. Amounts are whole thousandths, for speed: the simulation calls this millions of times.
    """

    def __init__(self, limits: Mapping[str, QuotaLimits], *, in_cohort: bool, shared: Decimal = Decimal(0)) -> None:
        """No usage yet. `limits`: by team. `shared`: the cohort's own quota."""
        self.nominal = {team: thousandths(own.nominal) for team, own in limits.items()}
        self.guaranteed = {team: self.nominal[team] - thousandths(own.lendable) for team, own in limits.items()}
        """Part of the nominal quota that a team does not lend."""
        most = _UNLIMITED if in_cohort else 0
        self.borrow = {
            team: most if own.borrow is None else min(most, thousandths(own.borrow)) for team, own in limits.items()
        }
        """Borrowing limit."""
        self.lendable = sum(self.nominal[team] - self.guaranteed[team] for team in limits) + thousandths(shared)
        """Quota of the cohort: what all teams lend, and the cohort's own."""
        self.used = dict.fromkeys(limits, 0)
        self.lent = 0
        """Usage of `lendable`."""

    def add(self, team: str, units: int) -> None:
        """Change a team's usage by `units`."""
        guaranteed, used = self.guaranteed[team], self.used[team]
        before = used - guaranteed if used > guaranteed else 0
        used += units
        self.used[team] = used
        self.lent += (used - guaranteed if used > guaranteed else 0) - before

    def available(self, team: str) -> int:
        """Amount that the team can use now, own and borrowed. Negative where the quota is exceeded."""
        guaranteed, used = self.guaranteed[team], self.used[team]
        from_cohort = self.lendable - self.lent
        limit = self.nominal[team] - max(guaranteed, used) + self.borrow[team]
        return max(0, guaranteed - used) + min(from_cohort, limit)

    def most(self, team: str) -> int:
        """Amount that the team can use while all others are idle."""
        return min(self.guaranteed[team] + self.lendable, self.nominal[team] + self.borrow[team])


def thousandths(amount: Decimal | float) -> int:
    """An amount in whole thousandths."""
    return round(amount * SCALE)
