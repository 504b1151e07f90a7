"""Publishes the end of a job: its webhook event and its usage row. Idempotent: each is written once.

Does not decide when a job has ended (`lifecycle`).
"""

from __future__ import annotations

from datetime import UTC, datetime

from ray_jobs import jobs
from ray_jobs.storage import Store, Workspace
from ray_jobs.tenancy import audit, spent, usage, webhooks
from ray_jobs.tenancy.usage import UsageRow
from serving.fine_tuning.lifecycle import ReportedStatus
from serving.fine_tuning.records import ApiJob, ClosedJob
from serving.fine_tuning.reported import CheckedRecord, ReportedResult, metrics_file, result_of

_EVENTS: dict[str, webhooks.EventType] = {
    "succeeded": "fine_tuning.job.succeeded",
    "failed": "fine_tuning.job.failed",
    "cancelled": "fine_tuning.job.cancelled",
}
_WITH_WORKERS = ("search", "train", "evaluate", "parity", "publish")


def ending_of(
    store: Store, api: ApiJob, job: CheckedRecord | None, reported: ReportedStatus, now_s: float
) -> ClosedJob:
    """Return the end of a job as it is seen now. `job` None: its record cannot be read."""
    result = result_of(api, job) if job is not None else ReportedResult()
    ended = None if job is None else job.finished_at or job.cancelled_at or job.created_at
    has_file = reported.status == "succeeded" and result.has_metrics and metrics_file(store, api) is not None
    return ClosedJob(
        status=reported.status,
        finished_at=int(now_s if ended is None else min(now_s, ended.timestamp())),
        error=reported.error,
        has_run=bool(api.launches) and job is not None and job.attempt > 0,
        training_s=training_seconds(store, api, job, now_s),
        trained_tokens=result.trained_tokens or 0,
        has_result_file=has_file,
    )


def publish_job_end(store: Store, api: ApiJob, ending: ClosedJob) -> None:
    """Queue the webhook event of an ended job and write its training usage."""
    ended_at, run = datetime.fromtimestamp(ending.finished_at, UTC), max(1, api.launched)
    webhooks.enqueue(store, api.team, _EVENTS[ending.status], api.id, attempt=run, at=ended_at)
    _book(store, api, ending, ended_at, run)
    spent.release(store, api.team, datetime.fromtimestamp(api.created_at, UTC).date(), api.id)


def _book(store: Store, api: ApiJob, ending: ClosedJob, ended_at: datetime, run: int) -> None:
    """Write the usage of a job that held workers, and that its model is registered."""
    if not ending.has_run and ending.training_s == 0.0:
        return
    if ending.status == "succeeded":
        _record_registration(store, api, ended_at)
    compute, training_s = api.job_spec().compute, max(0.0, ending.training_s - api.booked.training_s)
    row = UsageRow(
        day=ended_at.date(),
        team=api.team,
        key_id=api.key_id,
        model=api.id,
        kind="training",
        requests=1,
        prompt_tokens=max(0, ending.trained_tokens - api.booked.trained_tokens),
        worker_seconds=compute.workers * training_s,
        gpu_seconds=compute.workers * compute.gpus_per_worker * training_s,
        own_cpu_seconds=0.0 if compute.gpus_per_worker else compute.workers * compute.cpus_per_worker * training_s,
    )
    usage.write(store, row.team, row.day, api.job_id, run, [row])


def _record_registration(store: Store, api: ApiJob, ended_at: datetime) -> None:
    """Record that a job's model got its name and answers for it, which the job's pods do without the audit log."""
    actor = audit.Actor(name=api.key_id, via="api")
    details: dict[str, audit.Value] = {"job": api.job_id, "gate": api.job_spec().evaluation.must_beat_base}
    audit.record_once(
        store, actor, "model.register", api.id, at=ended_at, mark=api.digits, team=api.team, details=details
    )


def training_seconds(store: Store, api: ApiJob, job: CheckedRecord | None, now_s: float) -> float:
    """Return how long the job held its workers.

    At least as long as the endpoint saw its runners run, and no longer than since its first launch, whatever its pods
    report. In between, as reported: its finished stages, or all of an attempt that did not finish.
    """
    if not api.launches:
        return 0.0
    seen_s, most_s = api.held.until(now_s), max(0.0, now_s - api.launches[0].at)
    reported_s = 0.0 if job is None or job.attempt == 0 else _reported_s(api.workspace(store), job)
    return max(seen_s, min(reported_s, most_s))


def _reported_s(store: Workspace, job: CheckedRecord) -> float:
    stages = [stage for stage in jobs.stages(store, job.id) if stage.name in _WITH_WORKERS]
    if job.result is not None:
        return sum(stage.seconds for stage in stages)
    started, ended = job.started_at, job.finished_at or job.cancelled_at
    last_attempt_s = max(0.0, (ended - started).total_seconds()) if started is not None and ended is not None else 0.0
    return sum(stage.seconds for stage in stages if stage.attempt < job.attempt) + last_attempt_s
