"""When waiting Workloads are likely to start. Pure.

Simulates admission (`simulate`) from the present state of the queues: a running Workload ends after the time that past
jobs of its team took, and waiting ones follow in Kueue's order. Durations are those of the finished Workloads in the
cluster; the caller may add older ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from statistics import median_high

from ray_jobs.cluster.kinds import Object
from ray_jobs.kueue.objects import (
    by_admission_order,
    holds_quota,
    is_active,
    is_waiting,
    key,
    priority,
    ran_s,
    resources_of,
    totals,
    true_since,
    usage,
)
from ray_jobs.kueue.pool import UnitKind
from ray_jobs.kueue.queues import Queues, pool_of, team_of
from ray_jobs.kueue.simulate import QueuedJob, simulate

Durations = Mapping[str, Sequence[float]]
"""Seconds that jobs ran, by team; `""`: over all teams."""


def durations_of(workloads: Sequence[Object], queues: Queues) -> dict[str, list[float]]:
    """Durations of the finished Workloads."""
    found: dict[str, list[float]] = {}
    for workload in workloads:
        queue, seconds = queues.of(workload), ran_s(workload)
        if queue is not None and seconds is not None:
            for team in (team_of(queue), ""):
                found.setdefault(team, []).append(seconds)
    return found


def remaining_s(durations: Sequence[float], elapsed_s: float) -> float | None:
    """Likely seconds until a job ends that has run for `elapsed_s`.

    The median of the remaining times of the past jobs that ran longer. If none did, `elapsed_s`. None: no past jobs.
    """
    if not durations:
        return None
    left = [duration - elapsed_s for duration in durations if duration > elapsed_s]
    return median_high(left) if left else elapsed_s


def flavor_of(workload: Object, queue: Object | None, resources: Mapping[str, str]) -> str | None:
    """The first flavor in which Kueue tries a waiting Workload. None: no flavor has what it requests.

    `resources`: see `queues.counted`.
    """
    requested = totals(workload)
    wants_gpu = any(amount for name, amount in requested.items() if name not in ("cpu", "memory"))
    for flavor, _, _ in resources_of(queue or {}):
        if (resources[flavor] != "cpu") == wants_gpu and requested.get(resources[flavor]):
            return flavor
    return None


def estimate_starts(
    workloads: Sequence[Object], queues: Queues, *, now_s: float, older: Durations | None = None
) -> dict[tuple[str, str], float]:
    """Unix seconds of the start, by the `key` of a waiting Workload.

    `older`: durations for a team where no finished Workload in the cluster has any. A Workload without an estimate is
    missing: there is no duration to base it on, or it fits into no quota.
    """
    recent, older = durations_of(workloads, queues), older or {}

    def past(team: str) -> Sequence[float]:
        return recent.get(team) or recent.get("") or older.get(team) or older.get("") or ()

    pool, resources = pool_of(queues.cluster_queues, queues.cohorts), queues.counted
    running: list[tuple[QueuedJob, str]] = []
    for workload in filter(holds_quota, workloads):
        queue = queues.of(workload)
        if queue is None:
            continue
        team = team_of(queue)
        left_s = remaining_s(past(team), max(0.0, now_s - (true_since(workload, "QuotaReserved") or now_s)))
        if left_s is None:
            return {}
        # Each flavor's counted resource that it holds.
        running += [
            (_queued(workload, team, now_s, left_s, amount, pool.kinds[flavor]), flavor)
            for (flavor, resource), amount in usage(workload).items()
            if amount and resources.get(flavor) == resource and flavor in pool.teams[team].limits
        ]
    queued_jobs: dict[tuple[str, str], QueuedJob] = {}
    for workload in by_admission_order(filter(is_waiting, workloads)):
        queue = queues.of(workload)
        flavor = flavor_of(workload, queue, resources)
        if queue is None or flavor is None or not is_active(workload):
            continue
        team = team_of(queue)
        expected_s = remaining_s(past(team), 0.0)
        if expected_s is None:
            return {}
        units = totals(workload)[resources[flavor]]
        queued_jobs[key(workload)] = _queued(workload, team, now_s, expected_s, units, pool.kinds[flavor])
    outcomes = zip(queued_jobs, simulate(pool, list(queued_jobs.values()), running=running), strict=True)
    return {name: outcome.allocations[0].start_s for name, outcome in outcomes if outcome.started}


def _queued(workload: Object, team: str, now_s: float, duration_s: float, units: Decimal, kind: UnitKind) -> QueuedJob:
    return QueuedJob("/".join(key(workload)), team, now_s, duration_s, float(units), kind, priority(workload))
