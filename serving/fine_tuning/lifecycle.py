"""What a job's records and its launcher amount to, and what is to be done about it next. Pure.

A runner writes into the job's record how far it is; a launcher knows only whether a runner is alive. Each may be wrong
by itself: a record says `running` of a runner that was killed, a launcher that was started anew knows none of its
runners. Whoever asks must look at the launcher first and at the record after: then a runner that has ended has said in
the record what it had to say.

A launcher may take a runner's machines away and give it others later (preemption). The runner is the same, and nothing
was lost but its attempt: the job is queued again until another attempt begins.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray_jobs.jobs import JobRecord
from ray_jobs.launch.launcher import Runner
from serving.fine_tuning.records import ApiJob, Launch
from serving.http import openai_types as wire

MOST_LAUNCHES = 10
"""So many runners may vanish, since the job was created or last resumed, before it is given up."""
STOP_AFTER_S = 12.0
"""A runner that was told to stop by its record has so long to write a checkpoint before its launcher stops it."""
SILENCE_PATIENCE_S = 600.0
"""A job that was stopped is not closed while its launcher does not answer, for so long: its runner may still wait
there."""
RUNNER_FAILED = "runner_failed"
"""Code of a job whose runner could never start, or never end in time."""
_OVER = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Verdict:
    """What to answer whoever asks for a job's status."""

    status: wire.JobStatus
    error: wire.JobError | None = None

    @property
    def over(self) -> bool:
        return self.status in _OVER


@dataclass(frozen=True)
class Start:
    """A runner is to be started: `launch` anew, or the newest one again, which its launcher never heard of."""

    launch: Launch
    is_new: bool
    why: str


@dataclass(frozen=True)
class Stop:
    """A runner is to be stopped."""

    launch: Launch


@dataclass(frozen=True)
class Close:
    """It is over: write that down, and do what follows from it."""

    verdict: Verdict


Action = Start | Stop | Close | None


def status_of(api: ApiJob, job: JobRecord | None, runner: Runner) -> Verdict:
    """The status of a job. `job` None: its own record is not written yet. `runner`: of the newest launch."""
    if api.closed is not None:
        return Verdict(api.closed.status, api.closed.error)
    if job is None:
        return Verdict("validating_files")
    if job.status == "cancelled" or job.status == "succeeded":
        return Verdict(job.status)
    if job.status == "failed":
        return Verdict("failed", wire.JobError(code="job_failed", message=job.error or "the job failed"))
    if job.status == "paused" and not _is_resumed(api, job):
        return Verdict("paused")
    if runner.hopeless and api.launches:
        message = runner.message or "its launcher gives it up"
        return Verdict("failed", wire.JobError(code=RUNNER_FAILED, message=message))
    if lost(api, job, runner) and launches_so_far(api) >= MOST_LAUNCHES:
        message = runner.message or "its launcher does not know it any more"
        text = f"its runner was lost {MOST_LAUNCHES} times, last: {message}"
        return Verdict("failed", wire.JobError(code="runner_lost", message=text))
    if not api.launches:
        return Verdict("validating_files" if job.status == "queued" else "running")
    alive = runner.state in ("running", "pending", "unreachable")
    return Verdict("running" if has_begun(api, job) and alive and not _is_interrupted(job, runner) else "queued")


def decide(api: ApiJob, job: JobRecord | None, runner: Runner, now_s: float) -> Action:
    """What to do next about a job. Doing it twice, or in two processes at once, must come to the same."""
    if api.closed is not None or job is None:
        return None
    verdict, launch = status_of(api, job, runner), api.launch
    alive = runner.state in ("running", "pending")
    if verdict.over or verdict.status == "paused":
        told_at = job.cancelled_at if verdict.status == "cancelled" else job.paused_at
        # What waits has nothing to write, also where it ran before.
        writes = has_begun(api, job) and not _is_interrupted(job, runner)
        patience_s = STOP_AFTER_S if writes else 0.0
        if alive and launch is not None and told_at is not None and now_s - told_at.timestamp() >= patience_s:
            return Stop(launch)
        silent = runner.state == "unreachable" and launch is not None and verdict.status == "cancelled"
        if silent and told_at is not None and now_s - told_at.timestamp() < SILENCE_PATIENCE_S:
            return None
        return Close(verdict) if verdict.over else None
    if launch is None:
        return Start(_next(api, job, now_s), is_new=True, why="")
    if runner.state == "unknown" and not has_begun(api, job):
        return Start(launch, is_new=False, why="")
    if lost(api, job, runner) and now_s >= launch.at + wait_s(launches_so_far(api)):
        why = f"its runner ended: {runner.message}" if runner.message else "its runner was lost"
        return Start(_next(api, job, now_s), is_new=True, why=why)
    return None


def takes_for_lost(action: Action, api: ApiJob, job: JobRecord | None) -> bool:
    """Whether an action rests on a launcher's word that a runner is no more."""
    if isinstance(action, Start):
        return action.is_new and bool(api.launches)
    return isinstance(action, Close) and job is not None and not job.over()


def has_begun(api: ApiJob, job: JobRecord) -> bool:
    """Whether the newest launch's runner has made its attempt at the job."""
    return api.launch is not None and job.attempt > api.launch.attempt_before


def waits_for(api: ApiJob, job: JobRecord | None, runner: Runner) -> str | None:
    """What a job that is queued waits for, where its launcher says so."""
    if job is None or api.launch is None or status_of(api, job, runner).status != "queued":
        return None
    return runner.message or None if runner.state == "pending" else None


def _is_interrupted(job: JobRecord, runner: Runner) -> bool:
    """Whether the newest attempt is of machines that were taken away."""
    if runner.interrupted_at is None or job.started_at is None:
        return False
    return job.started_at.timestamp() < runner.interrupted_at


def lost(api: ApiJob, job: JobRecord, runner: Runner) -> bool:
    """Whether the newest launch's runner is gone without having ended the job."""
    gone = runner.state == "ended" or (runner.state == "unknown" and has_begun(api, job))
    return gone and api.launch is not None


def launches_so_far(api: ApiJob) -> int:
    """How many runners were started since the job was created or last resumed."""
    pauses = [launch.resumes for launch in api.launches]
    newest = next((pause for pause in reversed(pauses) if pause is not None), None)
    return len(pauses) - (0 if newest is None else pauses.index(newest))


def wait_s(launches: int) -> float:
    """Between the start of a runner that was lost and the next one's: 5 s, 10 s, 20 s, … at most 5 minutes."""
    return float(min(5 * 2 ** (launches - 1), 300))


def resumed(api: ApiJob, job: JobRecord, now_s: float) -> ApiJob:
    """The job with a launch that ends its pause; unchanged where it has one."""
    if job.paused_at is None or _is_resumed(api, job):
        return api
    launch = _next(api, job, now_s).model_copy(update={"resumes": job.paused_at.isoformat()})
    return api.model_copy(update={"launches": (*api.launches, launch)})


def _is_resumed(api: ApiJob, job: JobRecord) -> bool:
    return (
        api.launch is not None
        and job.paused_at is not None
        and api.launch.resumes == job.paused_at.isoformat()
        and not has_begun(api, job)
    )


def _next(api: ApiJob, job: JobRecord, now_s: float) -> Launch:
    # A runner that was lost before it began has not ended the pause.
    resumes = api.launch.resumes if api.launch is not None and _is_resumed(api, job) else None
    return Launch(number=len(api.launches) + 1, at=now_s, attempt_before=job.attempt, resumes=resumes)
