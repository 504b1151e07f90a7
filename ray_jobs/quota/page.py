"""Plots and tables of a simulation and of a report, as one self-contained HTML page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from ray_jobs import pages
from ray_jobs.kueue.simulate import QueuedJobOutcome
from ray_jobs.pages import BLUE, GREY, RED, Chart, PageSection, Table
from ray_jobs.quota.compare import ALL, Replay, quantile, steps
from ray_jobs.quota.report import Report
from ray_jobs.quota.tables import flavor_rows, report_rows, team_rows

_POINTS = 300
"""Most points of a line."""
_MOST_BARS = 40
_LABEL_LENGTH = 26
_SIDES = (("present", BLUE, "solid"), ("proposed", RED, "dash"))
_LEGEND = {"showlegend": True, "legend": {"orientation": "h", "y": 1.12}}

Line = Sequence[tuple[float, float]]


def simulation(before: Replay, after: Replay, *, title: str, notes: Sequence[str]) -> str:
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


def usage(report: Report, *, title: str) -> str:
    """Used and idle hours as bars, and the table."""
    gpu = report.total.gpu_hours > 0
    unit = "GPU hours" if gpu else "core hours"
    bars = [
        (row.name, row.gpu_hours, row.idle_gpu_hours or 0.0)
        if gpu
        else (row.name, row.core_hours, row.idle_core_hours or 0.0)
        for row in report.rows
    ]
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
    width_s = (end_s - begin_s) / _POINTS
    changes = steps(replay.outcomes, flavor)
    if not changes or width_s <= 0:
        return []
    area = [0.0] * _POINTS
    for (at_s, level), (next_s, _) in zip(changes, [*changes[1:], (end_s, 0.0)], strict=True):
        place = max(0, int((at_s - begin_s) / width_s))
        while level and place < _POINTS and begin_s + place * width_s < next_s:
            low = max(at_s, begin_s + place * width_s)
            area[place] += level * max(0.0, min(next_s, begin_s + (place + 1) * width_s) - low)
            place += 1
    return [((i + 0.5) * width_s / 3600, area[i] / width_s) for i in range(_POINTS)]


def _waits(replay: Replay, team: str, unit_s: float) -> list[tuple[float, float]]:
    """(wait, share of the jobs that waited no longer). Jobs that never start keep the share below 1."""
    mine = [outcome for outcome in replay.outcomes if team in (outcome.queued_job.team, ALL)]
    waits = sorted(outcome.wait_s / unit_s for outcome in mine if outcome.started)
    if not waits:
        return []
    started = len(waits) / len(mine)
    count = min(_POINTS, len(waits))
    shares = [i / max(1, count - 1) for i in range(count)]
    return [(0.0, 0.0), *((quantile(waits, share), share * started) for share in shares)]


def _unit(outcomes: Sequence[QueuedJobOutcome]) -> tuple[float, str]:
    """(seconds, name) of the unit for the longest wait."""
    longest_s = max((outcome.wait_s for outcome in outcomes if outcome.started), default=0.0)
    return (3600.0, "hours") if longest_s > 2 * 3600 else (60.0, "minutes") if longest_s > 120 else (1.0, "seconds")


def _lines(sides: Sequence[Line], x_label: str, y_label: str, tick_format: str = "") -> pages.Figure:
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": [x for x, _ in line],
            "y": [y for _, y in line],
            "line": {"color": color, "dash": dash},
        }
        for line, (name, color, dash) in zip(sides, _SIDES, strict=True)
    ]
    drawn = pages.figure(data, x_label, y_label, **_LEGEND)
    drawn["layout"]["yaxis"] |= {"rangemode": "tozero", "tickformat": f".0{tick_format}" if tick_format else ""}
    return drawn


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
