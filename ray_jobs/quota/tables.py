"""Results of a simulation and of a report as rows of text, for the terminal and the page. Pure."""

from __future__ import annotations

from collections.abc import Callable

from ray_jobs.jobs.progress import duration
from ray_jobs.quota.compare import FlavorUse, Replay, TeamWaits
from ray_jobs.quota.report import Report, ReportRow

TextTable = tuple[list[str], list[list[str]]]
"""Columns and rows."""
ARROW = " → "


def team_rows(before: Replay, after: Replay) -> TextTable:
    """One row a team, `present → proposed`; an unchanged value appears once."""
    columns = ["team", "jobs", "wait p50", "wait p95", "mean wait", "hours", "cost", "preempted", "never start"]
    shown: list[Callable[[TeamWaits], str]] = [
        lambda waits: _time(waits.p50_s),
        lambda waits: _time(waits.p95_s),
        lambda waits: _time(waits.mean_s),
        lambda waits: f"{waits.hours:,.1f}",
        lambda waits: f"{waits.cost:,.2f}",
        lambda waits: str(waits.preemptions),
        lambda waits: str(waits.never),
    ]
    pairs = zip(before.teams, after.teams, strict=True)
    return columns, [[a.team, str(a.jobs), *(_change(show(a), show(b)) for show in shown)] for a, b in pairs]


def flavor_rows(before: Replay, after: Replay) -> TextTable:
    """One row a flavor, `present → proposed`."""
    columns = ["flavor", "nominal", "utilisation", "hours used", "hours idle", "cost of use", "cost of the quota"]
    shown: list[Callable[[FlavorUse | None], str]] = [
        lambda use: "–" if use is None else f"{use.nominal:g}",
        lambda use: "–" if use is None or use.utilisation is None else f"{use.utilisation:.1%}",
        lambda use: "–" if use is None else f"{use.hours:,.1f}",
        lambda use: "–" if use is None else f"{use.idle_hours:,.1f}",
        lambda use: "–" if use is None else f"{use.used_cost:,.2f}",
        lambda use: "–" if use is None else f"{use.nominal_cost:,.2f}",
    ]
    old, new = {use.flavor: use for use in before.flavors}, {use.flavor: use for use in after.flavors}
    names = list(dict.fromkeys([*old, *new]))
    return columns, [[name, *(_change(show(old.get(name)), show(new.get(name))) for show in shown)] for name in names]


def report_rows(report: Report) -> TextTable:
    """One row each, and the total. Empty columns are left out."""
    every: list[tuple[str, Callable[[ReportRow], float | None], str]] = [
        ("GPU h", lambda row: row.gpu_hours, ",.2f"),
        ("idle GPU h", lambda row: row.idle_gpu_hours, ",.2f"),
        ("core h", lambda row: row.core_hours, ",.2f"),
        ("idle core h", lambda row: row.idle_core_hours, ",.2f"),
        ("cost", lambda row: row.cost, ",.2f"),
        ("idle cost", lambda row: row.idle_cost, ",.2f"),
    ]
    rows = [*report.rows, report.total]
    kept = [column for column in every if any(column[1](row) for row in rows)] or every[:1]
    columns = [report.by, "jobs", *(name for name, _, _ in kept)]
    return columns, [
        [
            row.name,
            str(row.jobs),
            *("" if (value := get(row)) is None else format(value, form) for _, get, form in kept),
        ]
        for row in rows
    ]


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds)


def _change(before: str, after: str) -> str:
    return before if before == after else before + ARROW + after
