"""A team's receiver of webhooks, a clock that a test moves, and shorthands for events and deliveries."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai

from ray_jobs.storage import Store
from ray_jobs.tenancy import webhooks
from ray_jobs.tenancy.webhooks import EVENTS, Endpoint, Policy, Sender
from ray_jobs.tenancy.webhooks.outbox import Delivery, EventData, Outgoing, WebhookEvent

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
    """A team's server: answers with `statuses` in turn, then with 200; `answer` replaces both."""

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
            pass  # some tests hang up

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


class Clock:
    """A clock that a test moves. It starts at the real time, since the client refuses old signatures."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
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


CLIENT = openai.OpenAI(api_key="not used")
EVENT = WebhookEvent(id="evt_1", type=DONE, created_at=1, data=EventData(id="ftjob-1"))
