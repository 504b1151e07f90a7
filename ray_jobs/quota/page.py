"""Plots of a simulation and of a report, as one HTML page that needs nothing but itself. Pure.

The figures are SVG without a script; names are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from ray_jobs.quota.compare import ALL, Played, quantile, steps
from ray_jobs.quota.report import Report
from ray_jobs.quota.tables import flavor_rows, report_rows, team_rows

_PRESENT, _PROPOSED, _IDLE = "#4a90d9", "#e4572e", "#8a8a8a"
"""Can be told apart on a white and on a black ground."""
_WIDTH, _HEIGHT = 640.0, 240.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 14.0, 12.0, 40.0
_BINS = 300
"""Points of a line at most."""
_MOST_BARS = 40
_CSS = """
:root{color-scheme:light dark;--soft:#7a7a7a}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;padding:1rem;max-width:70rem}
h1{font-size:1.4rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .2rem}h3{font-size:1rem;margin:1rem 0 0}
p,figcaption{color:var(--soft);margin:.2rem 0}.wide{overflow-x:auto}
.figures{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;flex:1 1 26rem;max-width:44rem}svg{width:100%;height:auto}
svg text{font:12px system-ui,sans-serif;fill:currentColor}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #8884}
th:first-child,td:first-child{text-align:left}
"""


@dataclass(frozen=True)
class _Line:
    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def simulation(before: Played, after: Played, *, title: str, notes: Sequence[str]) -> str:
    """Waiting times of each team and use of each flavour, present beside proposed."""
    unit_s, unit = _unit(before, after)
    waits, uses = [], []
    for team in [waits.team for waits in before.teams]:
        lines = [
            _Line(name, colour, _cdf(played, team, unit_s), dashed)
            for name, colour, played, dashed in (
                ("present", _PRESENT, before, False),
                ("proposed", _PROPOSED, after, True),
            )
        ]
        waits.append(_figure(f"{team}", _plot(lines, f"waited ({unit})", top=1.0, y_text=lambda y: f"{y:.0%}")))
    for use in after.flavors:
        nominal = {played.flavor: played.nominal for played in (*before.flavors, *after.flavors)}
        span = max(before.window_s[1], *(o.stretches[-1].end_s for o in after.outcomes if o.started), 0.0)
        lines = [
            _Line("present", _PRESENT, _levels(before, use.flavor, span)),
            _Line("proposed", _PROPOSED, _levels(after, use.flavor, span), True),
        ]
        if any(points for points in (lines[0].points, lines[1].points)):
            top = max([nominal[use.flavor], *(y for line in lines for _, y in line.points)])
            uses.append(_figure(use.flavor, _plot(lines, "hours since the first job came", top=top, y_text=_short)))
    body = [
        "<h2>Waiting time</h2><p>Share of the jobs that waited no longer.</p>",
        _figures(waits),
        "<h2>Units in use</h2><p>GPUs, or cores of a CPU flavour; means of short stretches of time.</p>",
        _figures(uses),
        "<h2>Teams</h2>",
        _table(*team_rows(before, after)),
        "<h2>Flavours</h2>",
        _table(*flavor_rows(before, after)),
    ]
    return _page(title, notes, body)


def usage(report: Report, *, title: str) -> str:
    """Hours used and idle, and the table."""
    bars = sorted(report.rows, key=lambda row: -(row.gpu_hours + row.core_hours))[:_MOST_BARS]
    parts = [
        (
            row.name,
            row.gpu_hours or row.core_hours,
            (row.idle_gpu_hours if row.gpu_hours else row.idle_core_hours) or 0.0,
        )
        for row in bars
    ]
    unit = "GPU hours" if report.total.gpu_hours else "core hours"
    more = f" The {_MOST_BARS} largest of {len(report.rows)}." if len(report.rows) > len(bars) else ""
    body = [
        f"<h2>{unit} by {report.by}</h2><p>{escape(more)}</p>",
        _figure("", _bars(parts)) if parts else "<p>Nothing has run.</p>",
        "<h2>All figures</h2>",
        _table(*report_rows(report)),
    ]
    return _page(title, report.notes, body)


def _page(title: str, notes: Sequence[str], body: Sequence[str]) -> str:
    shown = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>{shown}\n" + "\n".join(body) + "</body></html>\n"
    )


def _figures(figures: Sequence[str]) -> str:
    return f'<div class="figures">{"".join(figures)}</div>' if figures else "<p>Nothing to draw.</p>"


def _figure(name: str, svg: str) -> str:
    return f"<figure>{f'<h3>{escape(name)}</h3>' if name else ''}{svg}</figure>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [("th", columns), *(("td", row) for row in rows)]
    shown = ["<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>" for tag, cells in lines]
    return '<div class="wide"><table>' + "\n".join(shown) + "</table></div>"


# ---- what is drawn


def _unit(*plays: Played) -> tuple[float, str]:
    longest = max((o.wait_s for played in plays for o in played.outcomes if o.started), default=0.0)
    return (3600.0, "hours") if longest > 2 * 3600 else (60.0, "minutes") if longest > 120 else (1.0, "seconds")


def _cdf(played: Played, team: str, unit_s: float) -> list[tuple[float, float]]:
    """(wait, share of the jobs that waited no longer); what never started keeps it below 1."""
    mine = [o for o in played.outcomes if team in (o.work.team, ALL)]
    waits = sorted(o.wait_s / unit_s for o in mine if o.started)
    if not waits:
        return []
    whole = len(waits) / len(mine)
    count = min(_BINS, len(waits))
    shares = [i / max(1, count - 1) for i in range(count)]
    return [(0.0, 0.0), *((quantile(waits, share), share * whole) for share in shares)]


def _levels(played: Played, flavor: str, end_s: float) -> list[tuple[float, float]]:
    """(hours since the window began, mean units in use around then)."""
    begin_s = played.window_s[0]
    width_s = (end_s - begin_s) / _BINS
    changes = steps(played.outcomes, flavor)
    if not changes or width_s <= 0:
        return []
    area = [0.0] * _BINS
    for (at_s, level), (next_s, _) in zip(changes, [*changes[1:], (end_s, 0.0)], strict=True):
        place = max(0, int((at_s - begin_s) / width_s))
        while level and place < _BINS and begin_s + place * width_s < next_s:
            low = max(at_s, begin_s + place * width_s)
            area[place] += level * max(0.0, min(next_s, begin_s + (place + 1) * width_s) - low)
            place += 1
    return [((i + 0.5) * width_s / 3600, area[i] / width_s) for i in range(_BINS)]


def _plot(lines: Sequence[_Line], x_label: str, *, top: float, y_text: Callable[[float], str]) -> str:
    right = max((x for line in lines for x, _ in line.points), default=0.0) or 1.0
    top = top or 1.0
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + inner_width * x / right, _TOP + inner_height * (1 - y / top)

    parts = [f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{escape(x_label)}">']
    for y in _ticks(top):
        _, at = place(0, y)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#8884"/>'
            f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y_text(y)}</text>'
        )
    for x in _ticks(right):
        at, _ = place(x, 0)
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_short(x)}</text>')
    parts.append(
        f'<text x="{_LEFT + inner_width / 2:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for i, line in enumerate(lines):
        points = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in line.points)
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        if points:
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}>'
                f"<title>{escape(line.name)}</title></polyline>"
            )
        at = _HEIGHT - _BOTTOM - 10 - 16 * (len(lines) - 1 - i)
        parts.append(
            f'<line x1="{_WIDTH - 110}" x2="{_WIDTH - 86}" y1="{at - 4}" y2="{at - 4}" stroke="{line.colour}" '
            f'stroke-width="2"{dash}/><text x="{_WIDTH - 80}" y="{at}">{escape(line.name)}</text>'
        )
    return "".join(parts) + "</svg>"


def _bars(parts: Sequence[tuple[str, float, float]]) -> str:
    """A bar a row: what was used, and after it what lay idle."""
    step, left = 22.0, 180.0
    height = step * len(parts) + 40
    largest = max((used + idle for _, used, idle in parts), default=0.0) or 1.0
    scale = (_WIDTH - left - 130) / largest
    drawn = [f'<svg viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" aria-label="hours">']
    for i, (name, used, idle) in enumerate(parts):
        y = step * i + 4
        label = name if len(name) <= 26 else "…" + name[-25:]
        figures = f"{_short(used)}" + (f" + {_short(idle)} idle" if idle else "")
        drawn.append(
            f'<text x="{left - 6}" y="{y + 13}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{left}" y="{y}" width="{used * scale:.1f}" height="16" fill="{_PRESENT}"/>'
            f'<rect x="{left + used * scale:.1f}" y="{y}" width="{idle * scale:.1f}" height="16" fill="{_IDLE}" '
            f'fill-opacity=".4"/><text x="{left + (used + idle) * scale + 6:.1f}" y="{y + 13}">{figures}</text>'
        )
    y = step * len(parts) + 14
    for i, (name, colour, opacity) in enumerate((("used", _PRESENT, 1.0), ("idle", _IDLE, 0.4))):
        x = left + 80 * i
        drawn.append(
            f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}" fill-opacity="{opacity}"/>'
            f'<text x="{x + 18}" y="{y + 11}">{name}</text>'
        )
    return "".join(drawn) + "</svg>"


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 to `top`, four or so."""
    rough = top / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return [step * i for i in range(int(top / step * 1.0001) + 1)]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
