"""An attempt: claims the job, runs its stages or finds their records, and records how it ended.

Knows no stage. What a stage's error means for the record is decided here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel

from ray_jobs import jobs
from ray_jobs.errors import JobCancelled, JobPaused, JobSuperseded, KitaeError, MachineError
from ray_jobs.jobs import Job, Launched, StageRecord, checkpoint_request, sigterm
from ray_jobs.jobs.progress import stage_progress
from ray_jobs.pipeline.outputs import Flow, MissingOutputError
from ray_jobs.pipeline.results import StageTime
from ray_jobs.pipeline.stage import Stage, StageContext
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store
from ray_jobs.training.machine_errors import is_disk_full

R = TypeVar("R", bound=BaseModel)
Find = Callable[[str, dict[str, Any]], StageRecord | None]
"""The record of a stage by its name and its inputs."""


def attempt(store: Store, spec: JobSpec, work: Callable[[Job], R], launched: Launched | None = None) -> R:
    """Claim the job's next attempt and do its work. Raises what the work raises, after writing it into the record."""
    job = jobs.start_attempt(store, spec, launched=launched)
    job.event("info", f"attempt {job.attempt} started")
    try:
        with sigterm.checkpoint_on_sigterm(job, pauses=launched is None):
            result = work(job)
        job.finish("succeeded", result=result.model_dump(mode="json"))
    except (JobCancelled, JobPaused, JobSuperseded) as error:
        job.event("warning", str(error))
        raise
    except KeyboardInterrupt:
        with contextlib.suppress(KitaeError):
            job.finish("cancelled")
        raise
    except Exception as error:
        known = _known(error)
        with contextlib.suppress(KitaeError):  # the job's own error matters more than one of the record
            if _machines_are_going(job):
                job.event("warning", f"its machines were taken away; it resumes on others ({known})")
            else:
                job.event("error", str(known))
                job.finish("failed", error=str(known))
        if known is error:
            raise
        raise known from error
    return result


def find_output(stage: Stage[Any], flow: Flow, find: Find) -> tuple[StageRecord, Any] | None:
    """A finished stage's record and output. None: it has to run, or its inputs follow from a stage that has to."""
    if stage.inputs is None:
        return None
    try:
        record = find(stage.name, stage.inputs(flow))
    except MissingOutputError:
        return None
    output = None if record is None else stage.read(record)
    return None if record is None or output is None else (record, output)


class StageRunner:
    """Runs the stages that have no record yet, shows their progress and keeps their times."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.times: list[StageTime] = []

    def run(self, stages: list[Stage[Any]], flow: Flow) -> Flow:
        """Walk the stages that the job runs."""
        for stage in stages:
            if stage.off is None:
                flow = flow.with_output(stage.output, stage.base_model, self._output(stage, flow))
                stage.gate(flow)
        return flow

    def _output(self, stage: Stage[Any], flow: Flow) -> Any:
        self.job.check(fresh=True)
        if (found := find_output(stage, flow, self.job.stage)) is not None:
            record, output = found
            self.times.append(StageTime(name=stage.name, seconds=record.seconds, skipped=True))
            print(f"{stage.name:<9}  skipped: done before, in {record.seconds:.0f} s", flush=True)
            return output
        started = time.monotonic()
        self.job.event("info", f"stage {stage.name} started")
        print(f"{stage.name:<9}  started", flush=True)
        with stage_progress(stage.name) as progress:
            output = stage.run(flow, StageContext(self.job, progress.update))
        self.job.check(fresh=True)
        seconds = time.monotonic() - started
        self.job.event("info", f"stage {stage.name} finished", {"seconds": round(seconds, 1)})
        self.times.append(StageTime(name=stage.name, seconds=seconds, skipped=False))
        if stage.inputs is not None:
            self.job.finish_stage(stage.name, stage.inputs(flow), stage.document(output), seconds)
        return output


def _machines_are_going(job: Job) -> bool:
    """Whether this attempt was given a checkpoint request: an error after one follows from the end of the machines, and
    the next attempt meets any other cause again."""
    with contextlib.suppress(KitaeError):
        return checkpoint_request.was_requested(job.store, job.id, job.attempt)
    return False


def _known(error: Exception) -> Exception:
    """A full disk as an error with its fix; every other error unchanged."""
    if isinstance(error, KitaeError) or not is_disk_full(error):
        return error
    return MachineError(f"the disk is full: make room, or set TMPDIR and KITAE_CACHE to a larger disk ({error})")
