"""Quotas of teams: nominal quota, borrowing and lending limits, and the policy of each team's queue. Pure.

One resource of a flavor is counted: GPUs where it has them, else CPU cores. Does not know Kubernetes objects (`queues`)
nor usage (`cohort_usage`).
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

DEFAULT_COHORT = "kitae"
"""Cohort of the chart's queues."""


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
    cohort: str | None = DEFAULT_COHORT
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
