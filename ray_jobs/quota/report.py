"""Hours, idle hours and cost of teams, jobs and models. Pure.

A job's record does not have its flavor: its hours are priced as the first flavor of its team in its unit (GPUs or
cores), which Kueue tries first. Idle hours are the hours of a team's nominal quota less those that its jobs used. A
team that borrowed more than it left unused has none.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime
from typing import Literal

from ray_jobs.kueue.pool import Pool, UnitKind
from ray_jobs.quota.job_trace import JobTrace

ReportBy = Literal["team", "job", "model"]


@dataclass(frozen=True)
class ReportRow:
    """One team, job or model. Idle hours are None for jobs, models and teams without a quota; cost is None if no flavor
    has a price."""

    name: str
    jobs: int = 0
    gpu_hours: float = 0.0
    idle_gpu_hours: float | None = None
    core_hours: float = 0.0
    """Core hours of jobs that requested no GPU."""
    idle_core_hours: float | None = None
    cost: float | None = None
    idle_cost: float | None = None


@dataclass(frozen=True)
class Report:
    by: ReportBy
    begin: datetime
    end: datetime
    rows: tuple[ReportRow, ...]
    total: ReportRow
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _JobHours:
    """Hours of one job within the period of the report."""

    team: str
    job: str
    model: str
    kind: UnitKind
    hours: float


def report(trace: JobTrace, pool: Pool | None, begin: datetime, end: datetime, by: ReportBy) -> Report:
    """Report on the jobs that ran in the period. `pool` None: no idle hours and no prices."""
    pieces = list(_pieces(trace, begin, end))
    grouped: dict[str, list[_JobHours]] = defaultdict(list)
    if by == "team" and pool is not None:
        grouped.update({team: [] for team in pool.teams})
    for piece in pieces:
        grouped[{"team": piece.team, "job": piece.job, "model": piece.model}[by]].append(piece)
    span_hours = max(0.0, (end - begin).total_seconds() / 3600)
    rows = [_row(name, grouped[name], pool) for name in sorted(grouped)]
    total = _row("total", pieces, pool)
    if pool is not None:
        total = _with_idle(total, pool, list(pool.teams), span_hours)
        if by == "team":
            rows = [_with_idle(row, pool, [row.name], span_hours) if row.name in pool.teams else row for row in rows]
    return Report(by, begin, end, tuple(rows), total, tuple(_notes(trace, pieces, pool)))


def as_csv(report: Report) -> str:
    """One line a row, without the total, so that a sum over the lines is correct."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([report.by, *(field.name for field in fields(ReportRow)[1:])])
    for row in report.rows:
        writer.writerow(map(_cell, astuple(row)))
    return out.getvalue()


def _cell(value: str | float | None) -> str:
    """Six digits after the point at most; empty for None."""
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return "" if value is None else str(value)


def _pieces(trace: JobTrace, begin: datetime, end: datetime) -> Iterable[_JobHours]:
    for job in trace.jobs:
        # The times of earlier attempts are unknown: they are placed right before the last one.
        first = max(begin.timestamp(), job.ended_at.timestamp() - job.duration_s)
        inside_s = min(end.timestamp(), job.ended_at.timestamp()) - first
        if inside_s > 0:
            yield _JobHours(job.team, job.name, job.model, job.kind, inside_s * job.units / 3600)
    for name, row in trace.ledger_jobs:
        if begin.date() <= row.day <= end.date():
            kind: UnitKind = "gpu" if row.gpu_seconds else "cpu"
            yield _JobHours(row.team, name, row.model, kind, (row.gpu_seconds or row.worker_seconds) / 3600)


def _row(name: str, pieces: list[_JobHours], pool: Pool | None) -> ReportRow:
    cost = None
    if pool is not None and pool.prices:
        cost = sum(piece.hours * _price(pool, piece.team, piece.kind) for piece in pieces)
    return ReportRow(
        name=name,
        jobs=len({piece.job for piece in pieces}),
        gpu_hours=sum(piece.hours for piece in pieces if piece.kind == "gpu"),
        core_hours=sum(piece.hours for piece in pieces if piece.kind == "cpu"),
        cost=cost,
    )


def _with_idle(row: ReportRow, pool: Pool, teams: list[str], span_hours: float) -> ReportRow:
    idle, cost = {}, 0.0
    used: dict[UnitKind, float] = {"gpu": row.gpu_hours, "cpu": row.core_hours}
    for kind, hours in used.items():
        quotas = [
            (float(pool.teams[team].limits[flavor].nominal) * span_hours, pool.price(flavor))
            for team in teams
            for flavor in pool.flavors_of(team, kind)
        ]
        whole = sum(quota for quota, _ in quotas)
        idle[kind] = max(0.0, whole - hours)
        # Idle hours are spread over the flavors in proportion to the quota.
        cost += idle[kind] * sum(quota * price for quota, price in quotas) / whole if whole else 0.0
    idle_cost = cost if pool.prices else None
    return replace(row, idle_gpu_hours=idle["gpu"], idle_core_hours=idle["cpu"], idle_cost=idle_cost)


def _price(pool: Pool, team: str, kind: UnitKind) -> float:
    flavors = pool.flavors_of(team, kind) if team in pool.teams else []
    return pool.price(flavors[0]) if flavors else 0.0


def _notes(trace: JobTrace, pieces: list[_JobHours], pool: Pool | None) -> Iterable[str]:
    yield from (note for note in trace.notes() if "ledger" not in note)
    if trace.ledger_jobs:
        yield f"{len(trace.ledger_jobs)} job(s) without a record: hours of the ledger, on the day of the end"
    if pool is None:
        yield "no quotas, so no idle hours: connect to the cluster, or name a file with --quota"
        return
    without_quota = sorted({piece.team for piece in pieces} - set(pool.teams))
    if without_quota:
        yield f"no quota, so no idle hours and no price: {', '.join(without_quota)}"
    unpriced = sorted({f for team in pool.teams.values() for f in team.limits if f not in pool.prices})
    if unpriced and pool.prices:
        yield f"no price_per_hour, counted as 0: {', '.join(unpriced)}"
    if not pool.prices:
        yield "no prices: set price_per_hour of a flavor in the cluster's settings or in the file of --quota"
