"""What others are told when a job ends: webhooks, and the ledger. Each is told once, however often it is said."""

from __future__ import annotations

from typing import Literal

from ray_jobs import jobs
from ray_jobs.jobs import JobRecord
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store
from ray_jobs.tenancy import webhooks
from ray_jobs.tenancy.usage import UsageRow, write_training
from serving.fine_tuning.lifecycle import Verdict
from serving.fine_tuning.records import ApiJob

Ended = Literal["succeeded", "failed", "cancelled"]
_EVENTS: dict[str, webhooks.EventType] = {
    "succeeded": "fine_tuning.job.succeeded",
    "failed": "fine_tuning.job.failed",
    "cancelled": "fine_tuning.job.cancelled",
}
_WITH_WORKERS = ("search", "train", "evaluate", "parity", "publish")


def tell(store: Store, api: ApiJob, job: JobRecord, verdict: Verdict) -> None:
    """A job has ended."""
    ended_at = job.finished_at or job.cancelled_at or job.created_at
    webhooks.enqueue(store, api.team, _EVENTS[verdict.status], api.id, attempt=max(1, job.attempt), at=ended_at)
    if job.attempt == 0:
        return  # nothing has run
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
    write_training(store, row, writer=job.id, number=job.attempt)


def training_seconds(store: Store, job: JobRecord) -> float:
    """How long the job has held its workers: its finished stages' time; of an attempt that broke off, all of it."""
    stages = [stage for stage in jobs.stages(store, job.id) if stage.name in _WITH_WORKERS]
    if job.result is not None:
        return sum(stage.seconds for stage in stages)
    begun, ended = job.started_at, job.finished_at or job.cancelled_at
    broken_off_s = (ended - begun).total_seconds() if begun is not None and ended is not None else 0.0
    return sum(stage.seconds for stage in stages if stage.attempt < job.attempt) + broken_off_s
