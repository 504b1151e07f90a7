"""Converts jobs, events and checkpoints into OpenAI's shapes. Pure."""

from __future__ import annotations

from ray_jobs.data.report import RowReport
from ray_jobs.jobs import Event
from ray_jobs.registry import api_names
from serving.fine_tuning import records
from serving.fine_tuning.lifecycle import ACCIDENTS, ReportedStatus
from serving.fine_tuning.records import ApiJob
from serving.fine_tuning.reported import CheckedRecord, ReportedResult, result_of
from serving.fine_tuning.wording import for_callers
from serving.http import openai_types
from serving.http.ids import derived_id

_SAME_FIELDS = openai_types.FineTuningJob.model_fields.keys() & ApiJob.model_fields.keys()


def event_to_openai(event: Event, event_id: str, job_id: str) -> openai_types.FineTuningJobEvent:
    return openai_types.FineTuningJobEvent(
        id=event_id,
        created_at=int(event.at.timestamp()),
        level="warn" if event.level == "warning" else event.level,
        message=for_callers(event.message, job_id),
        type=event.kind,
        data=event.data,
    )


def to_openai(api: ApiJob, job: CheckedRecord | None, reported: ReportedStatus) -> openai_types.FineTuningJob:
    """Convert a job. `job` None: its own record is not written yet, or cannot be read."""
    done = reported.status == "succeeded"
    result = result_of(api, job) if job is not None and done else ReportedResult()
    finished = None
    if reported.over:
        ended = None if job is None else job.finished_at
        finished = api.closed.finished_at if api.closed else int(ended.timestamp()) if ended else None
    recorded = None if api.closed is None else api.closed.has_result_file
    has_file = result.has_metrics if recorded is None else recorded
    shown = result.model_dump(include={"base", "tuned", "base_is", "search"}, exclude_none=True)
    return openai_types.FineTuningJob(
        **api.model_dump(include=_SAME_FIELDS),
        finished_at=finished,
        fine_tuned_model=model_name(api) if done else None,
        organization_id=api.team,
        status=reported.status,
        result_files=[result_file_id(api, finished)] if finished is not None and has_file else [],
        trained_tokens=result.trained_tokens,
        error=_error(api, reported),
        result=shown if done else None,
    )


def _error(api: ApiJob, reported: ReportedStatus) -> openai_types.FineTuningJobError | None:
    """The job's error; after an accident with what the caller can do."""
    error = reported.error
    if error is None:
        return None
    message = for_callers(error.message, api.id)
    if error.code in ACCIDENTS and "/resume" not in message:
        message += f"; `POST /v1/fine_tuning/jobs/{api.id}/resume` resumes the job with what it has trained"
    return error.model_copy(update={"message": message})


def checkpoints_of(api: ApiJob, job: CheckedRecord | None) -> list[openai_types.FineTuningJobCheckpoint]:
    """Convert the published checkpoints of a finished job."""
    if job is None or job.finished_at is None:
        return []
    result = result_of(api, job)
    return [
        openai_types.FineTuningJobCheckpoint(
            id=f"ftckpt_{api.digits}-{found.step:08d}",
            created_at=int(job.finished_at.timestamp()),
            step_number=found.step,
            fine_tuned_model_checkpoint=model_name(api, f"ckpt-step-{found.step}"),
            fine_tuning_job_id=api.id,
            metrics=openai_types.FineTuningJobCheckpointMetrics(
                step=found.step,
                train_loss=found.train_loss,
                full_valid_loss=found.valid_loss,
                full_valid_mean_token_accuracy=found.valid_mean_token_accuracy,
            ),
            gated=found.version is not None and found.version == result.version,
        )
        for found in result.checkpoints
    ]


def model_name(api: ApiJob, checkpoint: str | None = None) -> str:
    """Return the API name of the job's model, or of one of its checkpoints."""
    return api_names.tuned_name(api.id, api.model, api.team, api.suffix, checkpoint)


def result_file_id(api: ApiJob, finished_at: int) -> str:
    """Return the id of the job's metrics file. Deterministic, so the file is created once; sorts by the job's end."""
    return derived_id("file", api.id, finished_at)


def dry_run(api: ApiJob, rows: RowReport, budget: dict[str, object] | None) -> openai_types.FineTuningJob:
    """Build the response to a dry run: a job with the job file that would run. `budget`: its team's, if it has one."""
    spec = api.job_spec()
    steps = -(-rows.rows // spec.training.batch_size) * spec.training.epochs
    plan = {
        "job_file": spec.model_dump(mode="json", exclude={"name", "team", "suffix"}),
        "rows": rows.model_dump(mode="json"),
        "steps": steps if spec.training.max_steps is None else min(steps, spec.training.max_steps),
        "trained_tokens": None if rows.tokens is None else rows.tokens * spec.training.epochs,
        "trials": None if spec.search is None else spec.search.trials,
        **({} if budget is None else {"budget": budget}),
    }
    job = to_openai(api, None, ReportedStatus("validating_files"))
    return job.model_copy(update={"id": f"{records.KIND}-dry-run", "dry_run": plan})
