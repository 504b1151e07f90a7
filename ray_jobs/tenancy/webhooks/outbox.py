"""An event that is being delivered: its body, and the state and next try of each delivery.

Owns `webhooks-out/{event_id}.json` and every decision about it; the functions between `Outgoing`s are pure. Sends
nothing.

A conditional write claims a try: it counts the try and makes the next one due after `LEASE_S`. So two replicas do not
send the same event at the same time, an event whose sender dies after the claim comes due again, and a request that
kills its sender is not repeated forever. An event sent by a dead sender is sent again with the same `webhook-id`:
delivery is at least once.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import AwareDatetime, BaseModel

from ray_jobs.errors import ConflictError
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents
from ray_jobs.tenancy.webhooks.records import Endpoint, EventType, endpoints

DeliveryState = Literal["pending", "delivered", "gave_up", "gone", "dropped"]
Outcome = Literal["delivered", "failed", "gone", "dropped"]

PREFIX = "webhooks-out/"
LEASE_S = 60.0
"""Seconds before a claim expires; several times the longest request."""
KEPT_S = 3600.0
"""Seconds for which an event is kept after its last delivery has ended."""
LONGEST_S = 3 * 24 * 3600.0
"""Seconds from the first try to the last."""
_JITTER = 0.2


class EventData(BaseModel, frozen=True):
    id: str


class WebhookEvent(BaseModel, frozen=True):
    """The body of a webhook."""

    id: str
    object: Literal["event"] = "event"
    type: EventType
    created_at: int
    """Unix seconds."""
    data: EventData


class Delivery(BaseModel, frozen=True):
    """The delivery of an event to one endpoint."""

    state: DeliveryState = "pending"
    attempts: int = 0
    """Tries made or claimed."""
    next_at: AwareDatetime
    """When the next try is due, if `state` is pending."""
    first_at: AwareDatetime | None = None
    """When the first try was claimed."""
    status: int | None = None
    """HTTP status of the last answer."""


class Outgoing(BaseModel, frozen=True):
    """An event and its deliveries."""

    event: WebhookEvent
    team: str
    deliveries: dict[str, Delivery]
    """By endpoint id."""
    over_at: AwareDatetime | None = None
    """When the last delivery ended."""

    @property
    def next_at(self) -> datetime:
        """When the next try is due, or the deletion of the event."""
        if self.over_at is not None:
            return self.over_at + timedelta(seconds=KEPT_S)
        pending = [delivery.next_at for delivery in self.deliveries.values() if delivery.state == "pending"]
        return min(pending, default=datetime.max.replace(tzinfo=UTC))


OUTGOING = Documents(PREFIX, Outgoing, "a webhook event")


def next_try(attempt: int) -> float | None:
    """Seconds to wait after the try of this number (from 1) has failed; None: it was the last.

    5 s, 15 s, 45 s … 3 h, then every 8 hours, until almost three days have passed.
    """
    waits_s = [min(8 * 3600.0, 5.0 * 3 ** min(n, 20)) for n in range(attempt)]
    return waits_s[-1] if sum(waits_s) <= LONGEST_S else None


def enqueue(
    store: Store, team: str, kind: EventType, job_id: str, *, attempt: int = 1, at: datetime | None = None
) -> str | None:
    """Queue an event for the team's endpoints that receive its type. Returns its id, equal in every replica; None: no
    endpoint receives it.

    `attempt` is the attempt that ended, since a resumed job ends again; `at` is the time of the end (None: now). An
    event enqueued again within an hour of its delivery stays one event.
    """
    at = at or store.now()
    wanted = [one.id for one in endpoints(store, team) if kind in one.events and one.disabled_at is None]
    if not wanted:
        return None
    digest = hashlib.sha256("\n".join([team, kind, job_id, str(attempt)]).encode()).hexdigest()
    data = EventData(id=job_id)
    event = WebhookEvent(id=f"evt_{digest[:32]}", type=kind, created_at=int(at.timestamp()), data=data)
    document = Outgoing(event=event, team=team, deliveries={one: Delivery(next_at=at) for one in wanted})
    with suppress(ConflictError):  # enqueued already, by this or another replica
        OUTGOING.create(store, event.id, document)
    return event.id


def test_event(endpoint: Endpoint, now: datetime) -> WebhookEvent:
    """An event of a job that does not exist, of the first type that the endpoint receives."""
    created_at = int(now.timestamp())
    name = f"evt_test_{secrets.token_hex(8)}"
    return WebhookEvent(id=name, type=endpoint.events[0], created_at=created_at, data=EventData(id="ftjob-test"))


def claim(document: Outgoing, now: datetime, only: str | None = None) -> tuple[Outgoing, list[str]]:
    """The document with the due tries claimed, and the ids of their endpoints; `only`: at most of this endpoint.

    A delivery whose last try was claimed and never settled is given up, and one that waited for longer than all tries
    take, as while its receiver's breaker was open.
    """
    deliveries, names = dict(document.deliveries), []
    for name, delivery in document.deliveries.items():
        if delivery.state != "pending" or delivery.next_at > now or only not in (None, name):
            continue
        first_at = delivery.first_at or now
        if delivery.attempts and (next_try(delivery.attempts) is None or now - first_at > timedelta(seconds=LONGEST_S)):
            deliveries[name] = delivery.model_copy(update={"state": "gave_up"})
            continue
        lease = {
            "attempts": delivery.attempts + 1,
            "first_at": first_at,
            "next_at": now + timedelta(seconds=LEASE_S),
        }
        deliveries[name] = delivery.model_copy(update=lease)
        names.append(name)
    return _with(document, deliveries, now), names


def settle(
    current: Outgoing,
    claimed: Outgoing,
    outcomes: Mapping[str, tuple[Outcome, int | None]],
    now: datetime,
    chance: float,
) -> Outgoing:
    """The current document with the outcomes of the tries in `claimed`. `chance` in [0, 1) scales the jitter."""
    deliveries = dict(current.deliveries)
    for name, (outcome, status) in outcomes.items():
        delivery = deliveries[name]
        if delivery.state != "pending":
            continue  # ended by another replica after our claim expired
        if outcome != "failed":
            deliveries[name] = delivery.model_copy(update={"state": outcome, "status": status})
        elif delivery.attempts == claimed.deliveries[name].attempts:  # else: another try runs
            deliveries[name] = _failed(delivery, status, now, chance)
    return _with(current, deliveries, now)


def _with(document: Outgoing, deliveries: dict[str, Delivery], now: datetime) -> Outgoing:
    over = all(delivery.state != "pending" for delivery in deliveries.values())
    over_at = (document.over_at or now) if over else None
    return document.model_copy(update={"deliveries": deliveries, "over_at": over_at})


def _failed(delivery: Delivery, status: int | None, now: datetime, chance: float) -> Delivery:
    wait_s = next_try(delivery.attempts)
    if wait_s is None:
        return delivery.model_copy(update={"state": "gave_up", "status": status})
    # Jitter spreads the retries; it only shortens waits, so that three days stay the limit.
    wait_s *= 1 - _JITTER * chance
    return delivery.model_copy(update={"next_at": now + timedelta(seconds=wait_s), "status": status})
