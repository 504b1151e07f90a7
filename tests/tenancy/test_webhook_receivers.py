"""Receivers that hang or fail: each has its own queue and breaker, and delays no other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address

import pytest
from click.testing import CliRunner

from ray_jobs.__main__ import cli
from ray_jobs.errors import ObjectNotFound
from ray_jobs.storage import Store
from ray_jobs.tenancy import webhooks
from ray_jobs.tenancy.webhooks import EVENTS, Endpoint, Sender, breaker, targets
from ray_jobs.tenancy.webhooks.breaker import FAILURES, FIRST_S, LONGEST_S, after_failure
from tests.tenancy.webhook_receiver import (
    DONE,
    HERE,
    NOW,
    Clock,
    Receiver,
    document,
    enqueue,
    make_sender,
    receiving,
    subscribe,
    tick,
)


@pytest.fixture
def released() -> threading.Event:
    return threading.Event()


def run_until(sender: Sender, reached: Callable[[], bool], release: threading.Event) -> None:
    """Run the sender until a condition holds; then let what hangs end."""

    async def scenario() -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(sender.run(stop))
        try:
            async with asyncio.timeout(60):
                while not reached():
                    await asyncio.sleep(0.02)
        finally:
            release.set()
            stop.set()
            await asyncio.wait_for(task, 30)

    asyncio.run(scenario())


def test_a_hanging_receiver_delays_no_other(store: Store, receiver: Receiver, released: threading.Event) -> None:
    def hang(handler: BaseHTTPRequestHandler) -> None:
        released.wait(60)
        handler.send_response(200)
        handler.end_headers()

    with receiving() as hanging:
        hanging.answer = hang
        subscribe(store, hanging)  # of team blue
        for number in range(20):
            enqueue(store, f"ftjob-{number}")
        webhooks.add(store, "red", receiver.url, EVENTS, HERE)
        other = webhooks.enqueue(store, "red", DONE, "ftjob-red")
        run_until(Sender(store, HERE, every_s=0.02), lambda: bool(receiver.got and hanging.got), released)
        assert receiver.ids == [other]
        assert len(hanging.got) == 1, "a receiver gets one request at a time"


def test_a_hanging_name_server_delays_no_other(
    store: Store, receiver: Receiver, released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, asked = targets.look_up, list[str]()

    def hangs(url: str) -> list[targets.Address]:
        if "hanging" not in url:
            return look_up(url)
        asked.append(url)
        released.wait(60)
        return [ip_address("127.0.0.1")]

    monkeypatch.setattr(targets, "look_up", lambda url: [])
    for number in range(12):
        webhooks.add(store, f"team-{number}", f"http://hanging-{number}.example/hook", EVENTS, HERE)
    monkeypatch.setattr(targets, "look_up", hangs)
    for number in range(12):
        webhooks.enqueue(store, f"team-{number}", DONE, "ftjob-1")
    webhooks.add(store, "red", receiver.url, EVENTS, HERE)
    webhooks.enqueue(store, "red", DONE, "ftjob-red")
    one = Sender(store, HERE, every_s=0.02)
    one._resolver._limit_s = 0.2
    run_until(one, lambda: bool(receiver.got) and len(asked) == 12, released)
    assert len(asked) == len(set(asked)) == 12, "a query that hangs is not started again"


def failing(store: Store, receiver: Receiver, events: int, clock: Clock) -> tuple[Endpoint, Sender]:
    """An endpoint that fails, and a sender that has tried each event once."""
    endpoint = subscribe(store, receiver)
    receiver.statuses = [503] * 100
    for number in range(events):
        enqueue(store, f"ftjob-{number}")
    one = make_sender(store, clock)
    tick(one)
    return endpoint, one


def test_a_receiver_that_fails_repeatedly_gets_no_requests_for_a_while(store: Store, receiver: Receiver) -> None:
    clock = Clock()
    endpoint, one = failing(store, receiver, FAILURES + 3, clock)
    assert len(receiver.got) == FAILURES
    opened = webhooks.get(store, "blue", endpoint.id).breaker
    assert opened is not None
    assert (opened.failures, opened.why) == (FAILURES, "503")
    clock.advance(FIRST_S - 1)
    tick(one, make_sender(store, clock))  # nor from another process, which reads its state
    assert len(receiver.got) == FAILURES
    clock.advance(1)
    tick(one)
    assert len(receiver.got) == FAILURES + 1, "one request is tried"
    again = webhooks.get(store, "blue", endpoint.id).breaker
    assert again is not None
    assert again.until == clock.now + timedelta(seconds=2 * FIRST_S)
    receiver.statuses = []
    clock.advance(2 * FIRST_S)
    tick(one)
    assert webhooks.get(store, "blue", endpoint.id).breaker is None
    states = [delivered(store, f"ftjob-{number}") for number in range(FAILURES + 3)]
    assert all(states), "and all events are delivered"


def delivered(store: Store, job_id: str) -> bool:
    event_id = enqueue(store, job_id)  # the same event
    try:
        return all(one.state == "delivered" for one in document(store, event_id).deliveries.values())
    except ObjectNotFound:
        return False


def test_waiting_for_the_breaker_uses_up_no_tries(store: Store, receiver: Receiver) -> None:
    clock = Clock()
    failing(store, receiver, FAILURES + 1, clock)
    tries = [
        one.attempts
        for number in range(FAILURES + 1)
        for one in document(store, enqueue(store, f"ftjob-{number}")).deliveries.values()
    ]
    assert sorted(tries) == [0] + [1] * FAILURES


def test_the_list_shows_the_breaker(store: Store, receiver: Receiver, store_environment: dict[str, str]) -> None:
    endpoint, _ = failing(store, receiver, FAILURES, Clock())
    shown = CliRunner().invoke(cli, ["webhooks", "list", "--team", "blue"])
    assert "paused until 20" in shown.output
    assert "5 failures in a row, last: 503" in shown.output
    as_json = CliRunner().invoke(cli, ["webhooks", "list", "--team", "blue", "--json"])
    assert '"failures": 5' in as_json.output
    assert endpoint.secret not in shown.output + as_json.output


def test_the_breaker_opens_for_longer_and_longer() -> None:
    assert after_failure(FAILURES - 1, "503", NOW) is None
    opened = [after_failure(failures, "503", NOW) for failures in range(FAILURES, FAILURES + 30)]
    waits_s = [(one.until - NOW).total_seconds() for one in opened if one is not None]
    assert waits_s[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert waits_s[-1] == max(waits_s) == LONGEST_S
    assert breaker.OpenBreaker.model_validate(opened[0]) == opened[0]
