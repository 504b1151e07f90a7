"""A cluster's ClusterQueues as a pool: whose they are, and which resource of a flavour is counted. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_jobs.cluster.kinds import TEAM_LABEL
from ray_jobs.kueue.objects import Object, limits, resources_of
from ray_jobs.quota.pool import Kind, Limits, Pool, Team

PREFIX = "kitae-"
"""Of the names that the chart gives a team's objects."""
_NOT_COUNTED = ("cpu", "memory", "pods", "ephemeral-storage")


def team_of(queue: Object) -> str:
    """Whose ClusterQueue it is: by its label, else by its name."""
    labels = queue["metadata"].get("labels") or {}
    return str(labels.get(TEAM_LABEL) or queue["metadata"]["name"].removeprefix(PREFIX))


def limits_of(quota: Object) -> Limits:
    """Of one resource's object."""
    return Limits(*limits(quota))


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
