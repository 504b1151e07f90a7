"""Pages: one HTML builder for the pages of a search and of quotas. Knows neither jobs nor the store."""

from __future__ import annotations

from ray_jobs.pages.html import BLUE, GREY, RED, YELLOW, Chart, Figure, PageSection, Table, figure, page

__all__ = ["BLUE", "GREY", "RED", "YELLOW", "Chart", "Figure", "PageSection", "Table", "figure", "page"]
