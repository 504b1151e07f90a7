"""An event under way: what it says, who still has to hear it, and when the next try is.

Owns `webhooks-out/{event_id}.json` and every decision about it; the functions between `Outgoing`s are pure. Does not
send anything.

A try is claimed by writing down, on the condition that nobody wrote in between, that it was made, and that the next
one is due once `LEASE_S` is over. So two replicas do not send the same at the same time, one that dies between claim
and request leaves an event that comes due again, and a request that kills its sender is not made for ever. What a dead
sender had sent already is sent again: at least once, with the same `webhook-id`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ray_jobs.errors import ConflictError
from ray_jobs.storage import Store
from ray_jobs.tenancy.webhooks.records import Endpoint, EventType, endpoints

State = Literal["pending", "delivered", "gave_up", "gone", "dropped"]
Outcome = Literal["delivered", "failed", "gone", "dropped"]

PREFIX = "webhooks-out/"
LEASE_S = 60.0
"""How long a claim stands. Several times as long as a request may take."""
KEPT_S = 24 * 3600.0
"""How long an event stays after its last delivery has ended."""
LONGEST_S = 3 * 24 * 3600.0
"""From the first try to the last."""

_FIRST_WAIT_S = 5.0
_GROWTH = 3.0
_LONGEST_WAIT_S = 8 * 3600.0
_JITTER = 0.2


class EventData(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str


class Event(BaseModel):
    """The body of a webhook."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["event"] = "event"
    type: EventType
    created_at: int
    """Unix seconds."""
    data: EventData


class Delivery(BaseModel):
    """How far the event is on its way to one endpoint."""

    model_config = ConfigDict(frozen=True)

    state: State = "pending"
    attempts: int = 0
    """Tries made, or claimed."""
    next_at: datetime
    """When the next one is due, if `state` is pending."""
    status: int | None = None
    """What the endpoint answered last."""


class Outgoing(BaseModel):
    """An event and its deliveries."""

    model_config = ConfigDict(frozen=True)

    event: Event
    team: str
    deliveries: dict[str, Delivery]
    """By the endpoint's id."""
    over_at: datetime | None = None
    """When the last delivery ended."""

    @property
    def next_at(self) -> datetime:
        """When there is something to do: the next try, or to delete it."""
        if self.over_at is not None:
            return self.over_at + timedelta(seconds=KEPT_S)
        pending = [delivery.next_at for delivery in self.deliveries.values() if delivery.state == "pending"]
        return min(pending, default=datetime.max.replace(tzinfo=UTC))


def next_try(attempt: int) -> float | None:
    """Seconds to wait after the try of this number (from 1) has failed; None: there is no other.

    5 s, 15 s, 45 s … 3 h, then every 8 hours, until almost three days have passed.
    """
    waits_s = [min(_LONGEST_WAIT_S, _FIRST_WAIT_S * _GROWTH ** min(n, 20)) for n in range(attempt)]
    return waits_s[-1] if sum(waits_s) <= LONGEST_S else None


def event_id(team: str, kind: EventType, job_id: str, attempt: int) -> str:
    """The same event is the same id, whoever tells of it."""
    return "evt_" + hashlib.sha256("\n".join([team, kind, job_id, str(attempt)]).encode()).hexdigest()[:32]


def enqueue(
    store: Store, team: str, kind: EventType, job_id: str, *, attempt: int = 1, at: datetime | None = None
) -> str | None:
    """Have an event delivered to those of the team that want it. Returns its id; None: nobody wants it.

    `attempt` is the run of the job that ended, for a job that is resumed ends again; `at` is when (None: now). The same
    event may be enqueued any number of times within a day of its delivery, and is one event.
    """
    at = at or datetime.now(UTC)
    wanted = [one.id for one in endpoints(store, team) if kind in one.events and one.disabled_at is None]
    if not wanted:
        return None
    event = Event(
        id=event_id(team, kind, job_id, attempt),
        type=kind,
        created_at=int(at.timestamp()),
        data=EventData(id=job_id),
    )
    document = Outgoing(event=event, team=team, deliveries={one: Delivery(next_at=at) for one in wanted})
    with suppress(ConflictError):  # another replica was as quick, or this one comes back to it
        store.put_json(f"{PREFIX}{event.id}.json", document.model_dump(mode="json"), if_absent=True)
    return event.id


def test_event(endpoint: Endpoint) -> Event:
    """An event of a job that does not exist, of the first type that the endpoint wants."""
    created_at = int(datetime.now(UTC).timestamp())
    name = f"evt_test_{secrets.token_hex(8)}"
    return Event(id=name, type=endpoint.events[0], created_at=created_at, data=EventData(id="ftjob-test"))


def claim(document: Outgoing, now: datetime) -> tuple[Outgoing, list[str]]:
    """The document with the tries that are due now claimed, and the endpoints that they go to.

    Where the last try there may be was claimed, and nobody came back with what came of it, there is no other.
    """
    deliveries, names = dict(document.deliveries), []
    for name, delivery in document.deliveries.items():
        if delivery.state != "pending" or delivery.next_at > now:
            continue
        if delivery.attempts and next_try(delivery.attempts) is None:
            deliveries[name] = delivery.model_copy(update={"state": "gave_up"})
            continue
        lease = {"attempts": delivery.attempts + 1, "next_at": now + timedelta(seconds=LEASE_S)}
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
    """What came of the tries of `claimed`, put into the document as it is now. `chance` in [0, 1) is the jitter's."""
    deliveries = dict(current.deliveries)
    for name, (outcome, status) in outcomes.items():
        delivery = deliveries[name]
        if delivery.state != "pending":
            continue  # another replica, after our claim ran out, has ended it
        if outcome != "failed":
            deliveries[name] = delivery.model_copy(update={"state": outcome, "status": status})
        elif delivery.attempts == claimed.deliveries[name].attempts:  # else: another try is under way
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
    # Earlier by chance, never later: so that many do not come back at once, and three days stay three days.
    wait_s *= 1 - _JITTER * chance
    return delivery.model_copy(update={"next_at": now + timedelta(seconds=wait_s), "status": status})
