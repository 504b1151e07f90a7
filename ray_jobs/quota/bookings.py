"""Bookings: the usage of jobs that were not started through the API, from their runs.

Owns the step from a run (`ray_jobs.jobs.runs`) to a row of the usage ledger. A team's pods cannot write the ledger, so
the endpoint books, and `kitae usage` before it reads. The team is that of the run's place in the store.
"""

from __future__ import annotations

from datetime import UTC

from ray_jobs.jobs.runs import LOST_AFTER_S, RUNS, JobRun
from ray_jobs.spec import is_name
from ray_jobs.storage import Store
from ray_jobs.tenancy import usage
from ray_jobs.tenancy.usage import UsageRow

KEY = "job"
"""Stands for the API key in the rows of these jobs."""
KEPT_S = 30 * 86_400.0
"""Time for which the run of a lost runner stays."""
API_PREFIX = "ftjob-"
"""Jobs of the API, whose usage the endpoint books at their end."""


def book(store: Store, now_s: float) -> int:
    """Write the usage of every run that has ended or is lost, once. Returns their number.

    Idempotent, also with several processes at once: the ledger's object is named by the run. The run of a lost runner
    stays for a while, since it shows that the runner is lost.
    """
    store, booked = store.root, 0
    for path, run in RUNS.read_all(store).items():
        team, _, name = path.partition("/")
        silent_s = now_s - run.at.timestamp()
        if not is_name(team) or name != run.name:
            continue
        if (run.ended or silent_s > LOST_AFTER_S) and not run.booked:
            if not run.job.startswith(API_PREFIX):
                row = row_of(team, run)
                usage.write(store, team, row.day, run.job, run.attempt, [row])
            booked += 1
        if run.ended or silent_s > KEPT_S:
            store.delete(RUNS.key(path))
        elif silent_s > LOST_AFTER_S and not run.booked:
            _mark_booked(store, path, run)
    return booked


def row_of(team: str, run: JobRun) -> UsageRow:
    """The usage of a run; its hours are at most those between its start and its newest heartbeat. Pure."""
    held_s = min(run.held_s, max(0.0, (run.at - run.started_at).total_seconds()))
    return UsageRow(
        day=run.at.astimezone(UTC).date(),
        team=team,
        key_id=KEY,
        model=run.model,
        kind="training",
        requests=1,
        prompt_tokens=run.tokens,
        worker_seconds=run.workers * held_s,
        gpu_seconds=run.workers * run.gpus_per_worker * held_s,
    )


def _mark_booked(store: Store, path: str, lost: JobRun) -> None:
    """Keep the run of a lost runner, so that the job is seen to be lost. A runner that came back writes its own."""
    booked = lost.model_copy(update={"booked": True})
    RUNS.update(store, path, lambda old: booked if old is None or old == lost else old)
