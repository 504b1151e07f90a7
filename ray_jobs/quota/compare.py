"""A job trace replayed under the present and under proposed quotas: waiting times, utilisation and cost. Pure.

before, after = compare(present, proposed, queued_jobs)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean

import numpy as np

from ray_jobs.kueue.pool import Pool
from ray_jobs.kueue.simulate import RESTART_S, QueuedJob, QueuedJobOutcome, simulate

HOUR_S = 3600.0
ALL = "all teams"


@dataclass(frozen=True)
class TeamWaits:
    """Waiting times, hours and cost of one team's jobs. Waiting times are None if no job started."""

    team: str
    jobs: int
    never: int
    """Jobs larger than the team's quota and all that it can borrow."""
    preemptions: int
    p50_s: float | None
    p95_s: float | None
    mean_s: float | None
    hours: float
    """GPU hours, or core hours if the team's jobs request no GPU."""
    cost: float


@dataclass(frozen=True)
class FlavorUse:
    """Utilisation and cost of one flavor, over the window in which both replays are compared."""

    flavor: str
    nominal: float
    """GPUs or cores, over all teams."""
    hours: float
    """Used GPU or core hours."""
    idle_hours: float
    utilisation: float | None
    """Used share of `nominal`. None: no nominal quota."""
    used_cost: float
    nominal_cost: float
    """Cost of the whole nominal quota."""


@dataclass(frozen=True)
class Replay:
    """A job trace replayed in one pool."""

    outcomes: tuple[QueuedJobOutcome, ...]
    teams: tuple[TeamWaits, ...]
    """By name; the last is `ALL` if there are several."""
    flavors: tuple[FlavorUse, ...]
    window_s: tuple[float, float]


def compare(
    present: Pool, proposed: Pool, queued_jobs: Sequence[QueuedJob], *, restart_s: float = RESTART_S
) -> tuple[Replay, Replay]:
    """Replay the same jobs in both pools. The window is the present's: from the first arrival to the last end."""
    before = simulate(present, queued_jobs, restart_s=restart_s)
    after = simulate(proposed, queued_jobs, restart_s=restart_s)
    window_s = window_of(before) or window_of(after) or (0.0, 0.0)
    return measure(present, before, window_s), measure(proposed, after, window_s)


def window_of(outcomes: Sequence[QueuedJobOutcome]) -> tuple[float, float] | None:
    """Seconds of the first arrival and the last end. None: no job has run."""
    ends = [outcome.allocations[-1].end_s for outcome in outcomes if outcome.started]
    return (min(outcome.queued_job.arrival_s for outcome in outcomes), max(ends)) if ends else None


def measure(pool: Pool, outcomes: Sequence[QueuedJobOutcome], window_s: tuple[float, float]) -> Replay:
    """Waiting times, utilisation and cost of a simulation's outcomes."""
    by_team: dict[str, list[QueuedJobOutcome]] = defaultdict(list)
    for outcome in outcomes:
        by_team[outcome.queued_job.team].append(outcome)
    teams = [_waits(pool, team, by_team[team]) for team in sorted(by_team)]
    if len(teams) > 1:
        teams.append(_waits(pool, ALL, outcomes))
    used: dict[str, float] = defaultdict(float)
    for outcome in outcomes:
        for allocation in outcome.allocations:
            inside_s = min(allocation.end_s, window_s[1]) - max(allocation.start_s, window_s[0])
            used[allocation.flavor] += max(0.0, inside_s) * outcome.queued_job.units / HOUR_S
    hours = (window_s[1] - window_s[0]) / HOUR_S
    names = dict.fromkeys(flavor for team in pool.teams.values() for flavor in team.limits)
    uses = [_use(pool, flavor, used[flavor], hours) for flavor in names]
    return Replay(tuple(outcomes), tuple(teams), tuple(uses), window_s)


def steps(outcomes: Iterable[QueuedJobOutcome], flavor: str) -> list[tuple[float, float]]:
    """(seconds, units in use from then on), by time."""
    changes: dict[float, float] = defaultdict(float)
    for outcome in outcomes:
        for allocation in outcome.allocations:
            if allocation.flavor == flavor:
                changes[allocation.start_s] += outcome.queued_job.units
                changes[allocation.end_s] -= outcome.queued_job.units
    times = sorted(changes)
    levels = accumulate(changes[at_s] for at_s in times)
    return [(at_s, round(level, 6)) for at_s, level in zip(times, levels, strict=True)]


def _waits(pool: Pool, team: str, outcomes: Sequence[QueuedJobOutcome]) -> TeamWaits:
    waits = [outcome.wait_s for outcome in outcomes if outcome.started]
    hours, cost = {"gpu": 0.0, "cpu": 0.0}, 0.0
    for outcome in outcomes:
        for allocation in outcome.allocations:
            amount = (allocation.end_s - allocation.start_s) * outcome.queued_job.units / HOUR_S
            hours[outcome.queued_job.kind] += amount
            cost += amount * pool.price(allocation.flavor)
    return TeamWaits(
        team=team,
        jobs=len(outcomes),
        never=len(outcomes) - len(waits),
        preemptions=sum(max(0, len(outcome.allocations) - 1) for outcome in outcomes),
        p50_s=float(np.quantile(waits, 0.5)) if waits else None,
        p95_s=float(np.quantile(waits, 0.95)) if waits else None,
        mean_s=fmean(waits) if waits else None,
        hours=hours["gpu"] or hours["cpu"],
        cost=cost,
    )


def _use(pool: Pool, flavor: str, used: float, hours: float) -> FlavorUse:
    nominal, price = float(pool.nominal(flavor)), pool.price(flavor)
    whole = nominal * hours
    return FlavorUse(
        flavor=flavor,
        nominal=nominal,
        hours=used,
        idle_hours=max(0.0, whole - used),
        utilisation=used / whole if whole else None,
        used_cost=used * price,
        nominal_cost=whole * price,
    )
