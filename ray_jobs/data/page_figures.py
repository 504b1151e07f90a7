"""Figures of the page of a preparation: rows by side and label, and rows by length. Pure.

All text is escaped here, since plotly.js reads labels as HTML.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate
from unicodedata import east_asian_width

from ray_jobs import pages
from ray_jobs.data import page_messages as messages
from ray_jobs.data.differences import readable
from ray_jobs.pages import BLUE, RED, YELLOW, Figure
from ray_jobs.pages.messages import Speaker

_NAME_COLUMNS = 40
_TICK_COLUMNS = 20
"""Widest name beside a bar, so that a phone has place for the bar."""
_SIDE_COLORS = {"train": BLUE, "validation": YELLOW, "test": RED}


def side_bars(say: Speaker, counts: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> Figure:
    """A horizontal bar for each name, the first at the top, in parts for the sides. `counts`: rows by side and name."""
    places = list(range(len(names)))  # names on the axis itself would be read as numbers, and cut ones as one
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": say(messages.SIDE_NAMES[side]),
            "marker": {"color": _SIDE_COLORS[side]},
            "x": [rows.get(name, 0) for name in names],
            "y": places,
            "width": 0.7,
            "hovertext": [escape(short(name), quote=False) for name in names],
            "hoverinfo": "x+name+text",
        }
        for side, rows in counts.items()
    ]
    ticks = {"tickvals": places, "ticktext": [escape(short(name, _TICK_COLUMNS), quote=False) for name in names]}
    drawn = _still(pages.figure(data, say(messages.ROWS), "", barmode="stack", showlegend=True))
    drawn["layout"]["yaxis"] |= {"range": [len(names) - 0.4, -0.6], **ticks}
    drawn["layout"] |= {"legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"}}
    return drawn


def length_bars(say: Speaker, lengths: Mapping[int, int]) -> Figure:
    """A bar for each bin of lengths, with its rows. `lengths`: rows by the lower bound of each bin, at least one."""
    starts = sorted(start for start, rows in lengths.items() if rows)
    # Empty bins between the others are drawn too, so that the axis has no gaps.
    starts = sorted({*starts, *(1 << power for power in range(64) if max(1, starts[0]) < 1 << power < starts[-1])})
    names = [f"{start:,}–{2 * start - 1:,}" if start > 1 else str(start) for start in starts]
    rows = [lengths.get(start, 0) for start in starts]
    bar = {
        "type": "bar",
        "marker": {"color": BLUE},
        "x": list(range(len(starts))),
        "y": rows,
        "width": 0.8,
        "text": [f"{count:,}" for count in rows],
        "hovertext": names,
        "hoverinfo": "text+y",
    }
    drawn = _still(pages.figure([bar], say(messages.CHARACTERS), say(messages.ROWS)))
    drawn["layout"]["xaxis"] |= {
        "tickvals": list(range(len(starts))),
        "ticktext": names,
        "range": [-0.6, max(len(starts), 3) - 0.4],
    }
    return drawn


def short(text: str, columns: int = _NAME_COLUMNS) -> str:
    """A label or name on one line, cut, with invisible characters written out. A wide character takes two columns."""
    text = readable(" ".join(text.split()), in_full=True)
    ends = list(accumulate(2 if east_asian_width(each) in "FW" else 1 for each in text))
    if not ends or ends[-1] <= columns:
        return text
    return text[: bisect_right(ends, columns - 1)] + "…"


def height(bars: int) -> str:
    """CSS height of a figure with so many horizontal bars."""
    return f"{8 + 1.6 * bars:g}rem"


def _still(drawn: Figure) -> Figure:
    """Without zoom, which a finger on a phone starts by scrolling."""
    drawn["layout"]["dragmode"] = False
    for axis in ("xaxis", "yaxis"):
        drawn["layout"][axis] |= {"fixedrange": True}
    return drawn
