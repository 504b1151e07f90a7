"""DNS queries that may hang: each on a thread of its own, with a time limit.

A query of the operating system cannot be stopped, and its own limits are minutes. A query that is given up goes on in
its thread; the next request to the same host waits for that one instead of starting another, so there are at most as
many threads as hosts that hang.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from urllib.parse import urlsplit

from ray_jobs.tenancy.webhooks import targets

LIMIT_S = 5.0
"""Seconds for a query."""


class Resolver:
    """The queries of one event loop."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._running: dict[str, asyncio.Future[list[targets.Address]]] = {}
        """By network location."""

    async def look_up(self, url: str) -> list[targets.Address]:
        """As `targets.look_up`. Raises TimeoutError, an OSError, after the limit."""
        host = urlsplit(url).netloc
        running = self._running.get(host)
        if running is None or running.done():
            running = self._running[host] = self._start(url)
            running.add_done_callback(lambda done: self._forget(host, done))
        async with asyncio.timeout(self._limit_s):
            return await asyncio.shield(running)

    def _start(self, url: str) -> asyncio.Future[list[targets.Address]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[targets.Address]] = loop.create_future()

        def finish(found: list[targets.Address] | Exception) -> None:
            if future.done():
                return
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)

        def query() -> None:
            found: list[targets.Address] | Exception
            try:
                found = targets.look_up(url)
            except Exception as error:  # noqa: BLE001  # raised where the answer is awaited
                found = error
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(finish, found)

        threading.Thread(target=query, name="webhooks dns", daemon=True).start()
        return future

    def _forget(self, host: str, done: asyncio.Future[list[targets.Address]]) -> None:
        done.exception()  # read, for a query whose waiter has given up
        if self._running.get(host) is done:
            del self._running[host]
