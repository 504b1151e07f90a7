"""Compiles constraints before their request is sent to an engine, and remembers the verdicts.

Owns the worker process and the order in which constraints wait for it: one of each team at a time, so that a team's
slow ones delay its own requests. Does not know how a grammar is compiled (`grammar_worker`).

    grammars = Grammars()
    await grammars.check(constraints, team)  # ApiError 400 for one that does not compile
    await grammars.close()
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from serving.http.errors import ApiError, bad_request
from serving.inference.constraints import Constraint
from serving.inference.grammar_worker import WALL_S

logger = logging.getLogger(__name__)

_REMEMBERED = 4096
_MAX_WAITING = 16
"""Requests of one team that wait for a verdict."""
_START_S = 60.0
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
"""The worker reads hostile text: it gets no credentials."""


class Grammars:
    """Verdicts of one process. Bound to one event loop."""

    def __init__(self) -> None:
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        """Digest of a constraint → why it is refused, or None."""
        self._worker: Process | None = None
        self._working = asyncio.Lock()
        self._teams: dict[str, tuple[asyncio.Lock, int]] = {}
        """Team → lock and number of its requests that wait for it or hold it."""

    async def check(self, constraints: Sequence[Constraint], team: str) -> None:
        """Raise ApiError 400 for a constraint that does not compile within its limits, 429 or 503 while none can be
        compiled."""
        for constraint in constraints:
            key = hashlib.sha256(f"{constraint.kind} {constraint.text}".encode()).digest()
            if key not in self._verdicts:
                await self._judge_in_turn(key, constraint, team)
            problem = self._verdicts[key]
            self._verdicts.move_to_end(key)
            if problem is not None:
                message = f"{constraint.where} {problem}"
                raise bad_request(message, param=constraint.where, code="invalid_constraint")

    async def start(self) -> None:
        """Start the worker, which takes seconds, before the first request with a constraint needs it."""
        async with self._working:
            await self._running()

    async def close(self) -> None:
        """End the worker."""
        if self._worker is not None and self._worker.returncode is None:
            self._worker.kill()
            await self._worker.wait()
        self._worker = None

    async def _judge_in_turn(self, key: bytes, constraint: Constraint, team: str) -> None:
        lock, waiting = self._teams.get(team, (asyncio.Lock(), 0))
        if waiting >= _MAX_WAITING:
            message = f"{waiting} requests of this team already wait for their constraints to be compiled: try again"
            raise ApiError(429, message, code="overloaded", headers={"Retry-After": "2"})
        self._teams[team] = lock, waiting + 1
        try:
            async with lock, self._working:
                if key not in self._verdicts:
                    self._verdicts[key] = await self._judge(constraint)
                    while len(self._verdicts) > _REMEMBERED:
                        self._verdicts.popitem(last=False)
        finally:
            waiting = self._teams[team][1] - 1
            self._teams[team] = lock, waiting
            if waiting == 0:
                del self._teams[team]

    async def _judge(self, constraint: Constraint) -> str | None:
        worker = await self._running()
        assert worker.stdin is not None
        line = json.dumps({"kind": constraint.kind, "text": constraint.text})
        try:
            worker.stdin.write(f"{line}\n".encode())
            await worker.stdin.drain()
            verdict = await self._answer(worker, WALL_S + 5)
        except OSError as error:  # it was ended meanwhile
            await self.close()
            raise _unavailable() from error
        except BaseException:  # also a client that goes away: the next answer would be that of its constraint
            await self.close()
            raise
        if "busy" in verdict:
            raise _unavailable()
        problem: str | None = verdict.get("problem")
        return problem

    async def _running(self) -> Process:
        if self._worker is None or self._worker.returncode is not None:
            environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
            command = [sys.executable, "-m", "serving.inference.grammar_worker"]
            self._worker = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, limit=2**20
            )
            try:
                await self._answer(self._worker, _START_S)
            except BaseException:
                await self.close()
                raise
        return self._worker

    async def _answer(self, worker: Process, timeout_s: float) -> dict[str, Any]:
        assert worker.stdout is not None
        try:
            line = await asyncio.wait_for(worker.stdout.readline(), timeout_s)
            answer: dict[str, Any] = json.loads(line)
        except (TimeoutError, ValueError, OSError) as error:
            logger.error("the process that compiles constraints gave no answer: %s", type(error).__name__)
            raise _unavailable() from error
        return answer


def _unavailable() -> ApiError:
    message = "constraints cannot be compiled now; try again in a moment"
    return ApiError(503, message, code="overloaded", headers={"Retry-After": "2"})
