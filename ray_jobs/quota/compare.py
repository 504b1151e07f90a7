"""A trace of jobs in quotas as they are and as they are proposed: who waits how long, and what it costs. Pure.

before, after = compare(present, proposed, works)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ray_jobs.quota.pool import Pool
from ray_jobs.quota.simulate import RESTART_S, Outcome, Work, simulate

HOUR_S = 3600.0
ALL = "all teams"


@dataclass(frozen=True)
class Waits:
    """Of one team's jobs. None where not one of them started."""

    team: str
    jobs: int
    never: int
    """Jobs larger than the team's quota with all it can borrow."""
    preemptions: int
    p50_s: float | None
    p95_s: float | None
    mean_s: float | None
    hours: float
    """Units × hours: of GPUs, or of cores where the team's jobs ask for no GPU."""
    cost: float


@dataclass(frozen=True)
class Use:
    """Of one flavour, over the window in which both plays are compared."""

    flavor: str
    nominal: float
    """GPUs or cores, over all teams."""
    hours: float
    """Units × hours that were used."""
    idle_hours: float
    utilisation: float | None
    """Share of `nominal` that was used. None: there is no nominal quota."""
    used_cost: float
    nominal_cost: float
    """Of all of it, used or not."""


@dataclass(frozen=True)
class Played:
    """A trace in one pool."""

    outcomes: tuple[Outcome, ...]
    teams: tuple[Waits, ...]
    """By name, and last `ALL` of them together if there are several."""
    flavors: tuple[Use, ...]
    window_s: tuple[float, float]


def compare(
    present: Pool, proposed: Pool, works: Sequence[Work], *, restart_s: float = RESTART_S
) -> tuple[Played, Played]:
    """The same works in both pools. The window is that of the present: from the first arrival to the last end."""
    before = simulate(present, works, restart_s=restart_s)
    after = simulate(proposed, works, restart_s=restart_s)
    window_s = window_of(before) or window_of(after) or (0.0, 0.0)
    return measure(present, before, window_s), measure(proposed, after, window_s)


def window_of(outcomes: Sequence[Outcome]) -> tuple[float, float] | None:
    """From the first arrival to the last end. None: nothing has run."""
    ends = [outcome.stretches[-1].end_s for outcome in outcomes if outcome.started]
    return (min(outcome.work.arrival_s for outcome in outcomes), max(ends)) if ends else None


def measure(pool: Pool, outcomes: Sequence[Outcome], window_s: tuple[float, float]) -> Played:
    by_team: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_team[outcome.work.team].append(outcome)
    teams = [_waits(pool, team, by_team[team]) for team in sorted(by_team)]
    if len(teams) > 1:
        teams.append(_waits(pool, ALL, outcomes))
    used: dict[str, float] = defaultdict(float)
    for outcome in outcomes:
        for stretch in outcome.stretches:
            inside_s = min(stretch.end_s, window_s[1]) - max(stretch.start_s, window_s[0])
            used[stretch.flavor] += max(0.0, inside_s) * outcome.work.units / HOUR_S
    hours = (window_s[1] - window_s[0]) / HOUR_S
    names = dict.fromkeys(flavor for team in pool.teams.values() for flavor in team.limits)
    uses = [_use(pool, flavor, used[flavor], hours) for flavor in names]
    return Played(tuple(outcomes), tuple(teams), tuple(uses), window_s)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of sorted values, interpolated between two (as numpy's default)."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def steps(outcomes: Iterable[Outcome], flavor: str) -> list[tuple[float, float]]:
    """(seconds, units in use from then on), in order of time."""
    changes: dict[float, float] = defaultdict(float)
    for outcome in outcomes:
        for stretch in outcome.stretches:
            if stretch.flavor == flavor:
                changes[stretch.start_s] += outcome.work.units
                changes[stretch.end_s] -= outcome.work.units
    found, level = [], 0.0
    for at_s in sorted(changes):
        level += changes[at_s]
        found.append((at_s, round(level, 6)))
    return found


def _waits(pool: Pool, team: str, outcomes: Sequence[Outcome]) -> Waits:
    waits = sorted(outcome.wait_s for outcome in outcomes if outcome.started)
    hours = [
        ((stretch.end_s - stretch.start_s) * outcome.work.units / HOUR_S, pool.price(stretch.flavor), outcome.work.kind)
        for outcome in outcomes
        for stretch in outcome.stretches
    ]
    gpu_hours = sum(amount for amount, _, kind in hours if kind == "gpu")
    return Waits(
        team=team,
        jobs=len(outcomes),
        never=len(outcomes) - len(waits),
        preemptions=sum(max(0, len(outcome.stretches) - 1) for outcome in outcomes),
        p50_s=quantile(waits, 0.5) if waits else None,
        p95_s=quantile(waits, 0.95) if waits else None,
        mean_s=sum(waits) / len(waits) if waits else None,
        hours=gpu_hours or sum(amount for amount, _, _ in hours),
        cost=sum(amount * price for amount, price, _ in hours),
    )


def _use(pool: Pool, flavor: str, used: float, hours: float) -> Use:
    nominal, price = float(pool.nominal(flavor)), pool.price(flavor)
    whole = nominal * hours
    return Use(
        flavor=flavor,
        nominal=nominal,
        hours=used,
        idle_hours=max(0.0, whole - used),
        utilisation=used / whole if whole else None,
        used_cost=used * price,
        nominal_cost=whole * price,
    )
