"""A job's search as a pandas data frame, for notebooks: from its JSON records alone, also while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray_jobs.search import standing
from ray_jobs.search.records import newest_search
from ray_jobs.storage import Workspace

if TYPE_CHECKING:
    import pandas as pd


def load(job: str, store: Workspace | None = None) -> pd.DataFrame:
    """The trial segments of a job's newest search, a row each, in the order in which they ended.

    Columns: `trial`, `rung` (from 0), `again` (a finalist's second training), `status`, `loss` and the task's metric on
    held-out rows, `steps` (the segment's last), `tokens`, `seconds`, `tokens_per_s`, `ended_at` (UTC), `won`, and each
    searched field by its name. `store`: None for that of KITAE_STORE. Raises JobError for an unknown job and for one
    without a search.
    """
    import pandas as pd

    from ray_jobs.tasks import TASKS

    records = newest_search(store or Workspace.from_env(), job)
    problem, results, now = standing.read(records)
    winner = now.winner.name if now.winner is not None else None
    rows: list[dict[str, Any]] = [
        {
            "trial": result.run.trial,
            "rung": result.run.rung,
            "again": result.run.again,
            "status": result.status,
            "loss": result.loss,
            TASKS[problem.spec.task].metric: result.accuracy,
            "steps": result.run.until,
            "tokens": result.tokens,
            "seconds": result.seconds,
            "tokens_per_s": result.tokens_per_s,
            "ended_at": pd.Timestamp(result.ended_at, unit="s", tz="UTC"),
            "won": name == winner,
            **{field: result.run.params.get(field) for field in problem.space},
        }
        for name, result in results.items()
    ]
    return pd.DataFrame(rows)
