"""A proxy in front of a real store that injects one fault.

It signs each request anew for the real server, so a fault may change headers and bodies.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from ray_jobs.storage.bucket import StoreSettings


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """Path with its query."""
    headers: Mapping[str, str]
    """Headers by lower-case name."""
    body: bytes

    def without(self, *names: str) -> Request:
        return replace(self, headers={name: value for name, value in self.headers.items() if name not in names})


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


Forward = Callable[[Request], Response]
Fault = Callable[[Request, Forward], Response | None]
"""Receives the request and a function that sends one to the real server; None: cut the connection without an answer."""


def error(status: int, code: str) -> Response:
    return Response(status, {}, f"<Error><Code>{code}</Code><Message>made by a test</Message></Error>".encode())


@contextmanager
def faulty(settings: StoreSettings, fault: Fault) -> Iterator[StoreSettings]:
    """Settings of a proxy of the real store with the fault."""
    address = urlsplit(settings.endpoint_url).netloc

    def forward(request: Request) -> Response:
        connection = http.client.HTTPConnection(address, timeout=60)
        try:
            connection.request(request.method, request.path, request.body, dict(_signed(request, settings)))
            answer = connection.getresponse()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")}
            return Response(answer.status, headers, answer.read())
        finally:
            connection.close()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are two writes: without this the second waits 40 ms

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", "0")))
            response = fault(Request(self.command, self.path, headers, body), forward)
            if response is None:
                self.close_connection = True
                return
            self.send_response_only(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value)
            if not any(name.lower() == "content-length" for name in response.headers):
                self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(response.body)

        def handle_expect_100(self) -> bool:
            self.send_response_only(100)
            self.end_headers()
            return True

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # some tests hang up

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield replace(settings, endpoint_url=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


def _signed(request: Request, settings: StoreSettings) -> Mapping[str, str]:
    dropped = ("authorization", "host", "x-amz-date", "x-amz-content-sha256", "connection", "expect", "user-agent")
    kept = request.without(*dropped).headers
    copy = AWSRequest(request.method, settings.endpoint_url + request.path, dict(kept), request.body)
    copy.context["client_config"] = None
    assert settings.access_key_id is not None
    assert settings.secret_access_key is not None
    S3SigV4Auth(Credentials(settings.access_key_id, settings.secret_access_key), "s3", settings.region).add_auth(copy)
    return dict(copy.headers.items())
