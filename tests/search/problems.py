"""A search over two fields and made-up outcomes of its segments."""

from __future__ import annotations

import math
from typing import Any

from ray_jobs.search.records import Problem
from ray_jobs.sharing.segments import Result, SegmentStatus, TrialSegment
from tests.builders import make_spec

LOG = {"min": 1e-5, "max": 1e-2, "scale": "log"}


def make_problem(search: dict[str, Any] | None = None, *, warm: tuple[dict[str, Any], ...] = ()) -> Problem:
    """A search of 9 trials over two fields, 27 steps a whole trial."""
    document = {"space": {"learning_rate": LOG, "lora.rank": [8, 16]}, "trials": 9, "parallel": 3, **(search or {})}
    spec = make_spec(search=document, training={"epochs": 1, "batch_size": 10})
    assert spec.search is not None
    return Problem(spec=spec, space=dict(spec.search.space or {}), rows=270, warm=warm)


def loss_of(run: TrialSegment) -> float:
    """Lowest at a rate of 3e-4 and rank 16; falls with the steps; slightly higher with another seed."""
    miss = abs(math.log10(run.params["learning_rate"]) - math.log10(3e-4))
    return 1.0 + miss + 0.1 * (run.params.get("lora.rank") == 8) + 1.0 / run.until + 0.01 * run.again


def outcome(run: TrialSegment, status: SegmentStatus = "ok") -> Result:
    done = status == "ok"
    return Result(
        run=run,
        status=status,
        loss=loss_of(run) if done else None,
        accuracy=1.0 / loss_of(run) if done else None,
        trunk=f"{run.name}/trunk" if done else None,
        checkpoint=f"{run.name}/end" if done else None,
        error=None if done else f"{status} on purpose",
    )
