"""Past jobs, as the store tells of them: when they came, how long they held their workers, and how many.

Reads the job records; for training that the ledger knows of while its job's record is no more, the ledger
(`ray_jobs.tenancy.usage`), which has the day and the hours but not when the job came. Does not know quotas.

    past = read(store, since=date(2026, 11, 1))
    past.works()        # for `simulate`
    past.notes()        # what is left out, and why
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Literal

from ray_jobs import jobs
from ray_jobs.errors import SpecError
from ray_jobs.jobs import JobRecord
from ray_jobs.quota.pool import Kind
from ray_jobs.quota.simulate import Work
from ray_jobs.registry.api_names import DEFAULT_TEAM
from ray_jobs.spec import parse_spec
from ray_jobs.storage import Store
from ray_jobs.tenancy import usage

LeftOut = Literal["still runs or waits", "never started", "record that cannot be read", "only in the ledger"]
_READS_AT_ONCE = 16
_LEDGER_ROW = re.compile(r"(?P<job>.+-[0-9a-f]{10})-\d{6}\.json")
"""Of training, whose writer is a job's id."""


@dataclass(frozen=True)
class PastJob:
    """One job that is over, or was cut off by `now`."""

    id: str
    team: str
    model: str
    arrived_at: datetime
    started_at: datetime
    """Of its newest attempt."""
    ended_at: datetime
    seconds: float
    """For which it held its workers, over all attempts."""
    workers: int
    units: float
    """GPUs that it held or, of a job that asked for none, cores."""
    kind: Kind
    priority: int
    status: str
    attempts: int

    @property
    def waited_s(self) -> float | None:
        """What it did wait. None: it had several attempts, and only the start of the last is known."""
        return (self.started_at - self.arrived_at).total_seconds() if self.attempts == 1 else None

    @property
    def hours(self) -> float:
        """Units × hours."""
        return self.units * self.seconds / 3600

    def work(self) -> Work:
        return Work(
            name=self.id,
            team=self.team,
            arrival_s=self.arrived_at.timestamp(),
            duration_s=self.seconds,
            units=self.units,
            kind=self.kind,
            priority=self.priority,
        )


@dataclass(frozen=True)
class Unplaced:
    """Training of which only the ledger is left: it counts in a report and cannot be replayed."""

    id: str
    team: str
    model: str
    day: date
    worker_hours: float
    gpu_hours: float


@dataclass(frozen=True)
class Past:
    """What was found."""

    jobs: tuple[PastJob, ...]
    """By arrival."""
    unplaced: tuple[Unplaced, ...] = ()
    left_out: tuple[tuple[str, LeftOut], ...] = ()
    """Job and why."""

    def works(self) -> list[Work]:
        return [job.work() for job in self.jobs]

    def arrived(self, first: date | None, last: date | None = None) -> Past:
        """Only the jobs that came in these days, for a replay."""
        inside = [job for job in self.jobs if (first or date.min) <= _day(job.arrived_at) <= (last or date.max)]
        return replace(self, jobs=tuple(inside))

    def notes(self) -> list[str]:
        """A line for each reason for which jobs are left out of a replay."""
        counts: Counter[LeftOut] = Counter(why for _, why in self.left_out)
        counts["only in the ledger"] += len(self.unplaced)
        return [f"{count} job(s) left out: {why}" for why, count in counts.items() if count]


def read(store: Store, *, since: date | None = None, until: date | None = None, now: datetime | None = None) -> Past:
    """Jobs that came or held workers from `since` to `until`, both included (days are UTC's). None: no bound.

    `now`: jobs that still run are there too, as if they ended then; without it they are left out.
    """
    first, last = since or date.min, until or date.max
    records = jobs.list_jobs(store)
    inside = [record for record in records if _day(record.created_at) <= last and _day(_ended_at(record, now)) >= first]
    again = [record for record in inside if record.attempt > 1]
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        earlier = dict(zip((r.id for r in again), pool.map(lambda r: _earlier_s(store, r), again), strict=True))
    found: list[PastJob] = []
    left_out: list[tuple[str, LeftOut]] = []
    for record in inside:
        past = past_job(record, now=now, earlier_s=earlier.get(record.id, 0.0))
        if isinstance(past, PastJob):
            found.append(past)
        else:
            left_out.append((record.id, past))
    unplaced = _unplaced(store, {record.id for record in records}, first, last)
    return Past(tuple(sorted(found, key=lambda job: (job.arrived_at, job.id))), unplaced, tuple(left_out))


def past_job(record: JobRecord, *, now: datetime | None = None, earlier_s: float = 0.0) -> PastJob | LeftOut:
    """What a record tells, or why it tells too little. `earlier_s`: seconds that earlier attempts held the workers;
    `now`: as `read`."""
    if record.status in ("queued", "paused") or (record.status == "running" and now is None):
        return "still runs or waits"
    if record.started_at is None:
        return "never started"
    try:
        spec = parse_spec(record.spec, source=record.id, stored=True)
    except SpecError:
        return "record that cannot be read"
    compute = spec.compute
    kind: Kind = "gpu" if compute.gpus_per_worker else "cpu"
    ended_at = _ended_at(record, now)
    return PastJob(
        id=record.id,
        team=spec.team or DEFAULT_TEAM,
        model=spec.name,
        arrived_at=record.created_at,
        started_at=record.started_at,
        ended_at=ended_at,
        seconds=max(0.0, (ended_at - record.started_at).total_seconds()) + earlier_s,
        workers=compute.workers,
        units=compute.workers * (compute.gpus_per_worker if kind == "gpu" else compute.cpus_per_worker),
        kind=kind,
        priority=spec.priority,
        status=record.status,
        attempts=record.attempt,
    )


def _ended_at(record: JobRecord, now: datetime | None) -> datetime:
    return record.finished_at or record.cancelled_at or now or datetime.max.replace(tzinfo=UTC)


def _day(at: datetime) -> date:
    return at.astimezone(UTC).date() if at.year < 9999 else date.max


def _earlier_s(store: Store, record: JobRecord) -> float:
    """Of earlier attempts the record keeps no times, but the stages that they finished do."""
    return sum(stage.seconds for stage in jobs.stages(store, record.id) if stage.attempt < record.attempt)


def _unplaced(store: Store, known: set[str], first: date, last: date) -> tuple[Unplaced, ...]:
    keys = [
        (day, info.key, parts["job"])
        for team in store.list_dirs(usage.PREFIX)
        for day in map(date.fromisoformat, store.list_dirs(f"{usage.PREFIX}{team}/"))
        if first <= day <= last
        for info in store.list(f"{usage.PREFIX}{team}/{day.isoformat()}/")
        if (parts := _LEDGER_ROW.fullmatch(info.key.rpartition("/")[2])) is not None and parts["job"] not in known
    ]
    documents = usage.rows_at(store, [key for _, key, _ in keys])
    return tuple(
        Unplaced(job, row.team, row.model, day, row.worker_seconds / 3600, row.gpu_seconds / 3600)
        for (day, _, job), rows in zip(keys, documents, strict=True)
        for row in rows
        if row.kind == "training"
    )


def remaining_s(durations: Sequence[float], elapsed_s: float) -> float | None:
    """How much longer a job that has run for `elapsed_s` is likely to run: the median of what was left of those past
    jobs that ran longer. If none did, as long again as it has run; None if there are no past jobs."""
    if not durations:
        return None
    left = sorted(duration - elapsed_s for duration in durations if duration > elapsed_s)
    return left[len(left) // 2] if left else elapsed_s
