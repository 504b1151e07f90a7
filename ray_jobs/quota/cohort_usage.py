"""How much of a flavour each team uses and could still have: Kueue's arithmetic of one flat cohort. Pure.

Knows no jobs and no queues. Amounts are counted in thousandths, as whole numbers, for speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_jobs.quota.pool import Limits, Pool, Team

SCALE = 1000
_UNLIMITED = 10**15


@dataclass(slots=True)
class Book:
    """Usage and quota of one flavour, in the group. In thousandths."""

    nominal: dict[str, int]
    kept: dict[str, int]
    """What a team does not lend."""
    borrow: dict[str, int]
    shared: int
    """What can be borrowed in all."""
    used: dict[str, int]
    lent: int = 0
    """What is used of `shared`."""

    def add(self, team: str, units: int) -> None:
        kept, used = self.kept[team], self.used[team]
        before = used - kept if used > kept else 0
        used += units
        self.used[team] = used
        self.lent += (used - kept if used > kept else 0) - before

    def available(self, team: str) -> int:
        """Of Kueue's `available` (pkg/cache/scheduler/resource_node.go), with one cohort above the queues."""
        kept, used = self.kept[team], self.used[team]
        from_cohort = self.shared - self.lent
        limit = self.nominal[team] - max(kept, used) + self.borrow[team]
        return max(0, kept - used) + min(from_cohort, limit)

    def most(self, team: str) -> int:
        """With everybody else idle."""
        return min(self.kept[team] + self.shared, self.nominal[team] + self.borrow[team])


def book_of(pool: Pool, flavor: str, teams: Mapping[str, Team]) -> Book:
    limits = {name: team.limits[flavor] for name, team in teams.items() if flavor in team.limits}
    cohorts = {team.cohort for team in teams.values()}
    (cohort,) = cohorts  # a group is one cohort, or a team without
    nominal = {name: whole(own.nominal) for name, own in limits.items()}
    kept = {name: 0 if own.lend is None else max(0, nominal[name] - whole(own.lend)) for name, own in limits.items()}
    extra = pool.shared.get((cohort, flavor), 0) if cohort is not None else 0
    return Book(
        nominal=nominal,
        kept=kept,
        borrow={name: _borrowable(own, cohort) for name, own in limits.items()},
        shared=sum(nominal[name] - kept[name] for name in limits) + whole(extra),
        used=dict.fromkeys(limits, 0),
    )


def _borrowable(limits: Limits, cohort: str | None) -> int:
    if cohort is None:
        return 0
    return _UNLIMITED if limits.borrow is None else whole(limits.borrow)


def whole(amount: object) -> int:
    return round(float(amount) * SCALE)  # type: ignore[arg-type]  # Decimal, float and int alike
