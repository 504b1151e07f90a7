"""Publishes the end of a job: its webhook event and its usage row. Idempotent: each is written once.

Does not decide when a job has ended (`lifecycle`).
"""

from __future__ import annotations

from ray_jobs import jobs
from ray_jobs.jobs import JobRecord
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store
from ray_jobs.tenancy import usage, webhooks
from ray_jobs.tenancy.usage import UsageRow
from serving.fine_tuning.lifecycle import ReportedStatus
from serving.fine_tuning.records import ApiJob

_EVENTS: dict[str, webhooks.EventType] = {
    "succeeded": "fine_tuning.job.succeeded",
    "failed": "fine_tuning.job.failed",
    "cancelled": "fine_tuning.job.cancelled",
}
_WITH_WORKERS = ("search", "train", "evaluate", "parity", "publish")


def publish_job_end(store: Store, api: ApiJob, job: JobRecord, reported: ReportedStatus) -> None:
    """Queue the webhook event of an ended job and write its training usage."""
    ended_at = job.finished_at or job.cancelled_at or job.created_at
    webhooks.enqueue(store, api.team, _EVENTS[reported.status], api.id, attempt=max(1, job.attempt), at=ended_at)
    if job.attempt == 0:
        return  # no attempt ran
    spec = JobSpec.model_validate(job.spec)
    seconds = training_seconds(store, job)
    workers = spec.compute.workers
    row = UsageRow(
        day=ended_at.date(),
        team=api.team,
        key_id=api.key_id,
        model=spec.name,
        kind="training",
        requests=1,
        prompt_tokens=(job.result or {}).get("trained_tokens") or 0,
        worker_seconds=workers * seconds,
        gpu_seconds=workers * spec.compute.gpus_per_worker * seconds,
    )
    usage.write(store, row.team, row.day, job.id, job.attempt, [row])


def training_seconds(store: Store, job: JobRecord) -> float:
    """Return how long the job held its workers: its finished stages, or all of an attempt that did not finish."""
    stages = [stage for stage in jobs.stages(store, job.id) if stage.name in _WITH_WORKERS]
    if job.result is not None:
        return sum(stage.seconds for stage in stages)
    started, ended = job.started_at, job.finished_at or job.cancelled_at
    last_attempt_s = (ended - started).total_seconds() if started is not None and ended is not None else 0.0
    return sum(stage.seconds for stage in stages if stage.attempt < job.attempt) + last_attempt_s
