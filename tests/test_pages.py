"""A page loads nothing, escapes its text and carries plotly.js once."""

from __future__ import annotations

import re

from ray_jobs.pages import Chart, PageSection, Table, figure, page

EVIL = "<script>alert(1)</script>"


def test_all_text_is_escaped() -> None:
    table = Table([EVIL], [[EVIL]], kinds=["failed"])
    html = page(EVIL, [PageSection(EVIL, EVIL, table=table)], facts={EVIL: EVIL}, notes=[EVIL])
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 9
    assert '<tr class="failed"><td>&lt;script&gt;' in html


def test_plotly_is_inlined_once_and_only_with_a_chart() -> None:
    drawn = figure([{"type": "scatter", "x": [1], "y": [2]}], "x", "y", showlegend=True)
    assert drawn["layout"]["showlegend"] is True
    charts = [PageSection("both", charts=[Chart("a", drawn, "A"), Chart("b", drawn)]), PageSection("third", "no chart")]
    html = page("t", charts, refresh_s=15)
    assert html.count("* plotly.js v") == 1
    assert len(re.findall(r'Plotly\.newPlot\(\s*"[ab]"', html)) == 2
    assert "<h3>A</h3>" in html
    assert '<meta http-equiv="refresh" content="15">' in html
    empty = page("t", [PageSection("third", "no chart")])
    assert "plotly" not in empty
    assert "refresh" not in empty
