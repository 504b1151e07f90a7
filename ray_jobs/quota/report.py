"""What teams, jobs and models took of the quotas: hours, idle hours, cost. Pure.

A job's flavour is not in its record: its hours are priced as the first flavour of its team that has what it asked for
(GPUs or cores), the one in which Kueue looks first. Idle hours are what a team's nominal quota would have given over
the time, less what its jobs used; a team that borrowed more than it left unused has none.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Literal

from ray_jobs.quota.job_trace import Past
from ray_jobs.quota.pool import Kind, Pool

By = Literal["team", "job", "model"]


@dataclass(frozen=True)
class Row:
    """What one team, job or model took. The idle hours are None where there is nothing to measure them by: of jobs and
    models, and of a team without a quota; cost where no flavour has a price."""

    name: str
    jobs: int = 0
    gpu_hours: float = 0.0
    idle_gpu_hours: float | None = None
    core_hours: float = 0.0
    """Of jobs that asked for no GPU."""
    idle_core_hours: float | None = None
    cost: float | None = None
    idle_cost: float | None = None


@dataclass(frozen=True)
class Report:
    by: By
    begin: datetime
    end: datetime
    rows: tuple[Row, ...]
    total: Row
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Piece:
    """Hours of one job within the time of the report."""

    team: str
    job: str
    model: str
    kind: Kind
    hours: float


def report(past: Past, pool: Pool | None, begin: datetime, end: datetime, by: By) -> Report:
    """`past` with the jobs that ran then. `pool` None: nothing is idle and nothing has a price."""
    pieces = list(_pieces(past, begin, end))
    grouped: dict[str, list[_Piece]] = defaultdict(list)
    if by == "team" and pool is not None:
        grouped.update({team: [] for team in pool.teams})
    for piece in pieces:
        grouped[{"team": piece.team, "job": piece.job, "model": piece.model}[by]].append(piece)
    span_hours = max(0.0, (end - begin).total_seconds() / 3600)
    rows = []
    for name in sorted(grouped):
        row = _row(name, grouped[name], pool)
        if by == "team" and pool is not None and name in pool.teams:
            row = _with_idle(row, pool, [name], span_hours)
        rows.append(row)
    total = _row("total", pieces, pool)
    if pool is not None:
        total = _with_idle(total, pool, list(pool.teams), span_hours)
    return Report(by, begin, end, tuple(rows), total, tuple(_notes(past, pieces, pool)))


def as_csv(report: Report) -> str:
    """A line a row, and no sum below: what adds the lines up must not count it twice."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [field.name for field in fields(Row)][1:]
    writer.writerow([report.by, *names])
    for row in report.rows:
        values = asdict(row)
        writer.writerow([row.name, *("" if values[name] is None else _figure(values[name]) for name in names)])
    return out.getvalue()


def _figure(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _pieces(past: Past, begin: datetime, end: datetime) -> Iterable[_Piece]:
    for job in past.jobs:
        # Of earlier attempts the times are not known: they are taken to be right before the last one.
        first = max(begin.timestamp(), job.ended_at.timestamp() - job.seconds)
        inside_s = min(end.timestamp(), job.ended_at.timestamp()) - first
        if inside_s > 0:
            yield _Piece(job.team, job.id, job.model, job.kind, inside_s * job.units / 3600)
    for ledger in past.unplaced:
        if begin.date() <= ledger.day <= end.date():
            kind: Kind = "gpu" if ledger.gpu_hours else "cpu"
            hours = ledger.gpu_hours or ledger.worker_hours
            yield _Piece(ledger.team, ledger.id, ledger.model, kind, hours)


def _row(name: str, pieces: list[_Piece], pool: Pool | None) -> Row:
    priced = pool is not None and bool(pool.prices)
    return Row(
        name=name,
        jobs=len({piece.job for piece in pieces}),
        gpu_hours=sum(piece.hours for piece in pieces if piece.kind == "gpu"),
        core_hours=sum(piece.hours for piece in pieces if piece.kind == "cpu"),
        cost=sum(piece.hours * _price(pool, piece.team, piece.kind) for piece in pieces)
        if pool is not None and priced
        else None,
    )


def _with_idle(row: Row, pool: Pool, teams: list[str], span_hours: float) -> Row:
    idle: dict[Kind, float] = {}
    cost = 0.0
    used: dict[Kind, float] = {"gpu": row.gpu_hours, "cpu": row.core_hours}
    for kind, hours in used.items():
        quotas = [
            (float(pool.teams[team].limits[flavor].nominal) * span_hours, pool.price(flavor))
            for team in teams
            for flavor in pool.flavors_of(team, kind)
        ]
        whole = sum(quota for quota, _ in quotas)
        idle[kind] = max(0.0, whole - hours)
        # What lies idle is taken to be spread over the flavours as the quota is.
        cost += idle[kind] * sum(quota * price for quota, price in quotas) / whole if whole else 0.0
    return replace(
        row,
        idle_gpu_hours=idle["gpu"],
        idle_core_hours=idle["cpu"],
        idle_cost=cost if pool.prices else None,
    )


def _price(pool: Pool, team: str, kind: Kind) -> float:
    if team not in pool.teams:
        return 0.0
    flavors = pool.flavors_of(team, kind)
    return pool.price(flavors[0]) if flavors else 0.0


def _notes(past: Past, pieces: list[_Piece], pool: Pool | None) -> Iterable[str]:
    yield from (note for note in past.notes() if "ledger" not in note)
    if past.unplaced:
        yield f"{len(past.unplaced)} job(s) without a record: their hours are the ledger's, on the day of their end"
    if pool is None:
        yield "no quotas to measure idle hours by: let the cluster be reached, or name a file with --quota"
        return
    strangers = sorted({piece.team for piece in pieces} - set(pool.teams))
    if strangers:
        yield f"no quota, so no idle hours and no price: {', '.join(strangers)}"
    unpriced = sorted({f for team in pool.teams.values() for f in team.limits if f not in pool.prices})
    if unpriced and pool.prices:
        yield f"no price_per_hour, counted as 0: {', '.join(unpriced)}"
    if not pool.prices:
        yield "no prices: price_per_hour of a flavour is in the cluster's settings, or in the file of --quota"
