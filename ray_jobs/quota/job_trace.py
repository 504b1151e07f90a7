"""The job trace: past jobs with their arrival, the time they held their workers, and the number of workers.

Reads the job records and, for training whose record is gone, the usage ledger (`ray_jobs.tenancy.usage`), which has the
day and the hours but not the arrival. Does not know quotas.

    trace = read(store, since=date(2026, 11, 1))
    trace.jobs     # for `simulate`
    trace.notes()  # what is left out, and why
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Literal

from ray_jobs import jobs
from ray_jobs.errors import SpecError
from ray_jobs.jobs import JobRecord
from ray_jobs.kueue.pool import UnitKind
from ray_jobs.kueue.simulate import QueuedJob
from ray_jobs.spec import parse_spec
from ray_jobs.storage import Store, Workspace
from ray_jobs.storage.workspace import teams
from ray_jobs.tenancy import usage
from ray_jobs.tenancy.usage import UsageRow

LeftOut = Literal["still runs or waits", "never started", "record that cannot be read", "only in the ledger"]
_READS_AT_ONCE = 16
_LEDGER_WRITER = re.compile(r".+-[0-9a-f]{10}")
"""The writer of a ledger's training rows: a job's id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastJob(QueuedJob):
    """A job that has ended, or is cut off at `now`; `name` is its id. `duration_s`: seconds in which it held its
    workers, over all attempts."""

    model: str
    ended_at: datetime


@dataclass(frozen=True)
class JobTrace:
    """Past jobs of a period."""

    jobs: tuple[PastJob, ...]
    """By arrival."""
    ledger_jobs: tuple[tuple[str, UsageRow], ...] = ()
    """Job and usage of training whose record is gone: it counts in a report and cannot be replayed."""
    left_out: tuple[tuple[str, LeftOut], ...] = ()
    """Job and why."""

    def arrived(self, first: date, last: date) -> JobTrace:
        """The trace with only the jobs that arrived in these days, for a replay."""
        inside = [job for job in self.jobs if first <= datetime.fromtimestamp(job.arrival_s, UTC).date() <= last]
        return replace(self, jobs=tuple(inside))

    def notes(self) -> list[str]:
        """One line for each reason to leave jobs out of a replay."""
        counts: Counter[LeftOut] = Counter(why for _, why in self.left_out)
        counts["only in the ledger"] += len(self.ledger_jobs)
        return [f"{count} job(s) left out: {why}" for why, count in counts.items() if count]


def read(store: Store, *, since: date = date.min, until: date = date.max, now: datetime | None = None) -> JobTrace:
    """Jobs that arrived or held workers from `since` to `until`, both included (UTC days).

    `now`: running jobs are included as if they ended then; without it they are left out.
    """
    homes = [Workspace(store, team) for team in teams(store)]
    records = [(home, record) for home in homes for record in jobs.list_jobs(home)]
    inside = [
        (home, each) for home, each in records if _day(each.created_at) <= until and _day(_ended_at(each, now)) >= since
    ]
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        earlier_s = list(pool.map(lambda pair: _earlier_s(*pair), inside))
    found: list[PastJob] = []
    left_out: list[tuple[str, LeftOut]] = []
    for (home, record), seconds in zip(inside, earlier_s, strict=True):
        past = past_job(record, home.team, now=now, earlier_s=seconds)
        if isinstance(past, PastJob):
            found.append(past)
        else:
            left_out.append((record.id, past))
    found.sort(key=lambda job: (job.arrival_s, job.name))
    ledger_jobs = _ledger_jobs(store, {record.id for _, record in records}, since, until)
    return JobTrace(tuple(found), tuple(ledger_jobs), tuple(left_out))


def past_job(record: JobRecord, team: str, *, now: datetime | None = None, earlier_s: float = 0.0) -> PastJob | LeftOut:
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
        name=record.id,
        team=team,
        arrival_s=record.created_at.timestamp(),
        duration_s=max(0.0, (ended_at - record.started_at).total_seconds()) + earlier_s,
        units=compute.workers * (compute.gpus_per_worker if kind == "gpu" else compute.cpus_per_worker),
        kind=kind,
        priority=spec.priority,
        model=spec.name,
        ended_at=ended_at,
    )


def _ended_at(record: JobRecord, now: datetime | None) -> datetime:
    return record.finished_at or record.cancelled_at or now or datetime.max.replace(tzinfo=UTC)


def _day(at: datetime) -> date:
    return at.astimezone(UTC).date()


def _earlier_s(store: Workspace, record: JobRecord) -> float:
    """Seconds of the stages that earlier attempts finished; the record has no times of these attempts."""
    if record.attempt <= 1:
        return 0.0
    return sum(stage.seconds for stage in jobs.stages(store, record.id) if stage.attempt < record.attempt)


def _ledger_jobs(store: Store, known: set[str], first: date, last: date) -> Iterator[tuple[str, UsageRow]]:
    days = [
        f"{team}/{day}"
        for team in store.list_dirs(usage.PREFIX)
        for day in store.list_dirs(f"{usage.PREFIX}{team}/")
        if first.isoformat() <= day <= last.isoformat()
    ]

    def is_wanted(writer: str) -> bool:
        return _LEDGER_WRITER.fullmatch(writer) is not None and writer not in known

    for job, rows in usage.rows_of(store, days, is_wanted):
        yield from ((job, row) for row in rows if row.kind == "training")
