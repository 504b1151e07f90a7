"""Figures of the pages from plain values: lines and points, horizontal bars, parallel coordinates. Pure.

All text is escaped here, since plotly.js reads labels as HTML.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ray_jobs.pages import BLUE, RED, YELLOW, Figure, figure

_POINTS = 200
"""Most points of a line that `thinned` returns."""


@dataclass(frozen=True)
class Line:
    """A line, or points."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    color: str
    mode: str = "lines"
    """`lines`, `markers` or `lines+markers`."""
    width: int = 2
    dash: str = "solid"
    shape: str = "linear"
    """`hv`: steps."""
    texts: Sequence[str] = ()
    """Shown at the points."""


@dataclass(frozen=True)
class Axis:
    """An axis of parallel coordinates, with a value of each line."""

    label: str
    values: Sequence[Any]
    choices: Sequence[str] = ()
    """Names of the values, which are then places in this list."""
    bounds: tuple[float, float] | None = None
    """None: those of the values."""
    log: bool = False


def lines(drawn: Sequence[Line], x_label: str, y_label: str, **layout: Any) -> Figure:
    """Lines and points, the last ones above. `layout`: see `figure`."""
    data = [
        {
            "type": "scatter",
            "mode": line.mode,
            "name": escape(line.name),
            "x": list(line.x),
            "y": list(line.y),
            "text": list(map(escape, line.texts)),
            "line": {"color": line.color, "width": line.width, "dash": line.dash, "shape": line.shape},
            "marker": {"color": line.color, "size": 8},
        }
        for line in drawn
        if line.x
    ]
    return figure(data, x_label, y_label, **layout)


def thinned(values: Sequence[float]) -> tuple[list[int], list[float | None]]:
    """Places from 1 and values; of many values, the last place of each block and the block's mean. None: a value of it
    is not finite."""
    size = math.ceil(len(values) / _POINTS) or 1
    ends = [min(start + size, len(values)) for start in range(0, len(values), size)]
    means = [sum(values[start:end]) / (end - start) for start, end in zip([0, *ends], ends, strict=False)]
    return ends, [mean if math.isfinite(mean) else None for mean in means]


def bars(values: Mapping[str, float], x_label: str) -> Figure:
    """A horizontal bar for each name, the longest at the top, with its value."""
    ordered = sorted(values.items(), key=lambda each: each[1])
    bar = {
        "type": "bar",
        "orientation": "h",
        "marker": {"color": BLUE},
        "x": [value for _, value in ordered],
        "y": [escape(name) for name, _ in ordered],
        "text": [f"{value:.2f}" for _, value in ordered],
    }
    return figure([bar], x_label, "")


def parallel_coordinates(axes: Sequence[Axis], *, lower_is_better: bool) -> Figure:
    """A line through all axes for each value, coloured by the last axis: the best are red."""
    last = axes[-1].values
    scale = [[0, RED], [0.5, YELLOW], [1, BLUE]]
    line = {"color": list(last), "colorscale": scale, "reversescale": not lower_is_better, "showscale": True}
    return figure([{"type": "parcoords", "dimensions": list(map(_dimension, axes)), "line": line}], "", "")


def _dimension(axis: Axis) -> dict[str, Any]:
    drawn: dict[str, Any] = {"label": escape(axis.label), "values": list(axis.values)}
    ticks: list[float]
    if axis.choices:
        texts = [escape(name, quote=False) for name in axis.choices]
        ticks = list(range(len(texts)))
        return drawn | {"range": [-0.5, len(texts) - 0.5], "tickvals": ticks, "ticktext": texts}
    if axis.bounds is None:
        return drawn
    low, high, *places = [math.log10(value) if axis.log else value for value in (*axis.bounds, *axis.values)]
    ticks = [low + (high - low) * part / 4 for part in range(5)]
    texts = [f"{10**tick if axis.log else tick:.3g}" for tick in ticks]
    return drawn | {"values": places, "range": [low, high], "tickvals": ticks, "ticktext": texts}
