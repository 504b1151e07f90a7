"""Each quota of a ClusterQueue with what is used and available; requests that no quota could ever admit. Pure.

A queue has its nominal quota of a flavor's resource. In its cohort it may also use what other queues lend (their
nominal quota, at most their lendingLimit) and the cohort's own quota, at most its borrowingLimit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from ray_jobs.cluster.kinds import Object
from ray_jobs.cluster.quantities import shown
from ray_jobs.errors import RequestTooLarge, UnknownQueue
from ray_jobs.kueue.objects import NO_RESERVATION, PodSet, quotas_of, reservations
from ray_jobs.kueue.pool import SCALE, CohortUsage, QuotaLimits, thousandths

_NONE = Decimal(0)


@dataclass(frozen=True)
class Quota:
    """One resource of one flavor, for one queue."""

    flavor: str
    resource: str
    limits: QuotaLimits
    used: Decimal
    """Reserved by the queue's workloads, borrowed quota included."""
    borrowed: Decimal
    """As Kueue reports it."""
    available: Decimal
    """Amount that the queue can use now, own and borrowed."""
    largest: Decimal | None
    """Amount that the queue can use while all others are idle. None: unknown, because its cohort has a parent."""

    @property
    def nominal(self) -> Decimal:
        return self.limits.nominal

    @property
    def borrowable(self) -> Decimal:
        """The part of `available` that is borrowed."""
        return max(_NONE, self.available - self._unused)

    @property
    def lent(self) -> Decimal:
        """Unused nominal quota that is out of reach until other queues return it."""
        return max(_NONE, self._unused - self.available)

    @property
    def _unused(self) -> Decimal:
        return max(_NONE, self.nominal - self.used)


def quotas(name: str, queues: Sequence[Object], cohorts: Sequence[Object] = ()) -> list[Quota]:
    """Every quota of a ClusterQueue. UnknownQueue lists the existing ones."""
    named = {queue["metadata"]["name"]: queue for queue in queues}
    if name not in named:
        known = ", ".join(sorted(named)) or "none"
        raise UnknownQueue(f"no ClusterQueue {name!r} in the cluster; existing: {known}")
    cohort_name = named[name]["spec"].get("cohortName")
    cohort = next((found for found in cohorts if found["metadata"]["name"] == cohort_name), {})
    members = {
        other: queue
        for other, queue in named.items()
        if other == name or (cohort_name and queue["spec"].get("cohortName") == cohort_name)
    }
    limits = {other: quotas_of(queue) for other, queue in members.items()}
    reserved = {other: reservations(queue) for other, queue in members.items()}
    shared = quotas_of(cohort)
    nested = cohort.get("spec", {}).get("parentName") is not None
    found = []
    for place, own in limits[name].items():
        usage = CohortUsage(
            {queue: each[place] for queue, each in limits.items() if place in each},
            in_cohort=cohort_name is not None,
            shared=shared.get(place, QuotaLimits(_NONE)).nominal,
        )
        for queue in usage.used:
            usage.add(queue, thousandths(reserved[queue].get(place, NO_RESERVATION).used))
        if nested:  # the parents' quotas are not known: only the queue's own limit is
            largest = None if own.borrow is None else own.nominal + own.borrow
        else:
            largest = Decimal(usage.most(name)) / SCALE
        mine = reserved[name].get(place, NO_RESERVATION)
        available = max(_NONE, Decimal(usage.available(name)) / SCALE)
        found.append(Quota(*place, own, mine.used, mine.borrowed, available, largest))
    return found


def check(team: str, pod_sets: Sequence[PodSet], found: Sequence[Quota]) -> None:
    """RequestTooLarge if no state of the cluster could ever admit these pods.

    The error has the first problem of each resource, with the largest amount that would be admitted. Every resource is
    checked alone: pods that pass may still not fit together, but pods that fit are never refused.
    """
    problems = []
    for resource in sorted({name for pods in pod_sets for name in pods.requests}):
        matching = [quota for quota in found if quota.resource == resource]
        largest = [quota.largest for quota in matching if quota.largest is not None]
        if len(largest) < len(matching):
            continue  # one of unknown size
        amounts = [(pods, pods.count * pods.requests.get(resource, _NONE)) for pods in pod_sets]
        total, most = sum((amount for _, amount in amounts), _NONE), max(largest, default=_NONE)
        too_large = next((pods for pods, amount in amounts if amount > most), None)
        if not matching and total > 0:
            problems.append(
                f"{resource}: the queue of team {team} has none, and the job requests {shown(resource, total)}"
            )
        elif too_large is not None:
            quota = next(quota for quota in matching if quota.largest == most)
            problems.append(_too_large(resource, too_large, quota, most))
        elif total > sum(largest):
            problems.append(
                f"{resource}: the job requests {shown(resource, total)} in all, and team {team} can get at most "
                f"{shown(resource, sum(largest, _NONE))}"
            )
    if problems:
        raise RequestTooLarge(
            f"no quota of team {team} could ever admit this job: lower compute.workers, cpus_per_worker or "
            "gpus_per_worker, or ask the platform team for more",
            details=problems,
        )


def _too_large(resource: str, pods: PodSet, quota: Quota, most: Decimal) -> str:
    each = pods.requests[resource]
    who = f"{pods.count} {pods.name} with {shown(resource, each)} each" if pods.count > 1 else f"the {pods.name}"
    fits = f"; {int(most // each)} would fit" if pods.count > 1 and each > 0 else ""
    return (
        f"{resource}: {who} request {shown(resource, pods.count * each)}, and the most of {quota.flavor} is "
        f"{shown(resource, most)} ({shown(resource, quota.nominal)} of its own, "
        f"{shown(resource, most - quota.nominal)} borrowed){fits}"
    )


def scarce_quotas(requested: Mapping[str, Decimal], found: Sequence[Quota], counted: Mapping[str, str]) -> list[Quota]:
    """The quotas that a request waits for: GPUs if it requests any, else CPUs. `counted`: see `queues.counted`."""
    asked = [
        quota
        for quota in found
        if counted.get(quota.flavor) == quota.resource and requested.get(quota.resource, _NONE) > 0
    ]
    gpus = [quota for quota in asked if quota.resource != "cpu"]
    return gpus or asked or [quota for quota in found if quota.resource == "cpu" and "cpu" in requested]


def usage_text(team: str, scarce: Sequence[Quota]) -> str:
    """`blue uses 8 of 8 h100; 2 can be borrowed`."""
    parts = []
    for quota in scarce:
        what = quota.flavor if quota.resource not in ("cpu", "memory") else "CPUs"
        part = f"{shown(quota.resource, quota.used)} of {shown(quota.resource, quota.nominal)} {what}"
        if quota.lent:
            part += f"; {shown(quota.resource, quota.lent)} are lent to others"
        elif quota.largest is None or quota.largest > quota.nominal:
            part += f"; {shown(quota.resource, quota.borrowable)} can be borrowed"
        parts.append(part)
    return f"{team} uses {', '.join(parts)}"
