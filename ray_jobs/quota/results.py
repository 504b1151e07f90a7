"""Results of a simulation and of a report: tables of text, and a self-contained HTML page with plots. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, TypeVar

import numpy as np

from ray_jobs import pages
from ray_jobs.jobs.progress import duration
from ray_jobs.kueue.simulate import QueuedJobOutcome
from ray_jobs.pages import BLUE, GREY, RED, Chart, PageSection, Table, plots
from ray_jobs.pages.plots import Line
from ray_jobs.quota.compare import ALL, FlavorUse, Replay, TeamWaits, steps
from ray_jobs.quota.report import Report, ReportRow

TextTable = tuple[list[str], list[list[str]]]
"""Columns and rows."""
T = TypeVar("T")
_POINTS = 300
"""Most points of a line."""
_MOST_BARS = 40
_LABEL_LENGTH = 26
_SIDES = (("present", BLUE, "solid"), ("proposed", RED, "dash"))
_LEGEND = {"showlegend": True, "legend": {"orientation": "h", "y": 1.12}}

Points = Sequence[tuple[float, float]]


# ---- tables


def team_rows(before: Replay, after: Replay) -> TextTable:
    """One row a team, `present → proposed`; an unchanged value appears once."""
    shown: dict[str, Callable[[TeamWaits], str]] = {
        "wait p50": lambda waits: _time(waits.p50_s),
        "wait p95": lambda waits: _time(waits.p95_s),
        "mean wait": lambda waits: _time(waits.mean_s),
        "hours": lambda waits: f"{waits.hours:,.1f}",
        "cost": lambda waits: f"{waits.cost:,.2f}",
        "preempted": lambda waits: str(waits.preemptions),
        "never start": lambda waits: str(waits.never),
    }
    pairs = zip(before.teams, after.teams, strict=True)
    rows = [[old.team, str(old.jobs), *_changes(shown, old, new)] for old, new in pairs]
    return ["team", "jobs", *shown], rows


def flavor_rows(before: Replay, after: Replay) -> TextTable:
    """One row a flavor, `present → proposed`."""
    shown: dict[str, Callable[[FlavorUse], str]] = {
        "nominal": lambda use: f"{use.nominal:g}",
        "utilisation": lambda use: "–" if use.utilisation is None else f"{use.utilisation:.1%}",
        "hours used": lambda use: f"{use.hours:,.1f}",
        "hours idle": lambda use: f"{use.idle_hours:,.1f}",
        "cost of use": lambda use: f"{use.used_cost:,.2f}",
        "cost of the quota": lambda use: f"{use.nominal_cost:,.2f}",
    }
    old, new = {use.flavor: use for use in before.flavors}, {use.flavor: use for use in after.flavors}
    return ["flavor", *shown], [[name, *_changes(shown, old.get(name), new.get(name))] for name in {**old, **new}]


def report_rows(report: Report) -> TextTable:
    """One row each, and the total. Empty columns are left out."""
    every: dict[str, Callable[[ReportRow], float | None]] = {
        "GPU h": lambda row: row.gpu_hours,
        "idle GPU h": lambda row: row.idle_gpu_hours,
        "core h": lambda row: row.core_hours,
        "idle core h": lambda row: row.idle_core_hours,
        "cost": lambda row: row.cost,
        "idle cost": lambda row: row.idle_cost,
    }
    rows = [*report.rows, report.total]
    kept = [name for name, get in every.items() if any(map(get, rows))] or ["GPU h"]
    cells = [["" if (value := every[name](row)) is None else f"{value:,.2f}" for name in kept] for row in rows]
    return [report.by, "jobs", *kept], [
        [row.name, str(row.jobs), *numbers] for row, numbers in zip(rows, cells, strict=True)
    ]


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds)


def _changes(shown: Mapping[str, Callable[[T], str]], before: T | None, after: T | None) -> list[str]:
    pairs = [["–" if side is None else show(side) for side in (before, after)] for show in shown.values()]
    return [old if old == new else f"{old} → {new}" for old, new in pairs]


# ---- pages


def simulation_page(before: Replay, after: Replay, *, title: str, notes: Sequence[str]) -> str:
    """Waiting times of each team and usage of each flavor, present beside proposed."""
    unit_s, unit = _unit([*before.outcomes, *after.outcomes])
    waits = [
        Chart(
            f"waits-{number}",
            _lines([_waits(replay, team.team, unit_s) for replay in (before, after)], f"waited ({unit})", "jobs", "%"),
            team.team,
        )
        for number, team in enumerate(before.teams)
    ]
    ends = (outcome.allocations[-1].end_s for outcome in after.outcomes if outcome.started)
    end_s = max(before.window_s[1], *ends, 0.0)
    levels = {
        flavor.flavor: [usage_levels(each, flavor.flavor, end_s) for each in (before, after)]
        for flavor in after.flavors
    }
    usages = [
        Chart(f"usage-{number}", _lines(sides, "hours since the first arrival", "units in use"), flavor)
        for number, (flavor, sides) in enumerate(levels.items())
        if any(sides)
    ]
    sections = [
        PageSection("Waiting time", "Share of the jobs that waited no longer.", waits),
        PageSection("Units in use", "GPUs, or cores of a CPU flavor; averaged over short intervals.", usages),
        PageSection("Teams", table=Table(*team_rows(before, after))),
        PageSection("Flavors", table=Table(*flavor_rows(before, after))),
    ]
    return pages.page(title, sections, notes=notes)


def report_page(report: Report, *, title: str) -> str:
    """Used and idle hours as bars, and the table."""
    unit = "GPU hours" if report.total.gpu_hours > 0 else "core hours"
    bars = [(row.name, row.gpu_hours, row.idle_gpu_hours or 0.0) for row in report.rows]
    if unit == "core hours":
        bars = [(row.name, row.core_hours, row.idle_core_hours or 0.0) for row in report.rows]
    largest = sorted(bars, key=lambda bar: bar[1:], reverse=True)[:_MOST_BARS]
    caption = f"The {_MOST_BARS} largest of {len(report.rows)}." if len(report.rows) > len(largest) else ""
    charts = [Chart("hours", _bars(largest, unit))] if largest else []
    sections = [
        PageSection(f"{unit} by {report.by}", caption if largest else "No job ran in this period.", charts),
        PageSection("All numbers", table=Table(*report_rows(report))),
    ]
    return pages.page(title, sections, notes=report.notes)


def usage_levels(replay: Replay, flavor: str, end_s: float) -> list[tuple[float, float]]:
    """(hours since the window began, mean units in use) of equal intervals up to `end_s`."""
    begin_s = replay.window_s[0]
    changes = steps(replay.outcomes, flavor)
    if not changes or end_s <= begin_s:
        return []
    times_s, levels = np.array(changes).T
    used = np.concatenate([[0.0], np.cumsum(levels[:-1] * np.diff(times_s))])  # unit seconds until each change
    edges_s, width_s = np.linspace(begin_s, end_s, _POINTS + 1, retstep=True)
    means = np.diff(np.interp(edges_s, times_s, used)) / width_s
    return list(zip(((edges_s[:-1] - begin_s + width_s / 2) / 3600).tolist(), means.tolist(), strict=True))


def _waits(replay: Replay, team: str, unit_s: float) -> list[tuple[float, float]]:
    """(wait, share of the jobs that waited no longer). Jobs that never start keep the share below 1."""
    mine = [outcome for outcome in replay.outcomes if team in (outcome.queued_job.team, ALL)]
    waits = [outcome.wait_s / unit_s for outcome in mine if outcome.started]
    if not waits:
        return []
    shares = np.linspace(0.0, 1.0, min(_POINTS, len(waits)))
    below = (shares * len(waits) / len(mine)).tolist()
    return [(0.0, 0.0), *zip(np.quantile(waits, shares).tolist(), below, strict=True)]


def _unit(outcomes: Sequence[QueuedJobOutcome]) -> tuple[float, str]:
    """(seconds, name) of the unit for the longest wait."""
    longest_s = max((outcome.wait_s for outcome in outcomes if outcome.started), default=0.0)
    return (3600.0, "hours") if longest_s > 2 * 3600 else (60.0, "minutes") if longest_s > 120 else (1.0, "seconds")


def _lines(sides: Sequence[Points], x_label: str, y_label: str, tick_format: str = "") -> pages.Figure:
    drawn = [
        Line(name, [x for x, _ in points], [y for _, y in points], color, dash=dash)
        for points, (name, color, dash) in zip(sides, _SIDES, strict=True)
    ]
    made = plots.lines(drawn, x_label, y_label, **_LEGEND)
    made["layout"]["yaxis"] |= {"rangemode": "tozero", "tickformat": f".0{tick_format}" if tick_format else ""}
    return made


def _bars(bars: Sequence[tuple[str, float, float]], unit: str) -> pages.Figure:
    """Bars of (name, used hours, idle hours), the idle ones stacked on the used ones."""
    names, used, idle = zip(*bars, strict=True)
    places = list(range(len(bars)))
    bar: dict[str, Any] = {"type": "bar", "orientation": "h", "y": places}
    data = [
        {**bar, "name": "used", "x": list(used), "marker": {"color": BLUE}},
        {**bar, "name": "idle", "x": list(idle), "marker": {"color": GREY, "opacity": 0.4}},
    ]
    drawn = pages.figure(data, unit, "", barmode="stack", **_LEGEND)
    labels = [escape(name if len(name) <= _LABEL_LENGTH else f"…{name[1 - _LABEL_LENGTH :]}") for name in names]
    drawn["layout"]["yaxis"] |= {"tickvals": places, "ticktext": labels, "autorange": "reversed"}
    return drawn
