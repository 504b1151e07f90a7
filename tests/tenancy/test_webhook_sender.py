"""Several senders, their deaths, and what an endpoint answers."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from ray_jobs.errors import StoreUnreachable
from ray_jobs.storage import ObjectInfo, Store
from ray_jobs.tenancy import webhooks
from ray_jobs.tenancy.webhooks import EVENTS, Sender, outbox, sender
from ray_jobs.tenancy.webhooks.outbox import LEASE_S, Outgoing
from tests.tenancy.webhook_receiver import (
    DONE,
    HERE,
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


def test_several_replicas_enqueue_one_event(store: Store, receiver: Receiver) -> None:
    subscribe(store, receiver)
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.append(enqueue(store))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 6
    assert len(set(ids)) == 1
    tick(make_sender(store))
    enqueue(store)  # as the reconciler does
    tick(make_sender(store))
    assert receiver.ids == ids[:1]
    assert enqueue(store, attempt=2) != ids[0], "a resumed job ends again"
    others = [webhooks.enqueue(store, "blue", kind, "ftjob-1") for kind in EVENTS]
    assert len({*others}) == len(EVENTS)


def test_several_senders_at_once_send_each_event_once(store: Store, receiver: Receiver) -> None:
    subscribe(store, receiver)
    ids = [enqueue(store, f"ftjob-{n}") for n in range(6)]
    tick(*(make_sender(store) for _ in range(4)))
    assert sorted(receiver.ids) == sorted(ids)


def test_one_of_two_concurrent_claims_sends(store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    subscribe(store, receiver)
    event_id, both_have_read, claim = enqueue(store), threading.Barrier(2), outbox.claim
    waited = set[int]()

    def slowly(document: Outgoing, now: datetime, only: str | None) -> tuple[Outgoing, list[str]]:
        if threading.get_ident() not in waited:  # the loser decides again
            waited.add(threading.get_ident())
            both_have_read.wait(30)
        return claim(document, now, only)

    monkeypatch.setattr(outbox, "claim", slowly)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(tick, [make_sender(store), make_sender(store)]))
    assert receiver.ids == [event_id]
    assert delivery(store, event_id).attempts == 1


class Killed(BaseException):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, one: Sender, step: str) -> None:
    """Run the sender; its process dies at this step."""

    def die(*args: Any) -> Any:
        raise Killed

    monkeypatch.setattr(one, step, die)
    with pytest.raises(Killed):
        tick(one)


def test_a_sender_killed_between_claim_and_request_loses_nothing(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe(store, receiver)
    event_id, clock = enqueue(store), Clock()
    kill_at(monkeypatch, make_sender(store, clock), "_attempt")
    assert receiver.got == []
    clock.advance(LEASE_S - 1)
    tick(make_sender(store, clock))
    assert receiver.got == [], "the claim holds"
    clock.advance(1)
    tick(make_sender(store, clock), make_sender(store, clock))
    assert receiver.ids == [event_id]
    assert delivery(store, event_id).attempts == 2


def test_a_sender_killed_before_it_wrote_the_result_repeats_the_id(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe(store, receiver)
    event_id, clock = enqueue(store), Clock()
    kill_at(monkeypatch, make_sender(store, clock), "_settle")
    clock.advance(LEASE_S)
    tick(make_sender(store, clock))
    assert receiver.ids == [event_id, event_id]
    assert receiver.got[0].body == receiver.got[1].body
    assert delivery(store, event_id).state == "delivered"


def test_two_endpoints_are_retried_separately(store: Store, receiver: Receiver) -> None:
    subscribe(store, receiver)
    with receiving() as other:
        second = subscribe(store, other, events=[DONE])
        other.statuses = [503]
        event_id, clock = enqueue(store), Clock()
        assert webhooks.enqueue(store, "blue", EVENTS[1], "ftjob-9") is not None
        tick(make_sender(store, clock))
        clock.advance(5)
        tick(make_sender(store, clock))
        assert other.ids == [event_id] * 2, "and it receives only its own event types"
    assert receiver.ids.count(event_id) == 1
    assert len(receiver.ids) == 2
    assert document(store, event_id).deliveries[second.id].attempts == 2
    assert webhooks.enqueue(store, "red", DONE, "ftjob-1") is None, "another team's"


def test_the_task_survives_a_failing_store_and_invalid_documents(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    subscribe(store, receiver)
    store.put_json("webhooks-out/evt_0.json", {"what": "is this"})
    event_id = enqueue(store)
    one = Sender(store, HERE, every_s=0.02)
    listing, failures = store.list, [StoreUnreachable("away"), ZeroDivisionError("a bug")]

    def unsteady(prefix: str) -> Iterator[ObjectInfo]:
        if failures:
            raise failures.pop()
        return listing(prefix)

    monkeypatch.setattr(store, "list", unsteady)

    async def scenario() -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(one.run(stop))
        async with asyncio.timeout(20):
            while not (receiver.got and "evt_0.json is not a webhook event" in caplog.text):
                await asyncio.sleep(0.02)
        stop.set()
        await asyncio.wait_for(task, 10)

    asyncio.run(scenario())
    assert receiver.ids == [event_id]


def test_an_unchanged_event_is_not_read_again(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe(store, receiver)
    receiver.statuses = [500]
    enqueue(store)
    one, read = make_sender(store), list[str]()
    tick(one)
    tick(one)
    get = store.get_with_etag

    def noted(key: str) -> tuple[bytes, str]:
        read.extend([key] if key.startswith("webhooks-out/") else [])
        return get(key)

    monkeypatch.setattr(store, "get_with_etag", noted)
    tick(one)
    assert read == []
    enqueue(store, "ftjob-2")
    tick(one)
    assert len(set(read)) == 1


def test_an_endless_answer_is_read_to_4_kib(store: Store, receiver: Receiver) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 1000)

    receiver.answer = endless
    endpoint = subscribe(store, receiver)
    answer = asyncio.run(make_sender(store).send(endpoint, webhooks.test_event(endpoint, store.now())))
    assert (answer.status, answer.body) == (200, b"x" * 4096)


def test_a_dripping_answer_times_out(store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    receiver.answer = drip
    monkeypatch.setattr(sender, "TIMEOUT_S", 0.3)
    endpoint = subscribe(store, receiver)
    answer = asyncio.run(make_sender(store).send(endpoint, webhooks.test_event(endpoint, store.now())))
    assert (answer.status, answer.why, answer.outcome) == (None, "TimeoutError", "failed")
    assert answer.seconds < 3


def test_the_log_has_the_status_and_no_secret(
    store: Store, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint, clock = subscribe(store, receiver), Clock()
    receiver.statuses = [500]
    event_id = enqueue(store)
    with caplog.at_level(logging.INFO):
        tick(make_sender(store, clock))
        clock.advance(5)
        tick(make_sender(store, clock))
    assert f"webhook {event_id} to {endpoint.id}, try 1: 500" in caplog.text
    assert f"webhook {event_id} to {endpoint.id}, try 2: 200" in caplog.text
    assert endpoint.secret not in repr(endpoint)
    for secret in (endpoint.secret, endpoint.secret[6:], "in-the-url", "a secret answer"):
        assert secret not in caplog.text
    assert endpoint.secret not in json.dumps(document(store, event_id).model_dump(mode="json"))
