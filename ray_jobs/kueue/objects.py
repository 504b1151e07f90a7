"""Kueue's objects (v1beta2), read: quotas, what is held of them, conditions and times. Pure.

What may be missing (a status, a group, a limit) may be missing here. Does not know what any of it means for a job.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from ray_jobs.cluster.quantities import parse

Object = dict[str, Any]


@dataclass(frozen=True)
class Held:
    """Of one flavour's resource, in one queue."""

    used: Decimal
    """Reserved by its workloads, borrowed quota included."""
    borrowed: Decimal


NOTHING = Held(Decimal(0), Decimal(0))


def resources_of(queue: Object) -> Iterator[tuple[str, str, Object]]:
    """(flavour, resource, its quota's object) of a ClusterQueue or Cohort, in the order in which Kueue tries them."""
    for group in (queue.get("spec") or {}).get("resourceGroups") or []:
        for flavor in group.get("flavors") or []:
            for quota in flavor.get("resources") or []:
                yield flavor["name"], quota["name"], quota


def limits(quota: Object) -> tuple[Decimal, Decimal | None, Decimal | None]:
    """(nominal quota, borrowing limit, lending limit) of one resource's object. None: no limit."""
    borrow, lend = quota.get("borrowingLimit"), quota.get("lendingLimit")
    return (
        parse(quota.get("nominalQuota", 0)),
        None if borrow is None else parse(borrow),
        None if lend is None else parse(lend),
    )


def held(queue: Object) -> dict[tuple[str, str], Held]:
    """By flavour and resource, as Kueue last said."""
    return {
        (flavor["name"], each["name"]): Held(parse(each.get("total", 0)), parse(each.get("borrowed", 0)))
        for flavor in (queue.get("status") or {}).get("flavorsReservation") or []
        for each in flavor.get("resources") or []
    }


def condition(subject: Object, name: str) -> Object | None:
    """Of any object that has conditions. None: it has none of this type."""
    found = (subject.get("status") or {}).get("conditions") or []
    return next((each for each in found if each.get("type") == name), None)


def is_true(subject: Object, name: str) -> bool:
    """Whether a condition is there and holds."""
    return (condition(subject, name) or {}).get("status") == "True"


def time_of(text: str) -> datetime:
    """A time as Kubernetes writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)
