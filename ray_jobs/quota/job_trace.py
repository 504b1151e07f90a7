"""The job trace: past jobs with their arrival, the time they held their workers, and the number of workers.

Reads the job records and, for training whose record is gone, the usage ledger (`ray_jobs.tenancy.usage`), which has the
day and the hours but not the arrival. Does not know quotas.

    trace = read(store, since=date(2026, 11, 1))
    trace.queued_jobs()  # for `simulate`
    trace.notes()        # what is left out, and why
"""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Literal

from ray_jobs import jobs
from ray_jobs.errors import SpecError
from ray_jobs.jobs import JobRecord
from ray_jobs.kueue.pool import UnitKind
from ray_jobs.kueue.simulate import QueuedJob
from ray_jobs.registry.api_names import DEFAULT_TEAM
from ray_jobs.spec import parse_spec
from ray_jobs.storage import Store
from ray_jobs.tenancy import usage

LeftOut = Literal["still runs or waits", "never started", "record that cannot be read", "only in the ledger"]
_READS_AT_ONCE = 16
_LEDGER_ROW = re.compile(r"(?P<job>.+-[0-9a-f]{10})-\d{6}\.json")
"""Ledger documents of training, whose writer is a job's id."""


@dataclass(frozen=True)
class PastJob:
    """One job that has ended, or is cut off at `now`."""

    id: str
    team: str
    model: str
    arrived_at: datetime
    started_at: datetime
    """Start of its newest attempt."""
    ended_at: datetime
    seconds: float
    """Seconds in which it held its workers, over all attempts."""
    workers: int
    units: float
    """GPUs, or cores if it requested no GPU."""
    kind: UnitKind
    priority: int
    status: str
    attempts: int

    @property
    def waited_s(self) -> float | None:
        """Seconds from arrival to start. None: it had several attempts, and only the last start is known."""
        return (self.started_at - self.arrived_at).total_seconds() if self.attempts == 1 else None

    @property
    def hours(self) -> float:
        """GPU hours or core hours."""
        return self.units * self.seconds / 3600

    def queued_job(self) -> QueuedJob:
        return QueuedJob(
            name=self.id,
            team=self.team,
            arrival_s=self.arrived_at.timestamp(),
            duration_s=self.seconds,
            units=self.units,
            kind=self.kind,
            priority=self.priority,
        )


@dataclass(frozen=True)
class LedgerJob:
    """Training whose record is gone: it counts in a report and cannot be replayed."""

    id: str
    team: str
    model: str
    day: date
    worker_hours: float
    gpu_hours: float


@dataclass(frozen=True)
class JobTrace:
    """Past jobs of a period."""

    jobs: tuple[PastJob, ...]
    """By arrival."""
    ledger_jobs: tuple[LedgerJob, ...] = ()
    left_out: tuple[tuple[str, LeftOut], ...] = ()
    """Job and why."""

    def queued_jobs(self) -> list[QueuedJob]:
        return [job.queued_job() for job in self.jobs]

    def arrived(self, first: date | None, last: date | None = None) -> JobTrace:
        """The trace with only the jobs that arrived in these days, for a replay."""
        inside = [job for job in self.jobs if (first or date.min) <= _day(job.arrived_at) <= (last or date.max)]
        return replace(self, jobs=tuple(inside))

    def notes(self) -> list[str]:
        """One line for each reason to leave jobs out of a replay."""
        counts: Counter[LeftOut] = Counter(why for _, why in self.left_out)
        counts["only in the ledger"] += len(self.ledger_jobs)
        return [f"{count} job(s) left out: {why}" for why, count in counts.items() if count]


def read(
    store: Store, *, since: date | None = None, until: date | None = None, now: datetime | None = None
) -> JobTrace:
    """Jobs that arrived or held workers from `since` to `until`, both included (UTC days). None: no bound.

    `now`: running jobs are included as if they ended then; without it they are left out.
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
    ledger_jobs = _ledger_jobs(store, {record.id for record in records}, first, last)
    return JobTrace(tuple(sorted(found, key=lambda job: (job.arrived_at, job.id))), ledger_jobs, tuple(left_out))


def past_job(record: JobRecord, *, now: datetime | None = None, earlier_s: float = 0.0) -> PastJob | LeftOut:
    """A record's job, or the reason to leave it out. `earlier_s`: seconds of earlier attempts; `now`: see `read`."""
    if record.status in ("queued", "paused") or (record.status == "running" and now is None):
        return "still runs or waits"
    if record.started_at is None:
        return "never started"
    try:
        spec = parse_spec(record.spec, source=record.id, stored=True)
    except SpecError:
        return "record that cannot be read"
    compute = spec.compute
    kind: UnitKind = "gpu" if compute.gpus_per_worker else "cpu"
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
    """Seconds of the stages that earlier attempts finished; the record has no times of these attempts."""
    return sum(stage.seconds for stage in jobs.stages(store, record.id) if stage.attempt < record.attempt)


def _ledger_jobs(store: Store, known: set[str], first: date, last: date) -> tuple[LedgerJob, ...]:
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
        LedgerJob(job, row.team, row.model, day, row.worker_seconds / 3600, row.gpu_seconds / 3600)
        for (day, _, job), rows in zip(keys, documents, strict=True)
        for row in rows
        if row.kind == "training"
    )
