"""Fields of Kueue's objects (v1beta2): quotas, reservations, conditions and times. Pure.

Every optional field may be missing (a status, a resource group, a limit). Does not interpret what it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from ray_jobs.cluster.kinds import Object
from ray_jobs.cluster.quantities import parse
from ray_jobs.kueue.pool import QuotaLimits


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
