"""A gateway in front of a real store that can stop an upload half way, so that a test can kill something just then.

It passes bytes on unread, but for the first line and the length of a request.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CHUNK_BYTES = 4096


@dataclass
class Hold:
    """An upload to be stopped when half of its body has reached the store."""

    part: bytes
    """Part of its path."""
    path: str | None = None
    """Whole path of the held upload."""
    client_port: int | None = None
    """Port of its client, which identifies the process."""
    reached: threading.Event = field(default_factory=threading.Event)
    cut: threading.Event = field(default_factory=threading.Event)


class Gateway:
    """Listens on its own port while it is open; the store behind it may stop and restart."""

    def __init__(self, store_port: int) -> None:
        self._store_port = store_port
        self._hold: Hold | None = None
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    @contextmanager
    def hold_upload(self, part: str, *, patience_s: float = 180.0) -> Iterator[Hold]:
        """Wait for the next upload to a path with `part` in it and hold it half way; cut it off at the end."""
        hold = Hold(part.encode())
        with self._lock:
            self._hold = hold
        try:
            assert hold.reached.wait(patience_s), f"no upload of {part} within {patience_s:.0f} s"
            yield hold
        finally:
            with self._lock:
                self._hold = None
            hold.cut.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            store = socket.create_connection(("127.0.0.1", self._store_port), timeout=10)
        except OSError:  # the store is down: so is its gateway
            client.close()
            return
        store.settimeout(None)
        for end in (client, store):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_pump, args=(store, client), daemon=True).start()
        with suppress(OSError):
            self._upward(client, store)
        _close(client, store)

    def _upward(self, client: socket.socket, store: socket.socket) -> None:
        held: Hold | None = None
        until_hold_bytes = 0
        while data := client.recv(_CHUNK_BYTES):
            body_bytes = len(data)
            if held is None and (held := self._caught(data, client)) is not None:
                # A client sends a request once the last one is answered, so a request begins a chunk.
                found = _LENGTH.search(data)
                until_hold_bytes = int(found.group(1)) // 2 if found else 0
                body_bytes = max(0, len(data) - data.find(b"\r\n\r\n") - 4)
            if held is not None and body_bytes > until_hold_bytes:
                store.sendall(data[: len(data) - body_bytes + until_hold_bytes])
                held.reached.set()
                held.cut.wait()
                return
            until_hold_bytes -= body_bytes if held is not None else 0
            store.sendall(data)

    def _caught(self, data: bytes, client: socket.socket) -> Hold | None:
        line = data.partition(b"\r\n")[0]
        with self._lock:
            hold = self._hold
            if hold is None or not line.startswith(b"PUT ") or hold.part not in line:
                return None
            self._hold = None
            hold.path, hold.client_port = line.split()[1].decode(), client.getpeername()[1]
            return hold


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _close(source, target)


def _close(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
