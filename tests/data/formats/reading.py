"""Reads a file of rows for these tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.data.formats import Notice, Record, Unreadable, read_records


@dataclass(frozen=True)
class Read:
    """The items of a file, by kind."""

    values: list[dict[str, Any]]
    places: list[str]
    """Those of the records."""
    reasons: list[str]
    """`line 3: …`, or the reason alone where it concerns the file."""
    notices: list[str]


def read(path: Path, content: bytes | str | None = None, **options: Any) -> Read:
    """Write `content` where it is given, and read the file."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    items = list(read_records(path, **options))
    unreadable = [item for item in items if isinstance(item, Unreadable)]
    return Read(
        values=[item.values for item in items if isinstance(item, Record)],
        places=[item.place for item in items if isinstance(item, Record)],
        reasons=[f"{item.place}: {item.reason}".removeprefix(": ") for item in unreadable],
        notices=[item.text for item in items if isinstance(item, Notice)],
    )
