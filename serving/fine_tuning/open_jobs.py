"""Which open jobs a tick reconciles: a bounded number of them, those first whose next action can have become due.

A reconciliation costs two or three requests to the store, so a tick does not do it for every open job. One listing of
the markers and one answer of the launcher show which jobs are new and whose runners have changed; jobs with an action
that waits for its time are pending; all others take turns. Owns what one process has seen. Makes no request.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ray_jobs.launch.launcher import UNKNOWN, Runner
from serving.fine_tuning.records import OpenJob

LOOKS_PER_TICK = 64
"""Jobs that one tick reconciles at most. With more open jobs, a quiet one has its turn every (jobs ÷ 64) ticks."""
_IN_TURN = 4
"""One of so many looks of a tick goes to the job that was looked at longest ago, so that none waits forever."""

Urgency = Literal[0, 1, 2]
"""0: new, or its runner changed. 1: pending, or its runner's message changed. 2: quiet."""


@dataclass(frozen=True)
class Look:
    """What a process saw when it last reconciled a job."""

    tick: int
    runner: Runner
    """Its newest runner, as the launcher listed it before."""
    team: str | None = None
    status: str | None = None
    pending: bool = False
    """An action waits for its time, or failed."""


@dataclass
class OpenJobs:
    """The open jobs as one process has seen them. Thread-safe."""

    looks_per_tick: int = LOOKS_PER_TICK
    _seen: dict[str, Look] = field(default_factory=dict)
    """By job id."""
    _tick: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def choose(self, listed: Sequence[OpenJob], runners: Mapping[str, Runner] | None) -> list[OpenJob]:
        """The jobs to reconcile now, the most urgent first.

        `listed`: every open job. `runners`: the newest runner of each job; None: the launcher does not answer.
        """
        with self._lock:
            self._tick += 1
            ids = {job.id for job in listed}
            self._seen = {identifier: look for identifier, look in self._seen.items() if identifier in ids}
            by_age = sorted(listed, key=lambda job: self._last_tick(job.id))
            chosen = by_age[: -(-self.looks_per_tick // _IN_TURN)]
            taken = {job.id for job in chosen}
            ranks: Counter[tuple[Urgency, str]] = Counter()
            order: list[tuple[Urgency, int, OpenJob]] = []
            for job in by_age:
                urgency = self._urgency(job.id, runners)
                # By rank among the key's own: a key with thousands of jobs does not delay another's only one.
                order.append((urgency, ranks[urgency, job.key_id], job))
                ranks[urgency, job.key_id] += 1
            order.sort(key=lambda entry: entry[:2])
            rest = [job for _, _, job in order if job.id not in taken]
            urgent = rest[: self.looks_per_tick - len(chosen)]
            for job in (*urgent, *chosen):
                runner = UNKNOWN if runners is None else runners.get(job.id, UNKNOWN)
                known = self._seen.get(job.id)
                self._seen[job.id] = (
                    Look(self._tick, runner) if known is None else replace(known, tick=self._tick, runner=runner)
                )
            return urgent + chosen

    def looked(self, identifier: str, team: str | None, status: str | None, *, pending: bool) -> None:
        """Record the result of a reconciliation."""
        with self._lock:
            if (known := self._seen.get(identifier)) is not None:
                self._seen[identifier] = replace(known, team=team, status=status, pending=pending)

    def touch(self, identifier: str) -> None:
        """Reconcile a job with the next tick: a request has changed it."""
        with self._lock:
            if (known := self._seen.get(identifier)) is not None:
                self._seen[identifier] = replace(known, pending=True)

    def team(self, identifier: str) -> str | None:
        """The job's team, which its marker names and which never changes. None: not read yet."""
        look = self._seen.get(identifier)
        return None if look is None else look.team

    def statuses(self) -> dict[str, int]:
        """Number of open jobs by the status that each had when it was last looked at."""
        with self._lock:
            return dict(Counter(look.status for look in self._seen.values() if look.status is not None))

    def _last_tick(self, identifier: str) -> int:
        look = self._seen.get(identifier)
        return 0 if look is None else look.tick

    def _urgency(self, identifier: str, runners: Mapping[str, Runner] | None) -> Urgency:
        look = self._seen.get(identifier)
        if look is None:
            return 0
        runner = look.runner if runners is None else runners.get(identifier, UNKNOWN)
        if replace(runner, message="") != replace(look.runner, message=""):
            return 0
        return 1 if look.pending or runner.message != look.runner.message else 2
