"""What the API tells of a job: its records in OpenAI's shapes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_jobs.jobs import Event, JobRecord
from ray_jobs.registry import api_names as wire_names
from serving.fine_tuning import records
from serving.fine_tuning.lifecycle import Verdict
from serving.fine_tuning.records import ApiJob
from serving.fine_tuning.request import Resolved
from serving.http import openai_types as wire
from serving.http.ids import id_after

_LEVELS: Mapping[str, Any] = {"info": "info", "warning": "warn", "error": "error"}


def event_of(event: Event, event_id: str) -> wire.Event:
    """An event as the API tells it."""
    return wire.Event(
        id=event_id,
        created_at=int(event.at.timestamp()),
        level=_LEVELS[event.level],
        message=event.message,
        type=event.kind,
        data=event.data,
    )


def as_wire(api: ApiJob, job: JobRecord | None, verdict: Verdict) -> wire.Job:
    """A job as the API tells it. Pure."""
    done = verdict.status == "succeeded"
    result = (job.result if job is not None and done else None) or {}
    finished = None
    if verdict.over:
        ended = None if job is None else job.finished_at
        finished = api.closed.finished_at if api.closed else int(ended.timestamp()) if ended else None
    return wire.Job(
        id=api.id,
        created_at=api.created_at,
        finished_at=finished,
        model=api.model,
        fine_tuned_model=model_name(api) if done else None,
        organization_id=api.team,
        status=verdict.status,
        hyperparameters=api.hyperparameters,
        training_file=api.training_file,
        validation_file=api.validation_file,
        result_files=[result_file_id(api, finished)] if finished is not None and "metrics_csv" in result else [],
        trained_tokens=result.get("trained_tokens"),
        error=verdict.error,
        seed=api.seed,
        method=api.method,
        metadata=api.metadata,
        integrations=api.integrations,
        result={key: result[key] for key in ("base", "tuned", "base_is", "search") if key in result} if done else None,
    )


def checkpoints_of(api: ApiJob, job: JobRecord | None) -> list[wire.Checkpoint]:
    """What a job has published on its way. Pure."""
    result = (job.result if job is not None else None) or {}
    if job is None or job.finished_at is None:
        return []
    return [
        wire.Checkpoint(
            id=f"ftckpt_{api.digits}-{found['step']:08d}",
            created_at=int(job.finished_at.timestamp()),
            step_number=found["step"],
            fine_tuned_model_checkpoint=model_name(api, f"ckpt-step-{found['step']}"),
            fine_tuning_job_id=api.id,
            metrics=wire.CheckpointMetrics(
                step=found["step"],
                train_loss=found.get("train_loss"),
                full_valid_loss=found.get("valid_loss"),
                full_valid_mean_token_accuracy=found.get("valid_mean_token_accuracy"),
            ),
        )
        for found in result.get("checkpoints", [])
    ]


def model_name(api: ApiJob, checkpoint: str | None = None) -> str:
    """What its model is called, or a checkpoint of it."""
    return wire_names.tuned_name(api.id, api.model, api.team, api.suffix, checkpoint)


def result_file_id(api: ApiJob, finished_at: int) -> str:
    """Of the file with its metrics: always the same, so that it is made once; of the time of the job's end, so that
    it is the newest of a list then."""
    return id_after("file", api.id, finished_at)


def dry_run(api: ApiJob, resolved: Resolved, rows: Mapping[str, Any]) -> wire.Job:
    """What a request would come to, in the shape of a job. Pure."""
    spec = resolved.spec
    steps = -(-rows["rows"] // spec.training.batch_size) * spec.training.epochs
    tokens = rows.get("tokens")
    told = {
        "job_file": spec.model_dump(mode="json", exclude={"name", "team", "suffix"}),
        "rows": rows,
        "steps": steps if spec.training.max_steps is None else min(steps, spec.training.max_steps),
        "trained_tokens": None if tokens is None else tokens * spec.training.epochs,
        "trials": None if spec.search is None else spec.search.trials,
    }
    job = as_wire(api, None, Verdict("validating_files"))
    return job.model_copy(update={"id": f"{records.KIND}-dry-run", "dry_run": told})
