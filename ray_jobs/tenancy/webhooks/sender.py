"""The sender: claims due deliveries, sends the requests and records their outcomes.

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
from datetime import UTC, datetime
from functools import cached_property, partial
from ssl import SSLContext
from typing import ParamSpec, TypeVar, get_args

import httpx

from ray_jobs import __version__
from ray_jobs.digests import canonical_json
from ray_jobs.errors import ConflictError, KitaeError, ObjectNotFound
from ray_jobs.storage import Store
from ray_jobs.tenancy.webhooks import outbox, targets
from ray_jobs.tenancy.webhooks.outbox import OUTGOING, PREFIX, Outcome, Outgoing, WebhookEvent
from ray_jobs.tenancy.webhooks.records import Endpoint, disable, find, sign
from ray_jobs.tenancy.webhooks.targets import Policy

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
TIMEOUT_S = 10.0
"""Seconds for one request, from the DNS query to the answer."""
_MAX_ANSWER_BYTES = 4096
_EVENTS_AT_ONCE = 16
_THREADS = 8


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


@dataclass(eq=False)
class Sender:
    """Delivers due events. Any number of senders may work on one store, in any number of processes."""

    store: Store
    policy: Policy
    every_s: float = 5.0
    on_outcome: Callable[[str], None] = lambda outcome: None
    """Called with the outcome of each try, one of `OUTCOMES`."""
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    chance: Callable[[], float] = random.random
    _known: dict[str, tuple[str, datetime | None]] = field(default_factory=dict, init=False)
    """Key → the etag that was read, and when the event is next due (None: never)."""

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set. Failures of the store or of an endpoint do not end the loop."""
        while not stop.is_set():
            try:
                await self.tick()
            except KitaeError as error:
                logger.warning("webhooks are delayed: %s", error)
            except Exception:  # a bug met in one event must not end all other deliveries
                logger.exception("webhooks are delayed")
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self.every_s)

    async def tick(self) -> None:
        """Deliver due events and delete old ones. Raises the first failure of the store, after the rest."""
        due = await self._in_thread(self._due)
        if not due:
            return
        at_once = asyncio.Semaphore(_EVENTS_AT_ONCE)

        async def one(key: str) -> None:
            async with at_once:
                await self._deliver(transport, key)

        async with self._transport() as transport:
            _raise_first(await asyncio.gather(*(one(key) for key in due), return_exceptions=True))

    async def send(self, endpoint: Endpoint, event: WebhookEvent) -> Answer:
        """Send one request at once; for `kitae webhooks test`."""
        async with self._transport() as transport:
            return await self._send(transport, endpoint, event)

    def _due(self) -> list[str]:
        """Keys of the due events; reads only those that changed since the last call."""
        listed = {info.key: info.etag for info in self.store.list(PREFIX)}
        self.store.unreadable.clear(OUTGOING.kind, self._known.keys() - listed.keys())
        self._known = {key: known for key, known in self._known.items() if listed.get(key) == known[0]}
        for key in listed.keys() - self._known.keys():
            found = OUTGOING.find(self.store, _name(key))
            self._known[key] = (listed[key], None if found is None else found.next_at)
        now = self.clock()
        waiting = [(at, key) for key, (_, at) in self._known.items() if at is not None and at <= now]
        return [key for _, key in sorted(waiting)]

    async def _deliver(self, transport: httpx.AsyncBaseTransport, key: str) -> None:
        if (found := await self._in_thread(self._claim, key)) is None:
            return
        claimed, names = found
        tries = (self._attempt(transport, claimed, name) for name in names)
        ended = dict(zip(names, await asyncio.gather(*tries, return_exceptions=True), strict=True))
        outcomes = {name: outcome for name, outcome in ended.items() if not isinstance(outcome, BaseException)}
        await self._in_thread(self._settle, key, claimed, outcomes)
        _raise_first(ended.values())

    def _claim(self, key: str) -> tuple[Outgoing, list[str]] | None:
        """The claimed document and its endpoints; None: another replica has it, or nothing is due."""
        now, names = self.clock(), list[str]()

        def change(old: Outgoing | None) -> Outgoing:
            nonlocal names
            if old is None:
                raise ObjectNotFound(f"{key} was deleted meanwhile")
            claimed, names = outbox.claim(old, now)
            return claimed

        try:
            document = OUTGOING.read(self.store, _name(key))
            if document is not None and document.over_at is not None and document.next_at <= now:
                self.store.delete(key)
                return None
            claimed = OUTGOING.update(self.store, _name(key), change)
        except (ConflictError, ObjectNotFound):
            return None
        return (claimed, names) if names else None

    async def _attempt(
        self, transport: httpx.AsyncBaseTransport, claimed: Outgoing, name: str
    ) -> tuple[Outcome, int | None]:
        endpoint = await self._in_thread(find, self.store, claimed.team, name)
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
        now, chance = self.clock(), self.chance()

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
                addresses = await self._in_thread(targets.look_up, endpoint.url)
                if (reason := targets.refusal(endpoint.url, addresses, self.policy)) is not None:
                    return Answer(None, time.monotonic() - began_s, why="refused", detail=reason)
                requests = [_request(endpoint, event, address, self.clock()) for address in addresses]
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
        """Run the call in the sender's own threads, so that a hanging DNS query does not block the API's threads."""
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


def _raise_first(ended: Iterable[object]) -> None:
    for one in ended:
        if isinstance(one, BaseException):
            raise one
