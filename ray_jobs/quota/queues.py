"""Kueue's objects (v1beta2), read: a cluster's queues as a pool, and what each flavour of each holds now. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs.cluster.kinds import TEAM_LABEL
from ray_jobs.quota import amounts
from ray_jobs.quota.amounts import Amount
from ray_jobs.quota.pool import Kind, Limits, Pool, Team

Object = dict[str, Any]

PREFIX = "kitae-"
"""Of the names that the chart gives a team's objects."""
_NOT_COUNTED = ("cpu", "memory", "pods", "ephemeral-storage")
_ZERO = Amount(0)


@dataclass(frozen=True)
class Held:
    """Of one flavour's resource, in one queue."""

    used: Amount
    """Reserved by its workloads, borrowed quota included."""
    borrowed: Amount


def team_of(queue: Object) -> str:
    """Whose ClusterQueue it is: by its label, else by its name."""
    labels = queue["metadata"].get("labels") or {}
    return str(labels.get(TEAM_LABEL) or queue["metadata"]["name"].removeprefix(PREFIX))


def resources_of(queue: Object) -> Iterator[tuple[str, str, Object]]:
    """(flavour, resource, its quota's object) in the order in which Kueue tries the flavours."""
    for group in (queue.get("spec") or {}).get("resourceGroups") or []:
        for flavor in group.get("flavors") or []:
            for quota in flavor.get("resources") or []:
                yield flavor["name"], quota["name"], quota


def limits_of(quota: Object) -> Limits:
    """Of one resource's object."""
    borrow, lend = quota.get("borrowingLimit"), quota.get("lendingLimit")
    return Limits(
        nominal=amounts.parse(quota.get("nominalQuota", 0)),
        borrow=None if borrow is None else amounts.parse(borrow),
        lend=None if lend is None else amounts.parse(lend),
    )


def counted(queues: Sequence[Object]) -> dict[str, str]:
    """By flavour the resource that is counted: GPUs where some queue has any there, else CPU."""
    found: dict[str, str] = {}
    for queue in queues:
        for flavor, resource, quota in resources_of(queue):
            found.setdefault(flavor, "cpu")
            if resource not in _NOT_COUNTED and limits_of(quota).nominal > 0:
                found[flavor] = resource
    return found


def pool_of(
    queues: Sequence[Object], cohorts: Sequence[Object] = (), prices: Mapping[str, float] | None = None
) -> Pool:
    """The ClusterQueues as a pool. Of each flavour the `counted` resource."""
    resources = counted(queues)
    kinds: dict[str, Kind] = {flavor: "cpu" if resource == "cpu" else "gpu" for flavor, resource in resources.items()}
    shared = {
        (cohort["metadata"]["name"], flavor): limits_of(quota).nominal
        for cohort in cohorts
        for flavor, resource, quota in resources_of(cohort)
        if resources.get(flavor) == resource
    }
    return Pool({team_of(queue): _team(queue, resources) for queue in queues}, kinds, dict(prices or {}), shared)


def held(queue: Object) -> dict[tuple[str, str], Held]:
    """By flavour and resource, as Kueue last said."""
    status = queue.get("status") or {}
    return {
        (flavor["name"], each["name"]): Held(
            amounts.parse(each.get("total", 0)), amounts.parse(each.get("borrowed", 0))
        )
        for flavor in status.get("flavorsReservation") or []
        for each in flavor.get("resources") or []
    }


def condition(subject: Object, name: str) -> Object | None:
    found = (subject.get("status") or {}).get("conditions") or []
    return next((each for each in found if each.get("type") == name), None)


def is_true(subject: Object, name: str) -> bool:
    return (condition(subject, name) or {}).get("status") == "True"


def _team(queue: Object, resources: Mapping[str, str]) -> Team:
    spec = queue.get("spec") or {}
    preemption, fungibility = spec.get("preemption") or {}, spec.get("flavorFungibility") or {}
    return Team(
        limits={
            flavor: limits_of(quota) for flavor, resource, quota in resources_of(queue) if resources[flavor] == resource
        },
        cohort=spec.get("cohortName"),
        strategy=spec.get("queueingStrategy", "BestEffortFIFO"),
        within=preemption.get("withinClusterQueue", "Never"),
        reclaim=preemption.get("reclaimWithinCohort", "Never"),
        borrow_first=fungibility.get("whenCanBorrow", "MayStopSearch") == "MayStopSearch",
        preempt_first=fungibility.get("whenCanPreempt", "TryNextFlavor") == "MayStopSearch",
    )
