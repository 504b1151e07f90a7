"""Present usage of a cluster's queues, reasons why Workloads wait, and their estimated starts. Pure.

rows(queues, workloads)                        a row for each team, flavor and resource
waiting(queues, workloads, now=…, older=…)     an entry for each Workload without quota
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from ray_jobs.cluster.kinds import Object
from ray_jobs.kueue.capacity import Quota
from ray_jobs.kueue.objects import display_name, is_waiting, key, priority, time_of, totals
from ray_jobs.kueue.queues import Queues, team_of
from ray_jobs.kueue.start_estimate import Durations, estimate_starts, flavor_of
from ray_jobs.kueue.waiting import waiting_reason


@dataclass(frozen=True)
class QuotaRow:
    """One resource of one flavor, of one team."""

    team: str
    quota: Quota
    waiting: Decimal
    """Total requests of its Workloads without quota, in the flavor in which Kueue tries them first."""
    waiting_jobs: int
    counted: bool
    """The flavor is counted in this resource."""


@dataclass(frozen=True)
class WaitingWorkload:
    """A Workload without quota."""

    team: str
    name: str
    namespace: str
    flavor: str | None
    """The flavor that Kueue tries first. None: no flavor of its team has what it requests."""
    asks: Mapping[str, Decimal]
    """Total requests, by resource."""
    priority: int
    since: datetime
    reason: str
    starts_at: datetime | None
    """An estimate. None: no past job to base it on, or it never starts."""


def rows(queues: Queues, workloads: Sequence[Object]) -> list[QuotaRow]:
    """By team, in the order of its flavors."""
    resources = queues.counted
    pending = [(queues.of(workload), workload) for workload in workloads if is_waiting(workload)]
    found: list[QuotaRow] = []
    for queue in sorted(queues.cluster_queues, key=team_of):
        mine = [
            (flavor_of(workload, queue, resources), totals(workload)) for other, workload in pending if other is queue
        ]
        for quota in queues.quotas[queue["metadata"]["name"]]:
            requested = [total.get(quota.resource, Decimal(0)) for flavor, total in mine if flavor == quota.flavor]
            found.append(
                QuotaRow(
                    team=team_of(queue),
                    quota=quota,
                    waiting=sum(requested, Decimal(0)),
                    waiting_jobs=sum(amount > 0 for amount in requested),
                    counted=resources[quota.flavor] == quota.resource,
                )
            )
    return found


def waiting(
    queues: Queues, workloads: Sequence[Object], *, now: datetime, older: Durations | None = None
) -> list[WaitingWorkload]:
    """By creation. `older`: see `estimate_starts`."""
    starts = estimate_starts(workloads, queues, now_s=now.timestamp(), older=older)
    found = []
    for workload in filter(is_waiting, workloads):
        queue, start_s = queues.of(workload), starts.get(key(workload))
        reason = waiting_reason(workload, queues)
        found.append(
            WaitingWorkload(
                team=team_of(queue) if queue else workload["metadata"]["namespace"],
                name=display_name(workload),
                namespace=workload["metadata"]["namespace"],
                flavor=flavor_of(workload, queue, queues.counted),
                asks=totals(workload),
                priority=priority(workload),
                since=time_of(workload["metadata"]["creationTimestamp"]),
                reason=reason.text + (f" (Kueue: {reason.kueue_message})" if reason.kueue_message else ""),
                starts_at=None if start_s is None else datetime.fromtimestamp(start_s, UTC),
            )
        )
    return sorted(found, key=lambda each: each.since)
