"""The sender: claims due deliveries, sends the requests and records their outcomes; a queue for each receiver.

Owns the HTTP client and the order of claim, request and result. Does not decide when a try is due (`outbox`) nor which
addresses are allowed (`targets`). The log has the status of an answer and nothing else of it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property, partial
from ssl import SSLContext
from typing import ParamSpec, TypeVar, get_args

import httpx

from ray_jobs import __version__
from ray_jobs.digests import canonical_json
from ray_jobs.errors import ConflictError, CorruptObject, KitaeError, ObjectNotFound
from ray_jobs.storage import Store
from ray_jobs.tenancy.webhooks import outbox, targets
from ray_jobs.tenancy.webhooks.breaker import FIRST_S, after_failure
from ray_jobs.tenancy.webhooks.outbox import OUTGOING, PREFIX, Outcome, Outgoing, WebhookEvent
from ray_jobs.tenancy.webhooks.records import Endpoint, disable, find, set_breaker, sign
from ray_jobs.tenancy.webhooks.resolver import Resolver
from ray_jobs.tenancy.webhooks.targets import Policy

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
TIMEOUT_S = 10.0
"""Seconds for one request, from the DNS query to the answer."""
_MAX_ANSWER_BYTES = 4096
_RECEIVERS_OF_A_TEAM = 4
"""Receivers of one team that get requests at once: hanging ones delay no other team's."""
_THREADS = 8
"""Requests to the store at once."""


@dataclass(frozen=True)
class Answer:
    """The outcome of one request."""

    status: int | None
    """HTTP status; None: no answer."""
    seconds: float
    body: bytes = b""
    """The first 4 KiB of the body."""
    why: str | None = None
    """Class of the failure, if there was no answer."""
    detail: str = ""
    """Message of the failure. Must not be logged: it may contain the URL, which may hold a secret."""

    @property
    def outcome(self) -> Outcome:
        if self.status is not None and 200 <= self.status < 300:
            return "delivered"
        return "gone" if self.status == 410 else "failed"


@dataclass
class _Receiver:
    """The queue of one endpoint in this process: one request at a time."""

    team: str
    waiting: dict[str, None] = field(default_factory=dict)
    """Keys of the due events, in order."""
    task: asyncio.Task[None] | None = None
    failures: int = 0
    """Failed requests in a row."""
    paused_until: datetime | None = None
    """While its breaker is open."""

    def pause(self, until: datetime) -> None:
        self.paused_until = until
        self.waiting.clear()

    def is_known(self, now: datetime) -> bool:
        """Whether there is something to remember."""
        return bool(self.failures or self.waiting) or (self.paused_until is not None and self.paused_until > now)


@dataclass(eq=False)
class Sender:
    """Delivers due events. Any number of senders may work on one store, in any number of processes."""

    store: Store
    policy: Policy
    every_s: float = 5.0
    on_outcome: Callable[[str], None] = lambda outcome: None
    """Called with the outcome of each try, one of `OUTCOMES`."""
    clock: Callable[[], datetime] | None = None
    """None: the store's clock, so that receivers accept the signatures of a replica whose own clock is wrong."""
    chance: Callable[[], float] = random.random
    _known: dict[str, tuple[str, Outgoing | None]] = field(default_factory=dict, init=False)
    """Key → the etag that was read, and the event (None: unreadable)."""
    _receivers: dict[str, _Receiver] = field(default_factory=dict, init=False)
    """By endpoint id."""
    _teams: dict[str, asyncio.Semaphore] = field(default_factory=dict, init=False)
    _resolver: Resolver = field(default_factory=Resolver, init=False)
    _stop: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    """Once it is set, no request begins."""

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set. Failures of the store or of an endpoint do not end the loop."""
        self._stop = stop
        while not stop.is_set():
            try:
                await self._queue_due()
            except KitaeError as error:
                logger.warning("webhooks are delayed: %s", error)
            except Exception:  # a bug met in one event must not end all other deliveries
                logger.exception("webhooks are delayed")
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self.every_s)
        working = [receiver.task for receiver in self._receivers.values() if receiver.task is not None]
        if working:  # a request that runs longer is repeated by another sender once its claim has expired
            await asyncio.wait(working, timeout=TIMEOUT_S)

    async def tick(self) -> None:
        """Deliver due events and delete old ones. Raises the first failure, after the rest."""
        await self._queue_due()
        working = [receiver.task for receiver in self._receivers.values() if receiver.task is not None]
        _raise_first(await asyncio.gather(*working, return_exceptions=True))

    async def send(self, endpoint: Endpoint, event: WebhookEvent) -> Answer:
        """Send one request at once; for `kitae webhooks test`."""
        async with self._transport() as transport:
            return await self._send(transport, endpoint, event)

    def _now(self) -> datetime:
        return (self.clock or self.store.now)()

    async def _queue_due(self) -> None:
        """Add the due deliveries to their receivers' queues. Waits for the store and for no receiver."""
        for key, team, name in await self._in_thread(self._due):
            receiver = self._receivers.setdefault(name, _Receiver(team))
            receiver.waiting.setdefault(key)
            if receiver.task is None:
                receiver.task = asyncio.create_task(self._serve(receiver, name))
                receiver.task.add_done_callback(_read)
        for name, receiver in list(self._receivers.items()):
            if receiver.task is None and not receiver.is_known(self._now()):
                del self._receivers[name]

    async def _serve(self, receiver: _Receiver, name: str) -> None:
        """Deliver what waits for one receiver, one event after another. Raises the first failure, after the rest."""
        failure: Exception | None = None
        turn = self._teams.setdefault(receiver.team, asyncio.Semaphore(_RECEIVERS_OF_A_TEAM))
        try:
            async with turn, self._transport() as transport:
                while receiver.waiting and not self._stop.is_set():
                    key = next(iter(receiver.waiting))
                    try:
                        await self._deliver(transport, receiver, key, name)
                    except Exception as error:  # noqa: BLE001  # raised below
                        logger.warning("a webhook to %s is delayed: %s", name, type(error).__name__)
                        failure = failure or error
                    finally:
                        receiver.waiting.pop(key, None)
        finally:
            receiver.task = None
        if failure is not None:
            raise failure

    def _due(self) -> list[tuple[str, str, str]]:
        """(key, team, endpoint) of the due deliveries; reads only the events that changed since the last call.

        Deletes the events that ended `KEPT_S` ago.
        """
        listed = {info.key: info.etag for info in self.store.list(PREFIX)}
        self.store.unreadable.clear(OUTGOING.kind, self._known.keys() - listed.keys())
        self._known = {key: known for key, known in self._known.items() if listed.get(key) == known[0]}
        changed = sorted(listed.keys() - self._known.keys())
        found = OUTGOING.read_some(self.store, map(_name, changed))
        self._known |= {key: (listed[key], found.get(_name(key))) for key in changed}
        now = self._now()
        known = {key: event for key, (_, event) in self._known.items() if event is not None}
        self.store.delete([key for key, event in known.items() if event.over_at is not None and event.next_at <= now])
        due = [
            (delivery.next_at, key, event.team, name)
            for key, event in known.items()
            for name, delivery in event.deliveries.items()
            if delivery.state == "pending" and delivery.next_at <= now and not self._is_paused(name, now)
        ]
        return [entry[1:] for entry in sorted(due)]

    def _is_paused(self, name: str, now: datetime) -> bool:
        receiver = self._receivers.get(name)
        return receiver is not None and receiver.paused_until is not None and receiver.paused_until > now

    async def _deliver(self, transport: httpx.AsyncBaseTransport, receiver: _Receiver, key: str, name: str) -> None:
        try:
            endpoint = await self._in_thread(find, self.store, receiver.team, name)
        except CorruptObject:
            receiver.pause(self._now() + timedelta(seconds=FIRST_S))
            raise
        breaker = None if endpoint is None else endpoint.breaker
        if breaker is not None:  # opened by this or another process
            receiver.failures = max(receiver.failures, breaker.failures)
            if breaker.until > self._now():
                receiver.pause(breaker.until)
                return
        if (claimed := await self._in_thread(self._claim, key, name)) is None:
            return
        outcome = await self._attempt(transport, claimed, endpoint, name)
        await self._in_thread(self._settle, key, claimed, {name: outcome})
        if endpoint is not None and outcome[0] in ("delivered", "failed"):
            await self._count(receiver, endpoint, outcome)

    async def _count(self, receiver: _Receiver, endpoint: Endpoint, outcome: tuple[Outcome, int | None]) -> None:
        """Count failures in a row, and open or close the receiver's breaker."""
        if outcome[0] == "delivered":
            receiver.failures = 0
            if endpoint.breaker is not None:
                await self._in_thread(set_breaker, self.store, endpoint, None)
            return
        receiver.failures += 1
        why = "no answer" if outcome[1] is None else str(outcome[1])
        if (breaker := after_failure(receiver.failures, why, self._now())) is not None:
            receiver.pause(breaker.until)
            await self._in_thread(set_breaker, self.store, endpoint, breaker)

    def _claim(self, key: str, name: str) -> Outgoing | None:
        """The document with the claimed try; None: another replica has it, or it is not due."""
        now, names = self._now(), list[str]()

        def change(old: Outgoing | None) -> Outgoing:
            nonlocal names
            if old is None:
                raise ObjectNotFound(f"{key} was deleted meanwhile")
            claimed, names = outbox.claim(old, now, name)
            return claimed

        try:
            claimed = OUTGOING.update(self.store, _name(key), change)
        except (ConflictError, ObjectNotFound):
            return None
        return claimed if names else None

    async def _attempt(
        self, transport: httpx.AsyncBaseTransport, claimed: Outgoing, endpoint: Endpoint | None, name: str
    ) -> tuple[Outcome, int | None]:
        if endpoint is None or endpoint.disabled_at is not None:
            self.on_outcome("dropped")
            return "dropped", None
        answer = await self._send(transport, endpoint, claimed.event)
        logger.log(
            logging.INFO if answer.outcome == "delivered" else logging.WARNING,
            "webhook %s to %s, try %d: %s",
            claimed.event.id,
            endpoint.id,
            claimed.deliveries[name].attempts,
            answer.status if answer.why is None else answer.why,
        )
        self.on_outcome(answer.outcome)
        if answer.outcome == "gone":
            await self._in_thread(disable, self.store, endpoint, "it answered 410 Gone")
        return answer.outcome, answer.status

    def _settle(self, key: str, claimed: Outgoing, outcomes: dict[str, tuple[Outcome, int | None]]) -> None:
        now, chance = self._now(), self.chance()

        def change(old: Outgoing | None) -> Outgoing:
            if old is None:
                raise ObjectNotFound(f"{key} was deleted meanwhile")
            return outbox.settle(old, claimed, outcomes, now, chance)

        with suppress(ObjectNotFound):  # ended by another replica more than a day ago
            OUTGOING.update(self.store, _name(key), change)

    async def _send(self, transport: httpx.AsyncBaseTransport, endpoint: Endpoint, event: WebhookEvent) -> Answer:
        """Send one request. Failures are returned as an Answer; raises only on cancellation."""
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                addresses = await self._resolver.look_up(endpoint.url)
                if (reason := targets.refusal(endpoint.url, addresses, self.policy)) is not None:
                    return Answer(None, time.monotonic() - began_s, why="refused", detail=reason)
                requests = [_request(endpoint, event, address, self._now()) for address in addresses]
                status, body = await _post(transport, requests)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:  # TimeoutError is an OSError
            return Answer(None, time.monotonic() - began_s, why=type(error).__name__, detail=str(error))
        return Answer(status, time.monotonic() - began_s, body)

    def _transport(self) -> httpx.AsyncHTTPTransport:
        # A transport, since a client would log the URL, use the environment's proxies and keep cookies. Connections are
        # not reused: they are pooled by address, and two hosts with different certificates may share one.
        return httpx.AsyncHTTPTransport(
            verify=self._tls, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS, thread_name_prefix="webhooks")

    @cached_property
    def _tls(self) -> SSLContext:
        return httpx.create_ssl_context()  # SSL_CERT_FILE names a private certificate authority

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call to the store in the sender's own threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *args, **kwargs))


def _name(key: str) -> str:
    return key.removeprefix(PREFIX).removesuffix(".json")


def _request(endpoint: Endpoint, event: WebhookEvent, address: targets.Address, now: datetime) -> httpx.Request:
    """A request to the address, with the host's name for the certificate and the receiver's proxy."""
    url = httpx.URL(endpoint.url)
    body = canonical_json(event.model_dump(mode="json"))
    timestamp_s = int(now.timestamp())
    headers = {
        "host": url.netloc.decode(),
        "content-type": "application/json",
        "user-agent": f"kitae/{__version__}",
        "accept-encoding": "identity",
        "connection": "close",
        "webhook-id": event.id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": sign(endpoint.secret, event.id, timestamp_s, body),
    }
    pinned = url.copy_with(host=str(address))
    named = {"sni_hostname": url.raw_host.decode()} if url.host != pinned.host else {}
    return httpx.Request("POST", pinned, content=body, headers=headers, extensions=named)


async def _post(transport: httpx.AsyncBaseTransport, requests: Sequence[httpx.Request]) -> tuple[int, bytes]:
    """Status and first bytes of the body, from the first address that accepts a connection."""
    for request in requests[:-1]:
        with suppress(httpx.ConnectError):
            return await _post_to(transport, request)
    return await _post_to(transport, requests[-1])


async def _post_to(transport: httpx.AsyncBaseTransport, request: httpx.Request) -> tuple[int, bytes]:
    response = await transport.handle_async_request(request)
    try:
        body = b""
        async for piece in response.aiter_raw():
            body += piece
            if len(body) >= _MAX_ANSWER_BYTES:
                break
        return response.status_code, body[:_MAX_ANSWER_BYTES]
    finally:
        await response.aclose()


def _read(done: asyncio.Task[None]) -> None:
    """Read a task's failure, which is logged already, so that asyncio does not report it as lost."""
    if not done.cancelled():
        done.exception()


def _raise_first(ended: Iterable[object]) -> None:
    for one in ended:
        if isinstance(one, BaseException):
            raise one
