"""Serve's proxies close connections whose headers do not arrive, and nothing else."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.middleware import Middleware
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from serving.http import header_deadline, serve_proxy
from serving.http.proxy_health import ProxyHealth
from tests.serving.api_harness import free_port

WITHIN_S = 0.3
ASK = b"POST /slow HTTP/1.1\r\nHost: kitae\r\nContent-Length: 4\r\n\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body, and answers after more than the deadline."""
    message: Message = {"more_body": True}
    while message.get("more_body"):
        message = await receive()
    await asyncio.sleep(2 * WITHIN_S)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server that is configured as Serve's proxy is."""
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    monkeypatch.setattr(header_deadline, "HEADERS_WITHIN_S", WITHIN_S)
    assert serve_proxy.header_deadline() == []
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield port
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def connection(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connected:
        yield connected


@pytest.mark.parametrize("sent", [b"", b"POST", ASK[:-2]], ids=["nothing", "half a line", "half the headers"])
def test_a_connection_whose_headers_do_not_arrive_is_closed(connection: socket.socket, sent: bytes) -> None:
    connection.sendall(sent)
    assert connection.recv(100) == b""


def test_one_more_byte_now_and_then_does_not_extend_it(connection: socket.socket) -> None:
    closed = False
    for byte in ASK[:-1] * 100:
        try:
            connection.sendall(bytes([byte]))
        except OSError:
            closed = True
            break
        time.sleep(WITHIN_S / 20)
    assert closed


def test_a_slow_body_and_a_slow_answer_are_not_cut(connection: socket.socket) -> None:
    connection.sendall(ASK)
    for _ in range(4):
        time.sleep(WITHIN_S / 2)
        connection.sendall(b"x")
    answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"ok")
    connection.sendall(b"GET /sl")  # the next request on the connection
    assert connection.recv(100) == b""


def test_a_cluster_has_the_deadline_and_the_health_check() -> None:
    before = HTTP_PROTOCOLS["auto"]
    try:
        (found,) = serve_proxy.middlewares()
        assert isinstance(found, Middleware)
        assert isinstance(found.cls(app, *found.args, **found.kwargs), ProxyHealth)
        assert HTTP_PROTOCOLS["auto"].endswith(":HeaderDeadline")
    finally:
        HTTP_PROTOCOLS["auto"] = before
