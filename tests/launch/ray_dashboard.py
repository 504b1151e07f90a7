"""A fake of the job API of Ray's dashboard."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "the-token-of-this-cluster"


class Dashboard(ThreadingHTTPServer):
    """`/api/jobs/` of Ray 2.60."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.fails = False
        self.received_bytes = 0
        """In the bodies of all requests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Dashboard

    def do_GET(self) -> None:
        self._answer(200, list(self.server.jobs.values()))

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.received_bytes += len(data)
        body = json.loads(data or b"{}")
        if self.path == "/api/jobs/":
            identifier = body["submission_id"]
            if identifier in self.server.jobs:
                self._answer(500, f"ValueError: Job with submission_id {identifier} already exists.")
                return
            self.server.jobs[identifier] = {"submission_id": identifier, "status": "PENDING", "message": "", **body}
            self._answer(200, {"submission_id": identifier})
            return
        identifier = self.path.split("/")[3]
        if identifier not in self.server.jobs:
            self._answer(404, f"Job {identifier} does not exist")
            return
        self.server.jobs[identifier]["status"] = "STOPPED"
        self._answer(200, {"stopped": True})

    def do_DELETE(self) -> None:
        found = self.server.jobs.pop(self.path.split("/")[3], None)
        self._answer(200 if found is not None else 404, {})

    def _answer(self, status: int, body: Any) -> None:
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            status, body = 401, "Unauthorized"
        if self.server.fails:
            status, body = 500, "Traceback\nRuntimeError: no room"
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve_dashboard() -> Iterator[Dashboard]:
    server = Dashboard()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
