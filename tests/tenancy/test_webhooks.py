"""Webhooks: signed as the official client checks, delivered through crashes, and never where they must not go."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from ray_jobs.__main__ import cli
from ray_jobs.cli import session
from ray_jobs.cli import webhooks as commands
from ray_jobs.errors import ObjectNotFound, ServingError, SpecError, StoreUnreachable
from ray_jobs.storage import Store
from ray_jobs.tenancy import webhooks
from ray_jobs.tenancy.webhooks import EVENTS, Endpoint, Policy, Sender, outbox, records, sender, targets
from ray_jobs.tenancy.webhooks.outbox import LEASE_S, LONGEST_S, Delivery, Event, EventData, Outgoing
from tests.repository import ROOT

HERE = Policy(private=True, insecure=True)
DONE = EVENTS[0]
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """A server of a team's own, which answers as it is told, and 200 when it is told nothing more."""

    statuses: list[int] = field(default_factory=list)
    got: list[Request] = field(default_factory=list)
    answer: Callable[[BaseHTTPRequestHandler], None] | None = None
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=in-the-url"

    @property
    def ids(self) -> list[str]:
        return [request.headers["webhook-id"] for request in self.got]


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers["content-length"]))
            with receiver.lock:
                receiver.got.append(Request(self.path, headers, body))
                status = receiver.statuses.pop(0) if receiver.statuses else 200
            with suppress(OSError):
                if receiver.answer is not None:
                    receiver.answer(self)
                    return
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", f"http://127.0.0.1:{receiver.port}/elsewhere")
                self.end_headers()
                self.wfile.write(b"a secret answer")

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that hangs up is part of the tests

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


class Clock:
    """A clock that stands until it is moved. It starts at the real time: the client refuses old signatures."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def on(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def make_sender(store: Store, clock: Clock | None = None, **options: Any) -> Sender:
    fixed: dict[str, Any] = {"clock": clock or Clock(), "chance": lambda: 0.0}
    return Sender(store, HERE, **(fixed | options))


def tick(*senders: Sender) -> None:
    async def all_at_once() -> None:
        await asyncio.gather(*(one.tick() for one in senders))

    asyncio.run(all_at_once())


def subscribe(store: Store, receiver: Receiver, **options: Any) -> Endpoint:
    return webhooks.add(store, "blue", receiver.url, options.get("events", EVENTS), HERE)


def enqueue(store: Store, job_id: str = "ftjob-1", **options: Any) -> str:
    found = webhooks.enqueue(
        store, "blue", DONE, job_id, **({"at": datetime.now(UTC) - timedelta(minutes=1)} | options)
    )
    assert found is not None
    return found


def document(store: Store, event_id: str) -> Outgoing:
    return Outgoing.model_validate(store.get_json(f"webhooks-out/{event_id}.json"))


def delivery(store: Store, event_id: str) -> Delivery:
    (only,) = document(store, event_id).deliveries.values()
    return only


# ---- the signature ------------------------------------------------------------------------------------------------

CLIENT = openai.OpenAI(api_key="not used")


def test_the_official_client_accepts_a_delivery(store: Store, receiver: Receiver) -> None:
    endpoint = subscribe(store, receiver)
    event_id = enqueue(store, "ftjob-ä", at=datetime.fromtimestamp(1795000000, UTC))
    tick(make_sender(store))
    (request,) = receiver.got
    event = CLIENT.webhooks.unwrap(request.body, request.headers, secret=endpoint.secret)
    assert type(event).__name__ == "FineTuningJobSucceededWebhookEvent"
    assert json.loads(request.body) == {
        "id": event_id,
        "object": "event",
        "type": "fine_tuning.job.succeeded",
        "created_at": 1795000000,
        "data": {"id": "ftjob-ä"},
    }
    assert request.headers["webhook-id"] == event_id
    assert request.headers["content-type"] == "application/json"
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert request.path == "/hook?token=in-the-url"
    for changed in (request.body + b" ", request.body.replace(b"succeeded", b"cancelled")):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            CLIENT.webhooks.unwrap(changed, request.headers, secret=endpoint.secret)


@given(key=st.binary(min_size=1, max_size=64), body=st.text(st.characters(codec="utf-8")), event_id=st.text("az_09"))
def test_every_signature_is_the_one_that_the_official_client_computes(key: bytes, body: str, event_id: str) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    now_s = int(time.time())
    signature = webhooks.sign(secret, event_id, now_s, body.encode())
    headers = {"webhook-id": event_id, "webhook-timestamp": str(now_s), "webhook-signature": signature}
    CLIENT.webhooks.verify_signature(body, headers, secret=secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        CLIENT.webhooks.verify_signature(body + "x", headers, secret=secret)


# ---- trying again -------------------------------------------------------------------------------------------------


def test_waits_grow_and_end_within_three_days() -> None:
    waits_s: list[float] = []
    while (wait_s := webhooks.next_try(len(waits_s) + 1)) is not None:
        waits_s.append(wait_s)
    assert waits_s == sorted(waits_s)
    assert waits_s[:4] == [5, 15, 45, 135]
    assert 2 * 24 * 3600 < sum(waits_s) <= LONGEST_S == 3 * 24 * 3600
    assert webhooks.next_try(len(waits_s) + 100) is None


def test_an_endpoint_that_fails_is_tried_again_until_it_answers(store: Store, receiver: Receiver) -> None:
    endpoint, clock, told = subscribe(store, receiver), Clock(), list[str]()
    receiver.statuses = [500, 302, 429]
    event_id = enqueue(store)
    one = make_sender(store, clock, told=told.append)
    for wait_s in (5, 15, 45):
        tick(one)
        tick(one)  # nothing is due yet
        clock.on(wait_s - 1)
        tick(one)
        clock.on(1)
    tick(one)
    clock.on(3600)
    tick(one)
    assert receiver.ids == [event_id] * 4
    assert {request.path for request in receiver.got} == {"/hook?token=in-the-url"}, "a redirect is not followed"
    assert told == ["failed", "failed", "failed", "delivered"]
    assert delivery(store, event_id).model_dump(include={"state", "attempts", "status"}) == {
        "state": "delivered",
        "attempts": 4,
        "status": 200,
    }
    times = [int(request.headers["webhook-timestamp"]) for request in receiver.got]
    assert [later - times[0] for later in times] == [0, 5, 20, 65], "each try is signed anew"
    CLIENT.webhooks.unwrap(receiver.got[-1].body, receiver.got[-1].headers, secret=endpoint.secret)


def test_nobody_who_listens_is_a_failure_too(store: Store, receiver: Receiver) -> None:
    with receiving() as gone:
        subscribe(store, gone)
    event_id = enqueue(store)
    tick(make_sender(store))
    assert (delivery(store, event_id).state, delivery(store, event_id).status) == ("pending", None)


EVENT = Event(id="evt_1", type=DONE, created_at=1, data=EventData(id="ftjob-1"))
PENDING = Outgoing(event=EVENT, team="blue", deliveries={"we_1": Delivery(next_at=NOW)})


@given(st.lists(st.sampled_from(["failed", "killed"]), max_size=40), st.floats(0, 1, exclude_max=True))
@example(["killed"] * 40, 0.0)
def test_tries_end_after_at_most_three_days_even_if_each_kills_its_sender(ends: list[Any], chance: float) -> None:
    now, tried, current = NOW, 0, PENDING
    for end in [*ends, *["failed"] * 60]:
        now = max(now, current.next_at)
        claimed, names = outbox.claim(current, now)
        if not names:
            break
        tried += 1
        assert outbox.claim(claimed, now + timedelta(seconds=LEASE_S - 1)) == (claimed, []), "the claim stands"
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


def test_a_result_that_comes_late_does_not_undo_a_newer_try() -> None:
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
    first, second, told = enqueue(store, "ftjob-1"), enqueue(store, "ftjob-2"), list[str]()
    one = make_sender(store, told=told.append)
    asyncio.run(one._deliver(one._transport(), f"webhooks-out/{first}.json"))
    tick(one)
    assert len(receiver.got) == 1
    assert told == ["gone", "dropped"]
    assert (delivery(store, first).state, delivery(store, second).state) == ("gone", "dropped")
    now = webhooks.get(store, "blue", endpoint.id)
    assert (now.disabled_at is not None, now.disabled_why) == (True, "it answered 410 Gone")
    assert webhooks.enqueue(store, "blue", DONE, "ftjob-3") is None


def test_switching_off_an_endpoint_that_was_removed_does_not_bring_it_back(store: Store, receiver: Receiver) -> None:
    endpoint = subscribe(store, receiver)
    webhooks.remove(store, "blue", endpoint.id)
    records.switch_off(store, endpoint, "why")
    assert webhooks.endpoints(store, "blue") == []


def test_what_is_under_way_to_a_removed_endpoint_is_dropped(store: Store, receiver: Receiver) -> None:
    endpoint = subscribe(store, receiver)
    event_id = enqueue(store)
    webhooks.remove(store, "blue", endpoint.id)
    tick(make_sender(store))
    assert receiver.got == []
    assert delivery(store, event_id).state == "dropped"


def test_an_event_is_deleted_a_day_after_its_last_delivery(store: Store, receiver: Receiver) -> None:
    subscribe(store, receiver)
    event_id, clock = enqueue(store), Clock()
    tick(make_sender(store, clock))
    clock.on(24 * 3600 - 1)
    tick(make_sender(store, clock))
    assert document(store, event_id).over_at is not None
    clock.on(1)
    tick(make_sender(store, clock))
    with pytest.raises(ObjectNotFound):
        document(store, event_id)
    assert len(receiver.got) == 1


# ---- several replicas, and their deaths ---------------------------------------------------------------------------


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
    enqueue(store)  # the reconciler comes back to it
    tick(make_sender(store))
    assert receiver.ids == ids[:1]
    assert enqueue(store, attempt=2) != ids[0], "a job that ran again has ended again"
    others = [webhooks.enqueue(store, "blue", kind, "ftjob-1") for kind in EVENTS]
    assert len({*others}) == 3


def test_several_senders_at_once_send_each_event_once(store: Store, receiver: Receiver) -> None:
    subscribe(store, receiver)
    ids = [enqueue(store, f"ftjob-{n}") for n in range(6)]
    tick(*(make_sender(store) for _ in range(4)))
    assert sorted(receiver.ids) == sorted(ids)


def test_of_two_who_claim_in_the_same_moment_one_sends(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe(store, receiver)
    key, both_have_read, claim = f"webhooks-out/{enqueue(store)}.json", threading.Barrier(2), outbox.claim

    def slowly(document: Outgoing, now: datetime) -> tuple[Outgoing, list[str]]:
        both_have_read.wait(30)
        return claim(document, now)

    monkeypatch.setattr(outbox, "claim", slowly)
    with ThreadPoolExecutor(2) as pool:
        claims = list(pool.map(lambda one: one._claim(key)[1], [make_sender(store), make_sender(store)]))
    assert sorted(len(names) for names in claims) == [0, 1]


class Killed(BaseException):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, one: Sender, step: str) -> None:
    """The process of this sender dies when it comes to this step."""

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
    clock.on(LEASE_S - 1)
    tick(make_sender(store, clock))
    assert receiver.got == [], "the claim stands"
    clock.on(1)
    tick(make_sender(store, clock), make_sender(store, clock))
    assert receiver.ids == [event_id]
    assert delivery(store, event_id).attempts == 2


def test_a_sender_killed_before_it_wrote_the_result_sends_again_with_the_same_id(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe(store, receiver)
    event_id, clock = enqueue(store), Clock()
    kill_at(monkeypatch, make_sender(store, clock), "_settle")
    clock.on(LEASE_S)
    tick(make_sender(store, clock))
    assert receiver.ids == [event_id, event_id]
    assert receiver.got[0].body == receiver.got[1].body
    assert delivery(store, event_id).state == "delivered"


def test_two_endpoints_go_their_own_ways(store: Store, receiver: Receiver) -> None:
    subscribe(store, receiver)
    with receiving() as other:
        second = subscribe(store, other, events=[DONE])
        other.statuses = [503]
        event_id, clock = enqueue(store), Clock()
        assert webhooks.enqueue(store, "blue", EVENTS[1], "ftjob-9") is not None
        tick(make_sender(store, clock))
        clock.on(5)
        tick(make_sender(store, clock))
        assert other.ids == [event_id] * 2, "and it hears only of what it wants"
    assert receiver.ids.count(event_id) == 1
    assert len(receiver.ids) == 2
    assert document(store, event_id).deliveries[second.id].attempts == 2
    assert webhooks.enqueue(store, "red", DONE, "ftjob-1") is None, "another team's"


def test_the_task_outlives_a_store_that_fails_and_documents_that_are_none(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    subscribe(store, receiver)
    store.put_json("webhooks-out/evt_0.json", {"what": "is this"})
    event_id = enqueue(store)
    one = Sender(store, HERE, every_s=0.02)
    due, failures = one._due, [StoreUnreachable("away"), ZeroDivisionError("ours")]

    def unsteady() -> list[str]:
        if failures:
            raise failures.pop()
        return due()

    monkeypatch.setattr(one, "_due", unsteady)

    async def scenario() -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(one.run(stop))
        async with asyncio.timeout(20):
            while not receiver.got:
                await asyncio.sleep(0.02)
        stop.set()
        await asyncio.wait_for(task, 10)

    asyncio.run(scenario())
    assert receiver.ids == [event_id]
    assert "evt_0.json is no event" in caplog.text


def test_what_did_not_change_is_not_read_again(
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
        read.append(key)
        return get(key)

    monkeypatch.setattr(store, "get_with_etag", noted)
    tick(one)
    assert read == []
    enqueue(store, "ftjob-2")
    tick(one)
    assert len(set(read)) == 1


# ---- where to -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", "public"),
        ("2606:4700::1111", "public"),
        ("127.0.0.1", "private"),
        ("::1", "private"),
        ("10.1.2.3", "private"),
        ("192.168.0.1", "private"),
        ("100.64.0.1", "private"),
        ("fd12::1", "private"),
        ("fec0::1", "private"),
        ("::ffff:10.0.0.1", "private"),
        ("0.0.0.0", "never"),
        ("::", "never"),
        ("169.254.169.254", "never"),
        ("fe80::1%eth0", "never"),
        ("224.0.0.1", "never"),
        ("fd00:ec2::254", "never"),
        ("100.100.100.200", "never"),
        ("168.63.129.16", "never"),
    ],
)
def test_who_answers_where(address: str, expected: str) -> None:
    assert targets.reach(ip_address(address)) == expected


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**118 - 1))
def test_no_link_local_address_is_sent_to_in_whatever_form_it_comes(low: int, lower: int) -> None:
    v4 = IPv4Address((169 << 24) + (254 << 16) + low)
    forms: list[IPv4Address | IPv6Address] = [
        v4,
        IPv6Address(f"::ffff:{v4}"),
        IPv6Address(int(IPv6Address("64:ff9b::")) + int(v4)),
        IPv6Address((0x2002 << 112) + (int(v4) << 80) + low),
        IPv6Address((0xFE80 << 112) + lower),
    ]
    for form in forms:
        assert targets.reach(form) == "never"
        assert targets.refusal("https://h/", [IPv4Address("8.8.8.8"), form], HERE) is not None


PUBLIC, PRIVATE = IPv4Address("8.8.8.8"), IPv4Address("10.0.0.1")


@pytest.mark.parametrize(
    ("scheme", "addresses", "policy", "said"),
    [
        ("https", [PUBLIC], Policy(), None),
        ("https", [PRIVATE], Policy(), "KITAE_WEBHOOKS_PRIVATE=on"),
        ("https", [PUBLIC, PRIVATE], Policy(), "KITAE_WEBHOOKS_PRIVATE=on"),
        ("https", [PRIVATE], Policy(private=True), None),
        ("http", [PRIVATE], Policy(private=True), "KITAE_WEBHOOKS_INSECURE=on"),
        ("http", [PRIVATE], Policy(insecure=True), "KITAE_WEBHOOKS_PRIVATE=on"),
        ("http", [PRIVATE], HERE, None),
        ("http", [PUBLIC], HERE, "use https"),
        ("http", [PRIVATE, PUBLIC], HERE, "use https"),
    ],
)
def test_what_is_allowed_where(scheme: str, addresses: Sequence[IPv4Address], policy: Policy, said: str | None) -> None:
    reason = targets.refusal(f"{scheme}://host/", addresses, policy)
    assert (reason is None) if said is None else (reason is not None and said in reason)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/", "begins with 'ftp'"),
        ("host/path", "no scheme"),
        ("https:///path", "names no host"),
        ("https://user:pw@host/", "a user or a password"),
        ("https://host/#x", "fragment"),
        ("https://host/a b", "blanks"),
        ("https://host:99999/", "cannot be read"),
        ("https://host/" + "x" * 2048, "characters, more than"),
        ("http://127.0.0.1/", "KITAE_WEBHOOKS_PRIVATE=on"),
        ("https://localhost/", "KITAE_WEBHOOKS_PRIVATE=on"),
        ("https://2130706433/", "KITAE_WEBHOOKS_PRIVATE=on"),
        ("https://0x7f.1/", "KITAE_WEBHOOKS_PRIVATE=on"),
        ("https://169.254.169.254/latest", "metadata"),
        ("https://[fe80::1]/", "link-local"),
        ("https://[::ffff:169.254.169.254]/", "metadata"),
    ],
)
def test_an_endpoint_that_must_not_be_sent_to_cannot_be_added(store: Store, url: str, said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)):
        webhooks.add(store, "blue", url, EVENTS, Policy())
    assert list(store.list("webhooks/")) == []


def means(monkeypatch: pytest.MonkeyPatch, *answers: Sequence[str]) -> list[Sequence[str]]:
    """What names in .example mean: an answer after the other, and the last for ever. Returns those not given yet."""
    left, real = list(answers), socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if not str(host).endswith(".example"):
            return real(host, port, *args, **options)
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return left


def test_a_name_that_means_another_address_later_is_judged_again(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = means(monkeypatch, ["8.8.8.8"], ["127.0.0.1"])
    webhooks.add(store, "blue", f"https://rebound.example:{receiver.port}/", EVENTS, Policy())
    assert left == [["127.0.0.1"]]
    event_id, told = enqueue(store), list[str]()
    one = Sender(store, Policy(), told=told.append)
    tick(one)
    assert receiver.got == []
    assert told == ["failed"]
    assert delivery(store, event_id).state == "pending"
    answer = asyncio.run(one.send(webhooks.endpoints(store, "blue")[0], EVENT))
    assert (answer.why, "KITAE_WEBHOOKS_PRIVATE=on" in answer.detail) == ("refused", True)


def test_the_address_that_was_judged_is_the_one_that_is_asked(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that answers every question otherwise."""
    left = means(monkeypatch, ["127.0.0.1"], ["127.0.0.1"], ["169.254.169.254"])
    webhooks.add(store, "blue", f"http://rebound.example:{receiver.port}/", EVENTS, HERE)
    enqueue(store)
    tick(make_sender(store))
    (request,) = receiver.got
    assert request.headers["host"] == f"rebound.example:{receiver.port}"
    assert left == [["169.254.169.254"]]


def test_the_next_address_is_tried_where_nobody_listens_at_the_first(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    means(monkeypatch, ["127.0.0.2", "127.0.0.1"])
    webhooks.add(store, "blue", f"http://two.example:{receiver.port}/", EVENTS, HERE)
    event_id = enqueue(store)
    tick(make_sender(store))
    assert receiver.ids == [event_id]


def make_certificate(directory: Path, host: str) -> tuple[Path, Path]:
    certificate, key = directory / f"{host}.pem", directory / f"{host}.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key


@pytest.mark.parametrize(("host", "state"), [("hooks.example", "delivered"), ("other.example", "pending")])
def test_the_certificate_must_be_the_hosts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, state: str
) -> None:
    certificate, key = make_certificate(tmp_path, "hooks.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    means(monkeypatch, ["127.0.0.1"])
    with receiving(tls) as receiver:
        webhooks.add(store, "blue", f"https://{host}:{receiver.port}/", EVENTS, Policy(private=True))
        event_id = enqueue(store)
        tick(Sender(store, Policy(private=True)))
    assert delivery(store, event_id).state == state
    assert len(receiver.got) == (state == "delivered")


# ---- what comes back ----------------------------------------------------------------------------------------------


def test_an_answer_without_end_is_read_to_4_kib(store: Store, receiver: Receiver) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 1000)

    receiver.answer = endless
    endpoint = subscribe(store, receiver)
    answer = asyncio.run(make_sender(store).send(endpoint, webhooks.test_event(endpoint)))
    assert (answer.status, answer.body) == (200, b"x" * 4096)


def test_an_answer_that_drips_is_given_up(store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    receiver.answer = drip
    monkeypatch.setattr(sender, "TIMEOUT_S", 0.3)
    endpoint = subscribe(store, receiver)
    answer = asyncio.run(make_sender(store).send(endpoint, webhooks.test_event(endpoint)))
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
        clock.on(5)
        tick(make_sender(store, clock))
    assert f"webhook {event_id} to {endpoint.id}, try 1: 500" in caplog.text
    assert f"webhook {event_id} to {endpoint.id}, try 2: 200" in caplog.text
    assert endpoint.secret not in repr(endpoint)
    for secret in (endpoint.secret, endpoint.secret[6:], "in-the-url", "a secret answer"):
        assert secret not in caplog.text
    assert endpoint.secret not in json.dumps(document(store, event_id).model_dump(mode="json"))


# ---- the command line ---------------------------------------------------------------------------------------------


@pytest.fixture
def kitae(store: Store, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setattr(session, "open_store", lambda *, check=True: store)
    monkeypatch.setenv("KITAE_WEBHOOKS_PRIVATE", "on")
    monkeypatch.setenv("KITAE_WEBHOOKS_INSECURE", "on")
    return CliRunner()


def run(kitae: CliRunner, *arguments: str) -> str:
    ran = kitae.invoke(cli, ["webhooks", *arguments, "--team", "blue"])
    assert ran.exit_code == 0, (ran.output, ran.exception)
    return ran.output


def test_an_endpoint_is_added_shown_tried_and_removed(kitae: CliRunner, store: Store, receiver: Receiver) -> None:
    added = run(kitae, "add", receiver.url, "--event", EVENTS[1])
    (endpoint,) = webhooks.endpoints(store, "blue")
    assert added == f"{endpoint.id}: {EVENTS[1]}\nsecret: {endpoint.secret}  (not shown again)\n"
    table, told = run(kitae, "list"), run(kitae, "list", "--json")
    assert receiver.url in table
    assert endpoint.secret not in table + told
    assert json.loads(told)[0]["events"] == [EVENTS[1]]
    assert "answered 200 after" in (tried := run(kitae, "test", endpoint.id))
    assert tried.endswith(": a secret answer\n")
    event = CLIENT.webhooks.unwrap(receiver.got[0].body, receiver.got[0].headers, secret=endpoint.secret)
    assert (event.type, event.id[:9]) == (EVENTS[1], "evt_test_")
    receiver.statuses = [404]
    failed = kitae.invoke(cli, ["webhooks", "test", endpoint.id, "--team", "blue"])
    assert isinstance(failed.exception, ServingError)
    assert "answered 404" in str(failed.exception)
    run(kitae, "remove", endpoint.id)
    assert run(kitae, "list") == "team blue has no webhooks\n"


def test_an_endpoint_is_its_teams_alone(kitae: CliRunner, store: Store, receiver: Receiver) -> None:
    endpoint = subscribe(store, receiver)
    for command in ("test", "remove"):
        refused = kitae.invoke(cli, ["webhooks", command, endpoint.id, "--team", "red"])
        assert isinstance(refused.exception, SpecError)
    for wrong in ("../blue", "a/b", ""):
        with pytest.raises(SpecError):
            webhooks.endpoints(store, wrong)
    assert receiver.got == []
    with pytest.raises(SpecError):
        webhooks.get(store, "blue", "../blue/" + endpoint.id)
    assert webhooks.endpoints(store, "blue") == [endpoint]


def test_a_team_has_so_many_and_no_more(store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_MAX_ENDPOINTS", 1)
    subscribe(store, receiver)
    with pytest.raises(SpecError, match="has 1 webhooks, and may have 1"):
        subscribe(store, receiver)
    with pytest.raises(SpecError, match="hear of nothing"):
        webhooks.add(store, "red", receiver.url, [], HERE)


def test_the_settings_are_on_or_off() -> None:
    assert Policy.from_env({}) == Policy(private=False, insecure=False)
    assert Policy.from_env({"KITAE_WEBHOOKS_PRIVATE": "on"}) == Policy(private=True)
    assert Policy.from_env({"KITAE_WEBHOOKS_INSECURE": "on", "KITAE_WEBHOOKS_PRIVATE": "off"}) == Policy(insecure=True)
    with pytest.raises(SpecError, match="KITAE_WEBHOOKS_PRIVATE is 'yes'"):
        Policy.from_env({"KITAE_WEBHOOKS_PRIVATE": "yes"})


def test_the_command_line_offers_every_event() -> None:
    assert commands._EVENTS == EVENTS


# ---- the documentation --------------------------------------------------------------------------------------------


def test_the_receiver_of_the_documentation_receives(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/webhooks.md").read_text(encoding="utf-8"), re.DOTALL)
    listener = socket.create_server(("127.0.0.1", 0))
    endpoint = webhooks.add(store, "blue", f"http://127.0.0.1:{listener.getsockname()[1]}/kitae", EVENTS, HERE)
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", endpoint.secret)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/webhooks.md", "exec"), names)
    server = uvicorn.Server(uvicorn.Config(names["app"], log_level="warning", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        event_id = enqueue(store, "ftjob-7")
        tick(make_sender(store))
        assert names["seen"] == {event_id: "ftjob-7: fine_tuning.job.succeeded"}
        forged = endpoint.model_copy(update={"secret": "whsec_" + base64.b64encode(b"another").decode()})
        answer = asyncio.run(make_sender(store).send(forged, webhooks.test_event(forged)))
        assert answer.status == 400
        assert len(names["seen"]) == 1
    finally:
        server.should_exit = True
        thread.join(10)
