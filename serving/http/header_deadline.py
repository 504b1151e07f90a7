"""A deadline for the headers of a request: uvicorn, which Serve's proxy uses, has none.

A connection on which the headers of its next request have begun, or which is new, is closed after `HEADERS_WITHIN_S`
without a whole request line and headers.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_WITHIN_S = 30.0


class HeaderDeadline(HttpToolsProtocol):
    """uvicorn's protocol with the deadline."""

    _deadline: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # uvicorn makes one for each request, once it has its headers
            self._stop()
        elif self._awaits_headers() and self._deadline is None:
            self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _awaits_headers(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start(self) -> None:
        self._deadline = self.loop.call_later(HEADERS_WITHIN_S, self._close)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self._deadline = None
        if self._awaits_headers():
            self.transport.close()
