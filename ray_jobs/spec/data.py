"""The section `data`: rows, columns and limits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ray_jobs.spec.section import SpecSection


class DataSection(SpecSection):
    train: str
    """Rows to train on: `s3://bucket/key` or a path; `.jsonl`, `.csv`, `.tsv` or `.parquet`."""
    held_out: str | None = None
    """Rows to evaluate on. None: `held_out_fraction` of the training rows is set aside."""
    held_out_fraction: float = Field(0.1, gt=0.0, lt=1.0)
    """Share of the rows set aside when `held_out` is None. Rows with the same content go to the same side."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of the file for each column of the task, where they differ, such as `{text: body, label: is_spam}`."""
    max_rows: int | None = Field(None, ge=1)
    """Use only this many rows, chosen by hash (the same each time). None: all."""
    max_tokens: int = Field(1024, ge=8)
    """Longest row in tokens."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What to do with a longer row: refuse the data, drop the row, or truncate it at the end."""
