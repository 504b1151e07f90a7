"""Pools and jobs for tests of the simulation."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from ray_jobs.kueue.pool import Pool, QuotaLimits, TeamQuota
from ray_jobs.kueue.simulate import QueuedJob


def limits(nominal: float, borrow: float | None = None, lend: float | None = None) -> QuotaLimits:
    return QuotaLimits(*(None if value is None else Decimal(str(value)) for value in (nominal, borrow, lend)))  # type: ignore[arg-type]  # the first is a number


def make_pool(*, flavors: Sequence[str] = ("h100",), prices: dict[str, float] | None = None, **teams: Any) -> Pool:
    """Teams by name: a TeamQuota, or the QuotaLimits of every flavor."""
    made = {n: t if isinstance(t, TeamQuota) else TeamQuota(dict.fromkeys(flavors, t)) for n, t in teams.items()}
    return Pool(made, {name: "cpu" if name == "cpu" else "gpu" for name in flavors}, prices or {})


def job(name: str, team: str, arrival_s: float, duration_s: float, units: float = 1, priority: int = 0) -> QueuedJob:
    return QueuedJob(name, team, arrival_s, duration_s, units, "gpu", priority)
