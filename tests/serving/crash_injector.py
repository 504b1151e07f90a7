"""Injects a process crash at a chosen request to the store or the launcher, within the test process.

A crash raises `Crashed`, after which all further requests of the simulated process raise too. Written data stays. The
crash happens before the request is made, or after it is made and before its response arrives: the two effects that
`kill -9` can have on a store.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ray_jobs.launch.launcher import Launcher, Needs, Runner
from ray_jobs.storage import Store, Workspace

T = TypeVar("T")


class Crashed(BaseException):
    """Not an Exception, so that no error handler of the code under test catches it."""


class CrashPoint:
    """The request at which one simulated process crashes."""

    def __init__(self, crash_at: int | None = None, *, answers: bool = True) -> None:
        """Crash at request number `crash_at` (None: never): before it is made or, if `answers`, after it."""
        self.requests = 0
        self.crashed = False
        self._crash_at = crash_at
        self._answers = answers
        self._lock = threading.Lock()

    def call(self, request: Callable[[], T]) -> T:
        """Make a request, or crash."""
        with self._lock:
            if self.crashed:  # by another thread of the same process
                raise Crashed
            self.requests += 1
            last = self.requests == self._crash_at
            self.crashed = last
        if last and not self._answers:
            raise Crashed
        try:
            return request()
        finally:
            if last:
                raise Crashed


class _CrashingClient:
    """An S3 client whose requests may crash."""

    def __init__(self, client: Any, crash: CrashPoint) -> None:
        self._client = client
        self._crash = crash

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda **arguments: self._crash.call(lambda: method(**arguments))


def crashing_store(store: Workspace, crash: CrashPoint) -> Workspace:
    """Return the store with requests that count toward a crash point. Replaces the S3 client, which is private."""
    inner = Store(store.uri(), store._bucket.settings, cache=store._cache)
    inner._bucket = replace(inner._bucket, clock=store._bucket.clock)
    twin = Workspace(inner, store.team)
    twin._bucket._clients[os.getpid()] = _CrashingClient(store._bucket._client(), crash)  # type: ignore[assignment]
    return twin


class CrashingLauncher:
    """A launcher with calls that count toward a crash point."""

    def __init__(self, launcher: Launcher, crash: CrashPoint) -> None:
        self._launcher = launcher
        self._crash = crash

    def check(self, needs: Needs) -> None:
        self._crash.call(lambda: self._launcher.check(needs))

    def launch(self, runner_id: str, arguments: list[str], environment: Mapping[str, str], needs: Needs) -> None:
        self._crash.call(lambda: self._launcher.launch(runner_id, arguments, environment, needs))

    def stop(self, runner_id: str) -> None:
        self._crash.call(lambda: self._launcher.stop(runner_id))

    def runners(self, prefix: str, *, fresh: bool = False) -> dict[str, Runner]:
        return self._crash.call(lambda: self._launcher.runners(prefix, fresh=fresh))
