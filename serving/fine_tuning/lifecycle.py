"""Status and next action of a job, from its records and its launcher. Pure.

A runner writes its progress into the job's record; a launcher knows only whether the runner is alive. Either may be
outdated: the record says `running` after a runner was killed, and a restarted launcher knows none of its runners. A
caller therefore reads the launcher first and the record second: then the record of an ended runner is complete.

A launcher may preempt a runner and resume it later on other machines. It remains the same runner and loses only its
attempt: the job is queued until the next attempt begins.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray_jobs.jobs.attempts import ends, stopped
from ray_jobs.launch.launcher import Runner
from serving.fine_tuning.records import ApiJob, Booked, HeldTime, Launch
from serving.fine_tuning.reported import CheckedRecord
from serving.http import openai_types

MAX_LAUNCHES = 10
"""Runners that may be lost, since the job was created or last resumed, before the job fails."""
STOP_GRACE_S = 12.0
"""Seconds that a runner has to write a checkpoint, after its record asks it to stop, before its launcher stops it."""
UNREACHABLE_PATIENCE_S = 600.0
"""Seconds that a cancelled job stays open while its launcher is unreachable, where its runner may still be queued."""
RUNNER_FAILED = "runner_failed"
"""Error code of a job whose runner cannot start, or did not end in time."""
RUNNER_LOST = "runner_lost"
"""Error code of a job whose runners were lost too often."""
WORKER_LOST = "worker_lost"
"""Error code of a job whose workers could not start or died, more often than it tries again by itself."""
ACCIDENTS = (RUNNER_FAILED, RUNNER_LOST, WORKER_LOST)
"""Failures that are not the job's own: it can be resumed, and keeps what it has trained."""


@dataclass(frozen=True)
class ReportedStatus:
    """A job's status as the API reports it."""

    status: openai_types.FineTuningJobStatus
    error: openai_types.FineTuningJobError | None = None

    @property
    def over(self) -> bool:
        return self.status in ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class StartRunner:
    """Start a runner: for a new launch, or again for the newest one, which its launcher does not know."""

    launch: Launch
    is_new: bool
    reason: str


@dataclass(frozen=True)
class StopRunner:
    launch: Launch


@dataclass(frozen=True)
class CloseJob:
    """Close an ended job: publish its end and record the final status."""

    reported: ReportedStatus


Action = StartRunner | StopRunner | CloseJob | None


def status_of(api: ApiJob, job: CheckedRecord | None, runner: Runner) -> ReportedStatus:
    """Return a job's status. `job`: None if its own record is not written yet. `runner`: that of the newest launch."""
    if (end := api.closed or api.ending) is not None:
        return ReportedStatus(end.status, end.error)
    if job is None:
        return ReportedStatus("validating_files")
    if job.status == "cancelled" or job.status == "succeeded":
        return ReportedStatus(job.status)
    if job.status == "failed" and not _is_resumed(api, job):
        return _failed(code=WORKER_LOST if job.accident else "job_failed", message=job.error or "the job failed")
    if job.status == "paused" and not _is_resumed(api, job):
        return ReportedStatus("paused")
    if runner.hopeless and api.launches:
        return _failed(code=RUNNER_FAILED, message=runner.message or "its launcher cannot run it")
    if is_lost(api, job, runner) and launches_so_far(api) >= MAX_LAUNCHES:
        last = runner.message or "its launcher does not know it"
        return _failed(code=RUNNER_LOST, message=f"its runner was lost {MAX_LAUNCHES} times, last: {last}")
    if not api.launches:
        return ReportedStatus("validating_files" if job.status == "queued" else "running")
    alive = runner.state in ("running", "pending", "unreachable")
    return ReportedStatus("running" if has_begun(api, job) and alive and not _is_interrupted(job, runner) else "queued")


def status_of_unreadable(api: ApiJob, runner: Runner) -> ReportedStatus:
    """Return the status of a job whose record cannot be read: what its launcher says. It can be cancelled."""
    if (end := api.closed or api.ending) is not None:
        return ReportedStatus(end.status, end.error)
    return ReportedStatus("running" if runner.state == "running" else "queued")


def metered(api: ApiJob, runner: Runner, now_s: float) -> ApiJob:
    """Return the job with the time for which its runner was seen to run; unchanged without a change of state."""
    over = api.closed is not None or api.ending is not None
    if over or api.launch is None or runner.state == "unreachable":
        return api
    if runner.state == "running":
        held = api.held if api.held.since is not None else api.held.model_copy(update={"since": now_s})
    else:
        held = api.held if api.held.since is None else HeldTime(seconds=api.held.until(now_s))
    return api if held == api.held else api.model_copy(update={"held": held})


def _failed(*, code: str, message: str) -> ReportedStatus:
    return ReportedStatus("failed", openai_types.FineTuningJobError(code=code, message=message))


def decide(api: ApiJob, job: CheckedRecord | None, runner: Runner, now_s: float) -> Action:
    """Return the next action for a job. Actions are idempotent, also across processes."""
    if api.closed is None and api.ending is not None:
        return CloseJob(status_of(api, job, runner))
    if api.closed is not None or job is None:
        return None
    reported, launch = status_of(api, job, runner), api.launch
    if reported.over or reported.status == "paused":
        requested_at = job.cancelled_at if reported.status == "cancelled" else job.paused_at
        if launch is not None and requested_at is not None:
            waited_s = abs(now_s - requested_at.timestamp())  # a pod may have written a time in the future
            # A queued runner has no checkpoint to write, even if it ran before.
            grace_s = STOP_GRACE_S if has_begun(api, job) and not _is_interrupted(job, runner) else 0.0
            if runner.state in ("running", "pending") and waited_s >= grace_s:
                return StopRunner(launch)
            unreachable = runner.state == "unreachable" and reported.status == "cancelled"
            if unreachable and waited_s < UNREACHABLE_PATIENCE_S:
                return None
        return CloseJob(reported) if reported.over else None
    if launch is None:
        return StartRunner(_next(api, job, now_s), is_new=True, reason="")
    if runner.state == "unknown" and not has_begun(api, job):
        return StartRunner(launch, is_new=False, reason="")
    if is_lost(api, job, runner) and now_s >= launch.at + relaunch_delay_s(launches_so_far(api)):
        reason = f"its runner ended: {runner.message}" if runner.message else "its runner was lost"
        return StartRunner(_next(api, job, now_s), is_new=True, reason=reason)
    return None


def is_pending(api: ApiJob, job: CheckedRecord | None, runner: Runner) -> bool:
    """Return whether a job needs no other change than time for its next action."""
    if job is None:
        return api.closed is None
    return decide(api, job, runner, float("inf")) is not None


def assumes_runner_lost(action: Action, api: ApiJob, job: CheckedRecord | None) -> bool:
    """Return whether an action relies on the launcher's report that a runner is gone."""
    if isinstance(action, StartRunner):
        return action.is_new and bool(api.launches)
    return isinstance(action, CloseJob) and job is not None and not job.over()


def has_begun(api: ApiJob, job: CheckedRecord) -> bool:
    """Return whether the newest launch's runner has started its attempt."""
    return api.launch is not None and job.attempt > api.launch.attempt_before


def waits_for(api: ApiJob, job: CheckedRecord | None, runner: Runner) -> str | None:
    """Return the launcher's reason for a queued job's waiting, if it gives one."""
    if job is None or api.launch is None or status_of(api, job, runner).status != "queued":
        return None
    return runner.message or None if runner.state == "pending" else None


def _is_interrupted(job: CheckedRecord, runner: Runner) -> bool:
    """Return whether the newest attempt was preempted."""
    began, interrupted_at = job.started_at, runner.interrupted_at
    return began is not None and interrupted_at is not None and began.timestamp() < interrupted_at


def is_lost(api: ApiJob, job: CheckedRecord, runner: Runner) -> bool:
    """Return whether the newest launch's runner is gone without having ended the job."""
    gone = runner.state == "ended" or (runner.state == "unknown" and has_begun(api, job))
    return gone and api.launch is not None


def launches_so_far(api: ApiJob) -> int:
    """Count the runners started since the job was created or last resumed."""
    pauses = [launch.resumes for launch in api.launches]
    newest = next((pause for pause in reversed(pauses) if pause is not None), None)
    return len(pauses) - (0 if newest is None else pauses.index(newest))


def relaunch_delay_s(launches: int) -> float:
    """Return the seconds between the start of a lost runner and the next start: 5, 10, 20, … at most 300."""
    return float(min(5 * 2 ** (launches - 1), 300))


def resumed(api: ApiJob, job: CheckedRecord, now_s: float) -> ApiJob:
    """Return the job with a launch that ends its pause or its failure; unchanged if it already has one.

    What was booked at its failure is not booked again at its next end.
    """
    stopped_at = stopped(job)
    if stopped_at is None or _is_resumed(api, job):
        return api
    launch = _next(api, job, now_s).model_copy(update={"resumes": stopped_at.isoformat()})
    reopened: dict[str, object] = {"ending": None, "closed": None}
    if (end := api.closed or api.ending) is not None:
        reopened["booked"] = Booked(training_s=end.training_s, trained_tokens=end.trained_tokens)
    return api.with_launch(launch).model_copy(update=reopened)


def can_resume(reported: ReportedStatus) -> bool:
    """Return whether a job can be resumed: it is paused, or failed by accident."""
    return reported.status == "paused" or (reported.error is not None and reported.error.code in ACCIDENTS)


def _is_resumed(api: ApiJob, job: CheckedRecord) -> bool:
    return api.launch is not None and ends(job, api.launch.resumes) and not has_begun(api, job)


def _next(api: ApiJob, job: CheckedRecord, now_s: float) -> Launch:
    # A runner lost before it began has not ended the pause.
    resumes = api.launch.resumes if api.launch is not None and _is_resumed(api, job) else None
    return Launch(number=api.launched + 1, at=now_s, attempt_before=job.attempt, resumes=resumes)
