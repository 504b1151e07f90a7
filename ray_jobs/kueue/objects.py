"""Kueue's objects (v1beta2) as Kueue reads them: quotas and reservations of queues; requests, state and order of
Workloads. Pure.

Every optional field may be missing (a status, a resource group, a limit).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from ray_jobs.cluster.kinds import RUNNER_LABEL, Object
from ray_jobs.cluster.quantities import parse
from ray_jobs.kueue.pool import QuotaLimits

Amounts = dict[str, Decimal]
"""By resource; in CPUs, bytes or pieces."""


@dataclass(frozen=True)
class Reservation:
    """Reservation of one flavor's resource by a queue's workloads."""

    used: Decimal
    """Borrowed quota included."""
    borrowed: Decimal


NO_RESERVATION = Reservation(Decimal(0), Decimal(0))


def resources_of(queue: Object) -> Iterator[tuple[str, str, Object]]:
    """(flavor, resource, quota object) of a ClusterQueue or Cohort, in the order in which Kueue tries them."""
    for group in (queue.get("spec") or {}).get("resourceGroups") or []:
        for flavor in group.get("flavors") or []:
            for quota in flavor.get("resources") or []:
                yield flavor["name"], quota["name"], quota


def limits_of(quota: Object) -> QuotaLimits:
    """Nominal quota, borrowing limit and lending limit of a quota object."""
    borrow, lend = quota.get("borrowingLimit"), quota.get("lendingLimit")
    return QuotaLimits(
        parse(quota.get("nominalQuota", 0)),
        None if borrow is None else parse(borrow),
        None if lend is None else parse(lend),
    )


def quotas_of(queue: Object) -> dict[tuple[str, str], QuotaLimits]:
    """`resources_of` as limits, by (flavor, resource)."""
    return {(flavor, resource): limits_of(quota) for flavor, resource, quota in resources_of(queue)}


def reservations(queue: Object) -> dict[tuple[str, str], Reservation]:
    """Reserved amounts by (flavor, resource), from the queue's status."""
    return {
        (flavor["name"], each["name"]): Reservation(parse(each.get("total", 0)), parse(each.get("borrowed", 0)))
        for flavor in (queue.get("status") or {}).get("flavorsReservation") or []
        for each in flavor.get("resources") or []
    }


def condition(subject: Object, name: str) -> Object | None:
    """The condition of this type. None: the object has none."""
    found = (subject.get("status") or {}).get("conditions") or []
    return next((each for each in found if each.get("type") == name), None)


def is_true(subject: Object, name: str) -> bool:
    """The condition exists and its status is True."""
    return (condition(subject, name) or {}).get("status") == "True"


def true_since(subject: Object, name: str) -> float | None:
    """Unix seconds since when the condition is True. None: it is not."""
    found = condition(subject, name)
    return seconds_of(found["lastTransitionTime"]) if found is not None and found["status"] == "True" else None


def time_of(text: str) -> datetime:
    """A time in Kubernetes' format."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def seconds_of(text: str) -> float:
    """A time in Kubernetes' format, as Unix seconds."""
    return time_of(text).timestamp()


# ---- what a Workload requests and holds

_NO_QUOTA = ("ephemeral-storage",)
"""Resources without quota: `excludeResourcePrefixes` of Kueue's configuration (infra/operators/kueue.yaml)."""


@dataclass(frozen=True)
class PodSet:
    """Pods of one template."""

    name: str
    count: int
    requests: Mapping[str, Decimal]
    """Requests of one pod."""


def totals(workload: Object) -> Amounts:
    """Total requests of a Workload, as Kueue counts them.

    With quota: the usage in its admission. Before that: `status.resourceRequests`, which Kueue writes when it considers
    the Workload (RuntimeClass overhead, LimitRange defaults and transformations included). Else: its pod sets.
    """
    if is_true(workload, "QuotaReserved") and (held := usage(workload)):
        return _sum({resource: amount} for (_, resource), amount in held.items())
    considered = (workload.get("status") or {}).get("resourceRequests") or []
    if considered:
        return _sum(_amounts(each.get("resources")) for each in considered)
    return _sum(
        {name: amount * pod_set.count for name, amount in pod_set.requests.items()} for pod_set in pod_sets(workload)
    )


def usage(workload: Object) -> dict[tuple[str, str], Decimal]:
    """Amounts that its admission assigns, by (flavor, resource)."""
    found: dict[tuple[str, str], Decimal] = {}
    for pods in ((workload.get("status") or {}).get("admission") or {}).get("podSetAssignments") or []:
        amounts = _amounts(pods.get("resourceUsage"))
        for resource, flavor in (pods.get("flavors") or {}).items():
            if resource in amounts:
                found[flavor, resource] = found.get((flavor, resource), Decimal(0)) + amounts[resource]
    return found


def pod_sets(workload: Object) -> list[PodSet]:
    """Its pod sets, with the requests of a pod."""
    return [
        PodSet(str(found.get("name", "main")), int(found.get("count", 1)), pod_requests(found["template"]["spec"]))
        for found in (workload.get("spec") or {}).get("podSets") or []
    ]


def pod_requests(spec: Object) -> Amounts:
    """Requests of a pod, as the Kubernetes scheduler and Kueue count them: the larger of what runs together and of each
    init container with the sidecars before it, and the overhead. A limit without a request counts as the request."""
    running: Amounts = {}
    peak: Amounts = {}
    for container in spec.get("initContainers") or []:
        with_it = _sum([running, _container_requests(container)])
        peak = _largest(peak, with_it)
        if container.get("restartPolicy") == "Always":  # a sidecar: it keeps running
            running = with_it
    running = _sum([running, *map(_container_requests, spec.get("containers") or [])])
    return _sum([_largest(peak, running), _amounts(spec.get("overhead"))])


def _container_requests(container: Object) -> Amounts:
    resources = container.get("resources") or {}
    return _amounts({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _amounts(quantities: Mapping[str, Any] | None) -> Amounts:
    return {name: parse(quantity) for name, quantity in (quantities or {}).items() if name not in _NO_QUOTA}


def _sum(parts: Iterable[Mapping[str, Decimal]]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, Decimal(0)) + amount
    return total


def _largest(one: Amounts, other: Amounts) -> Amounts:
    return {name: max(one.get(name, Decimal(0)), other.get(name, Decimal(0))) for name in {**one, **other}}


# ---- its state and place in the order of admission


def is_waiting(workload: Object) -> bool:
    """It has no quota, and has not finished."""
    return not is_true(workload, "QuotaReserved") and not is_true(workload, "Finished")


def holds_quota(workload: Object) -> bool:
    """It has quota, admitted or still waiting for admission checks."""
    return is_true(workload, "QuotaReserved") and not is_true(workload, "Finished")


def is_active(workload: Object) -> bool:
    """`spec.active`; an inactive Workload is not considered."""
    return (workload.get("spec") or {}).get("active") is not False


def ran_s(workload: Object) -> float | None:
    """Seconds from its last admission to its end. None: it has not finished, or never started.

    Kueue leaves the condition of the last admission unchanged when a Workload finishes.
    """
    began_s, ended_s = true_since(workload, "Admitted"), true_since(workload, "Finished")
    return None if began_s is None or ended_s is None else max(1.0, ended_s - began_s)


def priority(workload: Object) -> int:
    """`spec.priority`; 0 if unset."""
    return int((workload.get("spec") or {}).get("priority") or 0)


def queued_at(workload: Object) -> float:
    """Unix seconds by which Kueue orders Workloads of the same priority.

    The creation, or the eviction by PodsReadyTimeout or by an admission check.
    """
    evicted = condition(workload, "Evicted") or {}
    if evicted.get("status") == "True" and evicted.get("reason") in ("PodsReadyTimeout", "AdmissionCheck"):
        return seconds_of(evicted["lastTransitionTime"])
    return seconds_of(workload["metadata"]["creationTimestamp"])


def by_admission_order(workloads: Iterable[Object]) -> list[Object]:
    """The highest priority first, then by `queued_at`."""
    return sorted(workloads, key=lambda workload: (-priority(workload), queued_at(workload)))


# ---- its names


def key(workload: Object) -> tuple[str, str]:
    """(namespace, name)."""
    return workload["metadata"].get("namespace", ""), workload["metadata"].get("name", "")


def queue_key(workload: Object) -> tuple[str, str]:
    """(namespace, LocalQueue)."""
    return workload["metadata"].get("namespace", ""), (workload.get("spec") or {}).get("queueName", "")


def display_name(workload: Object) -> str:
    """The runner's id, else the owner's name, else its own name."""
    metadata = workload["metadata"]
    label = (metadata.get("labels") or {}).get(RUNNER_LABEL)
    owners: Sequence[Object] = metadata.get("ownerReferences") or []
    return str(label or (owners[0]["name"] if owners else metadata["name"]))
