"""The difference between two datasets: rows that are new, on another side, unchanged or gone."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict

from ray_jobs.data.dataset import load
from ray_jobs.data.ingest import canonical_line
from ray_jobs.data.split import SIDES, SideName
from ray_jobs.data.versions import find_dataset
from ray_jobs.storage import Workspace
from ray_jobs.tasks.base import Row


class Changes(BaseModel):
    """Rows of one side of the newer dataset."""

    model_config = ConfigDict(frozen=True)

    new: int
    moved: int
    """They were on another side."""
    unchanged: int


class VersionDiff(BaseModel):
    """What the newer dataset has, and what only the older one had."""

    model_config = ConfigDict(frozen=True)

    sides: dict[SideName, Changes]
    gone: int


def version_diff(store: Workspace, old: str, new: str) -> VersionDiff:
    """Compare two datasets by their rows. Raises ObjectNotFound."""
    before, now = (load(store, find_dataset(store, label).digest) for label in (old, new))
    side_of: dict[bytes, str] = {}
    for side in SIDES:
        side_of |= dict.fromkeys(map(_digest, before.rows(side)), side)
    kept, sides = set[bytes](), dict[SideName, Changes]()
    for side in SIDES:
        rows = list(map(_digest, now.rows(side)))
        were = [side_of.get(row) for row in rows]
        fresh, same = were.count(None), were.count(side)
        sides[side] = Changes(new=fresh, moved=len(rows) - fresh - same, unchanged=same)
        kept.update(rows)
    return VersionDiff(sides=sides, gone=len(side_of.keys() - kept))


def _digest(row: Row) -> bytes:
    return hashlib.blake2b(canonical_line(row).encode(), digest_size=16).digest()
