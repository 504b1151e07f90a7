"""What a team's ClusterQueue could ever admit, what of it is used, and what may be borrowed. Pure.

Follows Kueue's own rules: a queue has its nominal quota of a flavor's resource; within its cohort it may use what
others lend (their nominal quota, at most their lendingLimit) and the cohort's own, at most its borrowingLimit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from ray_jobs.cluster.quantities import shown
from ray_jobs.cluster.settings import ClusterSettings, Flavor
from ray_jobs.errors import RequestTooLarge, UnknownQueue
from ray_jobs.kueue.objects import NOTHING, Object, held, limits, resources_of

_NONE = Decimal(0)
PodSets = Sequence[tuple[str, int, Mapping[str, Decimal]]]
"""(name, pods, what one asks for)."""


@dataclass(frozen=True)
class Quota:
    """One resource of one flavor, for one queue."""

    flavor: str
    resource: str
    nominal: Decimal
    used: Decimal
    """Reserved by its own workloads, also with what is borrowed."""
    borrowable: Decimal | None
    """At most, whoever uses it now. None: nobody can tell, for its cohort is within another."""
    borrowable_now: Decimal
    lent_now: Decimal = _NONE
    """Of its own, to others; it has to wait until they give it back."""

    @property
    def free(self) -> Decimal:
        """What it could use now, of its own and of others."""
        return max(_NONE, self.nominal - self.used - self.lent_now) + self.borrowable_now

    @property
    def largest(self) -> Decimal | None:
        """That it could ever give. None: there is no limit that can be told."""
        return None if self.borrowable is None else self.nominal + self.borrowable


def quotas(name: str, queues: Sequence[Object], cohorts: Sequence[Object] = ()) -> list[Quota]:
    """Every quota of a ClusterQueue. UnknownQueue lists those that there are."""
    named = {queue["metadata"]["name"]: queue for queue in queues}
    if name not in named:
        known = ", ".join(sorted(named)) or "none"
        raise UnknownQueue(f"there is no ClusterQueue {name!r} in the cluster; there are: {known}")
    own = named[name]
    cohort_name = own["spec"].get("cohortName")
    others = [q for n, q in named.items() if n != name and cohort_name and q["spec"].get("cohortName") == cohort_name]
    cohort = next((c for c in cohorts if c["metadata"]["name"] == cohort_name), None)
    return [_quota(own, others, cohort, flavor, resource) for flavor, resource, _ in resources_of(own)]


def check(settings: ClusterSettings, team: str, pod_sets: PodSets, found: Sequence[Quota]) -> None:
    """RequestTooLarge where no state of the cluster could ever admit these pods.

    Told is the first reason for each resource, with the largest amount that would be admitted. A request that passes
    may still never fit together; this never refuses one that would.
    """
    problems = []
    for resource in sorted({name for _, _, each in pod_sets for name in each}):
        of_it = [quota for quota in found if quota.resource == resource]
        whole = sum((count * each.get(resource, _NONE) for _, count, each in pod_sets), _NONE)
        if not of_it:
            if whole > 0:
                problems.append(
                    f"{resource}: the queue of team {team} has none, and the job asks for {shown(resource, whole)}"
                )
            continue
        if any(quota.largest is None for quota in of_it):
            continue
        total = sum((quota.largest or _NONE for quota in of_it), _NONE)
        biggest = max(of_it, key=lambda quota: quota.largest or _NONE)
        for name, count, each in pod_sets:
            asked = count * each.get(resource, _NONE)
            if asked > (biggest.largest or _NONE):
                problems.append(_too_large(resource, name, count, each[resource], biggest, settings))
                break
        else:
            if whole > total:
                problems.append(
                    f"{resource}: the job asks for {shown(resource, whole)} in all, and team {team} can get at most "
                    f"{shown(resource, total)}"
                )
    if problems:
        raise RequestTooLarge(
            f"no quota of team {team} could ever admit this job: lower compute.workers, cpus_per_worker or "
            "gpus_per_worker, or ask the platform team for more",
            details=problems,
        )


def _too_large(resource: str, name: str, count: int, each: Decimal, quota: Quota, settings: ClusterSettings) -> str:
    most, borrowed = quota.largest or _NONE, quota.borrowable or _NONE
    pods = f"{count} {name} with {shown(resource, each)} each" if count > 1 else f"the {name}"
    fits = f"; {int(most // each)} would fit" if count > 1 and each > 0 else ""
    return (
        f"{resource}: {pods} ask for {shown(resource, count * each)}, and the most of {quota.flavor} is "
        f"{shown(resource, most)} ({shown(resource, quota.nominal)} of its own, {shown(resource, borrowed)} borrowed)"
        + fits
    )


def lacking(pod_sets: PodSets, found: Sequence[Quota], flavors: Mapping[str, Flavor]) -> list[Quota]:
    """The quotas of what is scarce for these pods: of GPUs where they ask for any, else of CPUs."""
    asked = {name for _, _, each in pod_sets for name, amount in each.items() if amount > 0}
    gpus = [quota for quota in found if quota.resource in asked - {"cpu", "memory"} and (quota.nominal or quota.used)]
    plain = [
        quota for quota in found if quota.resource == "cpu" and not (flavors.get(quota.flavor) or Flavor()).resource
    ]
    return gpus or plain or [quota for quota in found if quota.resource == "cpu"]


def use_of(team: str, scarce: Sequence[Quota]) -> str:
    """`team blue uses 8 of 8 h100; 2 can be borrowed`."""
    parts = []
    for quota in scarce:
        what = quota.flavor if quota.resource not in ("cpu", "memory") else "CPUs"
        part = f"{shown(quota.resource, quota.used)} of {shown(quota.resource, quota.nominal)} {what}"
        if quota.lent_now:
            part += f"; {shown(quota.resource, quota.lent_now)} are lent to others"
        elif quota.borrowable is None or quota.borrowable > 0:
            part += f"; {shown(quota.resource, quota.borrowable_now)} can be borrowed"
        parts.append(part)
    return f"{team} uses {', '.join(parts)}"


def _quota(own: Object, others: Sequence[Object], cohort: Object | None, flavor: str, resource: str) -> Quota:
    nominal, limit, _ = _limits(own, flavor, resource)
    used = _used(own, flavor, resource)
    if own["spec"].get("cohortName") is None:
        return Quota(flavor, resource, nominal, used, _NONE, _NONE)
    lent, free = _NONE, _NONE
    for other in others:
        theirs, _, most = _limits(other, flavor, resource)
        lendable = theirs if most is None else min(theirs, most)
        lent += lendable
        # Up to what it keeps for itself its own use takes nothing from the others.
        free += lendable - max(_NONE, _used(other, flavor, resource) - (theirs - lendable))
    if cohort is not None:
        shared, _, _ = _limits(cohort, flavor, resource)
        lent, free = lent + shared, free + shared
    free -= max(_NONE, used - nominal)
    lent_now = min(max(_NONE, -free), max(_NONE, nominal - used))
    free = max(_NONE, free)
    nested = cohort is not None and cohort["spec"].get("parentName") is not None
    borrowable: Decimal | None = lent if limit is None else min(lent, limit)
    if nested:
        borrowable = limit
    if limit is not None:
        free = min(free, max(_NONE, limit - max(_NONE, used - nominal)))
    return Quota(flavor, resource, nominal, used, borrowable, free, lent_now)


def _limits(queue: Object, flavor: str, resource: str) -> tuple[Decimal, Decimal | None, Decimal | None]:
    """(nominal quota, borrowing limit, lending limit)."""
    found = (quota for where, name, quota in resources_of(queue) if (where, name) == (flavor, resource))
    return next(map(limits, found), (_NONE, None, None))


def _used(queue: Object, flavor: str, resource: str) -> Decimal:
    return held(queue).get((flavor, resource), NOTHING).used
