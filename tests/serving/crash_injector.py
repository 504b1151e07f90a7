"""A process that dies at one of its requests, without the process: its store and its launcher raise `Killed`.

Whatever it holds in memory is gone with it; what it had written stays. It dies before the request is made, or when the
request has been made and its answer has not arrived, which is all that a `kill -9` can do to a store.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ray_jobs.launch.launcher import Launcher, Needs, Runner
from ray_jobs.storage import Store

T = TypeVar("T")


class Killed(BaseException):
    """No code that goes on after an error may go on after this."""


class Life:
    """Of one process."""

    def __init__(self, requests: int | None = None, *, answers: bool = True) -> None:
        """It ends at request number `requests` (None: never): before it is made, or, if `answers`, after."""
        self.requests = 0
        self.over = False
        self._most = requests
        self._answers = answers
        self._lock = threading.Lock()

    def spend(self, request: Callable[[], T]) -> T:
        """Make a request."""
        with self._lock:
            if self.over:  # another thread of the same process
                raise Killed
            self.requests += 1
            last = self.requests == self._most
            self.over = last
        if last and not self._answers:
            raise Killed
        try:
            return request()
        finally:
            if last:
                raise Killed


class _Client:
    """An S3 client."""

    def __init__(self, client: Any, life: Life) -> None:
        self._client = client
        self._life = life

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda **arguments: self._life.spend(lambda: method(**arguments))


def mortal_store(store: Store, life: Life) -> Store:
    """The same store, as a process with this life reaches it."""
    twin = Store(store.uri(), store._bucket.settings, cache=store._cache)
    twin._bucket._clients[os.getpid()] = _Client(store._bucket._client(), life)  # type: ignore[assignment]
    return twin


class MortalLauncher:
    """The same launcher, as a process with this life reaches it."""

    def __init__(self, launcher: Launcher, life: Life) -> None:
        self._launcher = launcher
        self._life = life

    def check(self, needs: Needs) -> None:
        self._life.spend(lambda: self._launcher.check(needs))

    def launch(self, runner_id: str, arguments: list[str], environment: Mapping[str, str], needs: Needs) -> None:
        self._life.spend(lambda: self._launcher.launch(runner_id, arguments, environment, needs))

    def stop(self, runner_id: str) -> None:
        self._life.spend(lambda: self._launcher.stop(runner_id))

    def runners(self, prefix: str, *, fresh: bool = False) -> dict[str, Runner]:
        return self._life.spend(lambda: self._launcher.runners(prefix, fresh=fresh))
