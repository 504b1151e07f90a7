"""Usage and availability of one resource by team: Kueue's arithmetic of a flat cohort. Pure.

Follows `available` and `potentialAvailable` in Kueue's pkg/cache/scheduler/resource_node.go, with one cohort above the
queues. Amounts are whole thousandths, for speed: the simulation calls this millions of times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from ray_jobs.kueue.pool import QuotaLimits

SCALE = 1000
_UNLIMITED = 10**30
"""Above every quantity, bytes of memory included."""


@dataclass(slots=True)
class CohortUsage:
    """Usage and quota of one resource, by team; in thousandths."""

    nominal: dict[str, int]
    guaranteed: dict[str, int]
    """Part of the nominal quota that a team does not lend."""
    borrow: dict[str, int]
    """Borrowing limit."""
    lendable: int
    """Quota of the cohort: what all teams lend, and the cohort's own."""
    used: dict[str, int]
    lent: int = 0
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


def usage_of(limits: Mapping[str, QuotaLimits], *, in_cohort: bool, shared: Decimal = Decimal(0)) -> CohortUsage:
    """No usage yet. `limits`: by team. `shared`: the cohort's own quota."""
    nominal = {team: thousandths(own.nominal) for team, own in limits.items()}
    guaranteed = {team: nominal[team] - thousandths(own.lendable) for team, own in limits.items()}
    return CohortUsage(
        nominal=nominal,
        guaranteed=guaranteed,
        borrow={team: _borrowing_limit(own) if in_cohort else 0 for team, own in limits.items()},
        lendable=sum(nominal[team] - guaranteed[team] for team in limits) + thousandths(shared),
        used=dict.fromkeys(limits, 0),
    )


def _borrowing_limit(limits: QuotaLimits) -> int:
    return _UNLIMITED if limits.borrow is None else thousandths(limits.borrow)


def thousandths(amount: Decimal | float) -> int:
    """An amount in whole thousandths."""
    return round(amount * SCALE)
