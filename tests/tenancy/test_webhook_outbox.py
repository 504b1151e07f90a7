"""Retries of an event: waits, claims, results, and endpoints that are switched off."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ray_jobs.errors import ObjectNotFound
from ray_jobs.storage import Store
from ray_jobs.tenancy import webhooks
from ray_jobs.tenancy.webhooks import outbox, records
from ray_jobs.tenancy.webhooks.outbox import LEASE_S, LONGEST_S, Delivery, Outgoing
from tests.tenancy.webhook_receiver import (
    CLIENT,
    DONE,
    EVENT,
    NOW,
    Clock,
    Receiver,
    delivery,
    document,
    enqueue,
    make_sender,
    receiving,
    subscribe,
    tick,
)


def test_waits_grow_and_end_within_three_days() -> None:
    waits_s: list[float] = []
    while (wait_s := webhooks.next_try(len(waits_s) + 1)) is not None:
        waits_s.append(wait_s)
    assert waits_s == sorted(waits_s)
    assert waits_s[:4] == [5, 15, 45, 135]
    assert 2 * 24 * 3600 < sum(waits_s) <= LONGEST_S == 3 * 24 * 3600
    assert webhooks.next_try(len(waits_s) + 100) is None


def test_a_failing_endpoint_is_retried_until_it_answers(store: Store, receiver: Receiver) -> None:
    endpoint, clock, outcomes = subscribe(store, receiver), Clock(), list[str]()
    receiver.statuses = [500, 302, 429]
    event_id = enqueue(store)
    one = make_sender(store, clock, on_outcome=outcomes.append)
    for wait_s in (5, 15, 45):
        tick(one)
        tick(one)  # nothing is due yet
        clock.advance(wait_s - 1)
        tick(one)
        clock.advance(1)
    tick(one)
    clock.advance(outbox.KEPT_S - 1)
    tick(one)
    assert receiver.ids == [event_id] * 4
    assert {request.path for request in receiver.got} == {"/hook?token=in-the-url"}, "a redirect is not followed"
    assert outcomes == ["failed", "failed", "failed", "delivered"]
    assert delivery(store, event_id).model_dump(include={"state", "attempts", "status"}) == {
        "state": "delivered",
        "attempts": 4,
        "status": 200,
    }
    times = [int(request.headers["webhook-timestamp"]) for request in receiver.got]
    assert [later - times[0] for later in times] == [0, 5, 20, 65], "each try is signed anew"
    CLIENT.webhooks.unwrap(receiver.got[-1].body, receiver.got[-1].headers, secret=endpoint.secret)


def test_a_refused_connection_is_a_failure(store: Store, receiver: Receiver) -> None:
    with receiving() as gone:
        subscribe(store, gone)
    event_id = enqueue(store)
    tick(make_sender(store))
    assert (delivery(store, event_id).state, delivery(store, event_id).status) == ("pending", None)


PENDING = Outgoing(event=EVENT, team="blue", deliveries={"we_1": Delivery(next_at=NOW)})


@given(st.lists(st.sampled_from(["failed", "killed"]), max_size=40), st.floats(0, 1, exclude_max=True))
@example(["killed"] * 40, 0.0)
def test_tries_end_within_three_days_even_if_each_kills_its_sender(ends: list[Any], chance: float) -> None:
    now, tried, current = NOW, 0, PENDING
    for end in [*ends, *["failed"] * 60]:
        now = max(now, current.next_at)
        claimed, names = outbox.claim(current, now)
        if not names:
            break
        tried += 1
        assert outbox.claim(claimed, now + timedelta(seconds=LEASE_S - 1)) == (claimed, []), "the claim holds"
        current = (
            claimed if end == "killed" else outbox.settle(claimed, claimed, {"we_1": ("failed", 500)}, now, chance)
        )
        if current.over_at is not None:
            break
    last, _ = outbox.claim(current, current.next_at)
    assert last.deliveries["we_1"].state == "gave_up"
    assert last.over_at is not None
    assert tried == 17
    assert now - NOW <= timedelta(seconds=LONGEST_S)


def test_a_late_result_does_not_undo_a_newer_try() -> None:
    first, _ = outbox.claim(PENDING, NOW)
    later = NOW + timedelta(seconds=LEASE_S)
    second, _ = outbox.claim(first, later)
    assert outbox.settle(second, first, {"we_1": ("failed", 500)}, later, 0.0) == second
    delivered = outbox.settle(second, first, {"we_1": ("delivered", 200)}, later, 0.0)
    assert delivered.deliveries["we_1"].state == "delivered"
    assert outbox.settle(delivered, second, {"we_1": ("failed", 500)}, later, 0.0) == delivered


def test_410_switches_the_endpoint_off(store: Store, receiver: Receiver) -> None:
    endpoint = subscribe(store, receiver)
    receiver.statuses = [410]
    clock, outcomes = Clock(), list[str]()
    first = enqueue(store, "ftjob-1")
    second = enqueue(store, "ftjob-2", at=clock.now + timedelta(seconds=60))
    one = make_sender(store, clock, on_outcome=outcomes.append)
    tick(one)
    clock.advance(60)
    tick(one)
    assert len(receiver.got) == 1
    assert outcomes == ["gone", "dropped"]
    assert (delivery(store, first).state, delivery(store, second).state) == ("gone", "dropped")
    now = webhooks.get(store, "blue", endpoint.id)
    assert (now.disabled_at is not None, now.disabled_why) == (True, "it answered 410 Gone")
    assert webhooks.enqueue(store, "blue", DONE, "ftjob-3") is None


def test_switching_off_a_removed_endpoint_does_not_restore_it(store: Store, receiver: Receiver) -> None:
    endpoint = subscribe(store, receiver)
    webhooks.remove(store, "blue", endpoint.id)
    records.disable(store, endpoint, "why")
    assert webhooks.endpoints(store, "blue") == []


def test_a_delivery_to_a_removed_endpoint_is_dropped(store: Store, receiver: Receiver) -> None:
    endpoint = subscribe(store, receiver)
    event_id = enqueue(store)
    webhooks.remove(store, "blue", endpoint.id)
    tick(make_sender(store))
    assert receiver.got == []
    assert delivery(store, event_id).state == "dropped"


def test_an_event_is_deleted_an_hour_after_its_last_delivery(store: Store, receiver: Receiver) -> None:
    subscribe(store, receiver)
    event_id, clock = enqueue(store), Clock()
    tick(make_sender(store, clock))
    clock.advance(outbox.KEPT_S - 1)
    tick(make_sender(store, clock))
    assert document(store, event_id).over_at is not None
    clock.advance(1)
    tick(make_sender(store, clock))
    with pytest.raises(ObjectNotFound):
        document(store, event_id)
    assert len(receiver.got) == 1
