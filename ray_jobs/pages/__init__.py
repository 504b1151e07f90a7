"""A self-contained HTML page from a title, facts, plotly figures and tables. Pure.

The page carries plotly.js inline and loads nothing from a server. All text is escaped here, except the labels inside a
figure, which plotly.js reads as HTML: the caller escapes those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from ray_jobs.pages.messages import Language

Figure = dict[str, Any]
"""Input of plotly.js: `data` and `layout`."""

RED, YELLOW, BLUE, GREY = "#e4572e", "#b8a04a", "#4a90d9", "#8a8a8a"
"""Distinguishable on a white and on a black background."""

_CSS = """
:root{color-scheme:light dark;--soft:#7a7a7a}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;padding:1rem;max-width:70rem}
h1{font-size:1.4rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .2rem}h3{font-size:1rem;margin:1rem 0 0}
p,dt,tr.failed{color:var(--soft);margin:.2rem 0}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:.8rem}
dt{font-size:.8rem}h1,dd{overflow-wrap:anywhere}dd{margin:0}.wide{overflow-x:auto}
.charts{display:flex;flex-wrap:wrap;gap:1rem}.charts>div{flex:1 1 26rem;min-width:0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap}tr.won{font-weight:bold}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #8884}
.first :is(th,td):first-child,.last :is(th,td):last-child{text-align:left}
.all :is(th,td),.stack :is(th,td){text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere}
.all th,.stack th{overflow-wrap:normal}
code{background:#8883;padding:0 .2em;border-radius:.2em}
del{background:#e4572e44}ins{background:#4a90d944}
.all td,.stack td{min-width:7rem}
@media(max-width:45rem){
.stack :is(tbody,tr,td){display:block}.stack tr:first-child{display:none}
.stack tr{padding:.5rem 0;border-bottom:2px solid #8888}
.stack td{border:0;padding:.1rem 0}.stack td:empty{display:none}
.stack td[data-name]:before{content:attr(data-name);display:block;color:var(--soft);font-size:.8rem}}
"""

Mark = Literal["", "del", "ins", "code"]
"""HTML element of a part of a cell. `del` and `ins`: what a change removed and added."""


@dataclass(frozen=True)
class CellPart:
    """A piece of a cell's text."""

    text: str
    mark: Mark = ""


Cell = str | Sequence[CellPart]


@dataclass(frozen=True)
class Chart:
    """A figure, and the id of its element in the page."""

    key: str
    figure: Figure
    title: str = ""
    min_width: str = ""
    """CSS width below which the chart scrolls, e.g. `40rem`."""
    height: str = "26rem"
    tools: bool = True
    """Buttons to zoom, select and download, which plotly.js names in English."""


@dataclass(frozen=True)
class Table:
    """Cells as text; numbers are right-aligned, the `first`, the `last` or `all` columns left-aligned; `all` wraps.

    `stack`: as `all`; on a narrow screen each row is a block, with the columns' names above its cells.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kinds: Sequence[str] = ()
    """CSS class of each row, e.g. `won` or `failed`; empty: none."""
    left: str = "first"


@dataclass(frozen=True)
class PageSection:
    """A heading, a caption, charts side by side, and a table."""

    heading: str
    caption: str = ""
    charts: Sequence[Chart] = ()
    table: Table | None = None
    level: Literal[2, 3] = 2
    """3: part of the section before it."""


def figure(data: Sequence[Mapping[str, Any]], x_label: str, y_label: str, **layout: Any) -> Figure:
    """A figure in the style of the pages: transparent, grey text, no legend. `layout` overrides single entries."""
    axis = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False, "automargin": True}
    style = {
        "template": "none",
        "margin": {"l": 70, "r": 20, "t": 50, "b": 50},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "#7a7a7a"},
        "showlegend": False,
        "xaxis": axis | {"title": {"text": x_label}},
        "yaxis": axis | {"title": {"text": y_label}},
    }
    return {"data": list(data), "layout": style | layout}


def page(
    title: str,
    sections: Sequence[PageSection],
    *,
    facts: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    refresh_s: int | None = None,
    language: Language = "en",
) -> str:
    """The whole document. `facts` and `notes` follow the title. `refresh_s`: the browser reloads it so often.

    `language`: that of the texts, from which a browser chooses its fonts.
    """
    refresh = "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s}">'
    pairs = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in (facts or {}).items()
    )
    head = "".join(f"<p>{escape(note)}</p>" for note in notes) + (f"<dl>{pairs}</dl>" if pairs else "")
    return (
        f'<!doctype html>\n<html lang="{language}"><head><meta charset="utf-8">{refresh}'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>{head}\n{''.join(_body(sections))}</body></html>\n"
    )


def _body(sections: Sequence[PageSection]) -> Iterator[str]:
    first = True
    for section in sections:
        yield f"<h{section.level}>{escape(section.heading)}</h{section.level}>"
        if section.caption:
            yield f"<p>{escape(section.caption)}</p>"
        if section.charts:
            yield '<div class="charts">'
            for chart in section.charts:
                yield _chart(chart, with_library=first)
                first = False
            yield "</div>\n"
        if section.table is not None:
            yield _table(section.table)


def _chart(chart: Chart, *, with_library: bool) -> str:
    from plotly.io import to_html  # type: ignore[import-untyped]  # plotly has no types

    drawn = to_html(
        chart.figure,
        include_plotlyjs="inline" if with_library else False,
        full_html=False,
        div_id=chart.key,
        config={"displaylogo": False, "responsive": True} | ({} if chart.tools else {"displayModeBar": False}),
        default_height=chart.height,
    )
    heading = f"<h3>{escape(chart.title)}</h3>" if chart.title else ""
    width = f' style="min-width:{chart.min_width}"' if chart.min_width else ""
    return f'<div class="wide">{heading}<div{width}>{drawn}</div></div>\n'


def _table(table: Table) -> str:
    kinds = ["", *(table.kinds or [""] * len(table.rows))]
    names = [f' data-name="{escape(name)}"' if table.left == "stack" and name else "" for name in table.columns]
    lines = ["".join(f"<th>{escape(name)}</th>" for name in table.columns)]
    lines += [
        "".join(f"<td{name}>{_cell(cell)}</td>" for name, cell in zip(names, row, strict=True)) for row in table.rows
    ]
    rows = [
        f'<tr class="{escape(kind)}">{line}</tr>' if kind else f"<tr>{line}</tr>"
        for kind, line in zip(kinds, lines, strict=True)
    ]
    return f'<div class="wide"><table class="{escape(table.left)}">' + "\n".join(rows) + "</table></div>"


def _cell(cell: Cell) -> str:
    parts = [CellPart(cell)] if isinstance(cell, str) else cell
    return "".join(
        f"<{part.mark}>{escape(part.text)}</{part.mark}>" if part.mark else escape(part.text) for part in parts
    )
