"""A cluster's ClusterQueues, LocalQueues and Cohorts: the team of a queue, and all of them as a pool. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ray_jobs.cluster.kinds import TEAM_LABEL, Object
from ray_jobs.kueue.capacity import Quota, quotas
from ray_jobs.kueue.objects import queue_key, quotas_of
from ray_jobs.kueue.pool import Pool, TeamQuota, UnitKind


@dataclass(frozen=True)
class Queues:
    """The queues of a cluster at one moment."""

    cluster_queues: Sequence[Object] = ()
    cohorts: Sequence[Object] = ()
    local: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """By (namespace, LocalQueue), the name of the ClusterQueue behind it."""

    @cached_property
    def counted(self) -> dict[str, str]:
        """The counted resource of each flavor."""
        return counted(self.cluster_queues)

    @cached_property
    def quotas(self) -> dict[str, list[Quota]]:
        """Every quota, by ClusterQueue."""
        names = [queue["metadata"]["name"] for queue in self.cluster_queues]
        return {name: quotas(name, self.cluster_queues, self.cohorts) for name in names}

    def of(self, workload: Object) -> Object | None:
        """The ClusterQueue of a Workload. None: its LocalQueue or ClusterQueue does not exist."""
        name = self.local.get(queue_key(workload))
        return next((queue for queue in self.cluster_queues if queue["metadata"]["name"] == name), None)


NO_QUEUES = Queues()


def local_queues(objects: Sequence[Object]) -> dict[tuple[str, str], str]:
    """LocalQueue objects as `Queues.local`."""
    return {
        (local["metadata"]["namespace"], local["metadata"]["name"]): str(local["spec"]["clusterQueue"])
        for local in objects
        if (local.get("spec") or {}).get("clusterQueue")
    }


def team_of(queue: Object) -> str:
    """The team of a ClusterQueue: its label, else its name without the prefix of the chart's objects."""
    labels = queue["metadata"].get("labels") or {}
    return str(labels.get(TEAM_LABEL) or queue["metadata"]["name"].removeprefix("kitae-"))


def counted(queues: Sequence[Object]) -> dict[str, str]:
    """The counted resource of each flavor: GPUs where any queue has a quota of them, else CPU."""
    found: dict[str, str] = {}
    for queue in queues:
        for (flavor, resource), limits in quotas_of(queue).items():
            found.setdefault(flavor, "cpu")
            if resource not in ("cpu", "memory", "pods", "ephemeral-storage") and limits.nominal > 0:
                found[flavor] = resource
    return found


def pool_of(
    queues: Sequence[Object], cohorts: Sequence[Object] = (), prices: Mapping[str, float] | None = None
) -> Pool:
    """The ClusterQueues as a pool, with the `counted` resource of each flavor."""
    resources = counted(queues)
    kinds: dict[str, UnitKind] = {
        flavor: "cpu" if resource == "cpu" else "gpu" for flavor, resource in resources.items()
    }
    shared = {
        (cohort["metadata"]["name"], flavor): limits.nominal
        for cohort in cohorts
        for (flavor, resource), limits in quotas_of(cohort).items()
        if resources.get(flavor) == resource
    }
    return Pool({team_of(queue): _team(queue, resources) for queue in queues}, kinds, dict(prices or {}), shared)


def _team(queue: Object, resources: Mapping[str, str]) -> TeamQuota:
    spec = queue.get("spec") or {}
    preemption, fungibility = spec.get("preemption") or {}, spec.get("flavorFungibility") or {}
    return TeamQuota(
        limits={flavor: own for (flavor, resource), own in quotas_of(queue).items() if resources[flavor] == resource},
        cohort=spec.get("cohortName"),
        strategy=spec.get("queueingStrategy", "BestEffortFIFO"),
        within=preemption.get("withinClusterQueue", "Never"),
        reclaim=preemption.get("reclaimWithinCohort", "Never"),
        borrow_first=fungibility.get("whenCanBorrow", "MayStopSearch") == "MayStopSearch",
        preempt_first=fungibility.get("whenCanPreempt", "TryNextFlavor") == "MayStopSearch",
    )
