"""A whole job on one page: `run`, `tune` and `plan` walk the same list of stages (`stages.py`).

rows → dataset → base → encoded rows → (search) → training → evaluation → parity → registry → endpoint. A stage whose
record exists under the hash of its inputs is skipped, so a job that was killed resumes, and a finished job runs only
its deployment again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from ray_jobs import jobs, registry
from ray_jobs.data.dataset import Dataset
from ray_jobs.data.fixes import fixes
from ray_jobs.data.preparation import Preparation, TokenFit
from ray_jobs.errors import (
    DiskFull,
    GateError,
    JobCancelled,
    JobPaused,
    JobSuperseded,
    KitaeError,
    SpecError,
    WorkerLost,
)
from ray_jobs.jobs import Job, Launched, Released, StageRecord, checkpoint_request, sigterm
from ray_jobs.jobs.progress import StageProgress
from ray_jobs.jobs.runs import Heartbeat, describe_takeover
from ray_jobs.pages.messages import Speaker
from ray_jobs.pipeline import sources
from ray_jobs.pipeline.outputs import EncodedRows, Flow, MissingOutputError, SearchOutcome
from ray_jobs.pipeline.preview import Preview, preview_examples, preview_rows
from ray_jobs.pipeline.results import JobResult, PlannedStage, PlanReport, StageTime, TuneResult, job_result
from ray_jobs.pipeline.stage_work import StageContext
from ray_jobs.pipeline.stages import Stage, stages_of
from ray_jobs.spec import JobSpec, SearchSection
from ray_jobs.storage import Workspace
from ray_jobs.tracking.packages import require_packages
from ray_jobs.training import checkpoint
from ray_jobs.training.inputs import TrainOutcome
from ray_jobs.training.machine_errors import is_disk_full
from ray_jobs.training.metrics import write_csv
from ray_jobs.training.ray_workers import check_cluster

R = TypeVar("R", bound=BaseModel)

STAGE_TRIES = 3
_RETRY_AFTER_S = 10.0


def run(
    store: Workspace, spec: JobSpec, *, job_id: str | None = None, launched: Launched | Released | None = None
) -> JobResult:
    """Run or resume a job to its end. Raises the job's error, after writing it into the job's record.

    `job_id`: the record that is resumed. None: that of the job file.
    """
    everywhere = isinstance(launched, Launched) and launched.submitted

    def work(job: Job, run: Heartbeat) -> JobResult:
        flow, known = Flow(spec, job.id), sources.submitted(job.record, everywhere=everywhere)
        flow, times = _run_stages(job, run, stages_of(flow, sources.read_sources(store, flow, known)), flow)
        metrics_csv = write_csv(store, job.id, checkpoint.committed(store, flow.train_inputs.checkpoints))
        result = job_result(flow, times, metrics_csv)
        job.event("info", f"registered {result.model}@{result.version}", result.tuned)
        return result

    return _attempt(store, spec, work, job_id or jobs.id_of(store, spec), launched)


def tune(store: Workspace, spec: JobSpec) -> TuneResult:
    """Run or resume a job up to the end of its search; `run` resumes from there. Raises as `run`."""
    spec = spec if spec.search is not None else spec.model_copy(update={"search": SearchSection()})

    def work(job: Job, run: Heartbeat) -> TuneResult:
        flow, known = Flow(spec, job.id), sources.submitted(job.record, everywhere=False)
        stages = list(stages_of(flow, sources.read_sources(store, flow, known)))
        end = next(number for number, stage in enumerate(stages, 1) if stage.output is SearchOutcome)
        flow, _ = _run_stages(job, run, stages[:end], flow)
        found = flow.get(SearchOutcome)
        return TuneResult(job_id=job.id, run=found.run, params=found.params, page=found.page)

    return _attempt(store, spec, work, jobs.id_of(store, spec))


def plan(store: Workspace, spec: JobSpec) -> PlanReport:
    """Which stages a run would skip. Reads the rows, the bases' listings and the stage records; writes nothing.

    Raises as `checked`, and DataError for rows that are wrong.
    """
    job_id = jobs.id_of(store, spec)
    record = jobs.load(store, job_id) if jobs.exists(store, job_id) else None
    known = {} if record is None else sources.submitted(record, everywhere=False)
    flow, planned, gate_error = Flow(spec, job_id), list[PlannedStage](), ""
    report: Preparation | None = None
    fit: TokenFit | None = None
    for stage in stages_of(flow, checked(store, flow, known)):
        which = f" ({stage.base_model})" if stage.base_model and len(flow.base_models) > 1 else ""
        if stage.off is not None:
            action = stage.off
        elif gate_error:
            action = f"not reached: {gate_error}"
        elif (found := find_output(store, stage, flow)) is not None:
            done, output = found
            by = f"attempt {done.attempt}" if done.attempt else "`kitae submit`"
            action = f"skipped: done in {done.seconds:.0f} s by {by}{which}"
            flow = flow.with_output(stage.output, stage.base_model, output)
            if isinstance(output, EncodedRows) and (text := output.as_text()):
                action += f"; {text}"
            try:
                stage.gate(flow)
            except GateError as error:
                gate_error = str(error)
        else:
            about = _about(store, spec, stage)
            report, fit = about.report or report, about.fit or fit
            action = "will run" + which + (f": {about.text}" if about.text else "")
        planned.append(PlannedStage(stage.name, action))
    advice = () if report is None else fixes(Speaker("en"), report.model_copy(update={"fit": fit}))
    return PlanReport(spec, job_id, tuple(planned), tuple(each.as_text() for each in advice))


def _about(store: Workspace, spec: JobSpec, stage: Stage[Any]) -> Preview:
    """What a stage will do, for a plan. Raises DataError for rows that are wrong."""
    if stage.output is Dataset:
        return preview_rows(store, spec)
    if stage.output is EncodedRows:
        return preview_examples(store, spec, stage.base_model)
    return Preview(stage.description)


def checked(store: Workspace, flow: Flow, known: Mapping[str, str]) -> sources.Sources:
    """The fingerprints of a job's sources, once it is known that the job could begin. `known`: as `read_sources`.

    Raises MachineError if a tracker's package is missing, RegistryError if the model's name belongs to another team.
    """
    spec = flow.job_spec
    require_packages(spec.tracking)
    _require_team(store, spec)
    registry.require_owner(store, spec.name)
    return sources.read_sources(store, flow, known)


def find_output(store: Workspace, stage: Stage[Any], flow: Flow) -> tuple[StageRecord, Any] | None:
    """A finished stage's record and output. None: it has to run, or its inputs follow from a stage that has to."""
    if stage.inputs is None:
        return None
    try:
        record = jobs.read_stage(store, flow.job_id, stage.name, stage.inputs(flow))
    except MissingOutputError:
        return None
    if record is None:
        return None
    try:
        return record, TypeAdapter(stage.output).validate_python(record.outputs, extra="ignore")
    except ValidationError:  # written by a version whose outputs this one cannot read
        return None


def _run_stages(job: Job, run: Heartbeat, stages: Iterable[Stage[Any]], flow: Flow) -> tuple[Flow, list[StageTime]]:
    """Run the stages that have no record yet, and return the outputs and times of all."""
    times: list[StageTime] = []
    for stage in stages:
        if stage.off is None:
            output, time_taken = _run_stage(job, run, stage, flow)
            times.append(time_taken)
            flow = flow.with_output(stage.output, stage.base_model, output)
            stage.gate(flow)
    return flow, times


def _run_stage(job: Job, run: Heartbeat, stage: Stage[Any], flow: Flow) -> tuple[Any, StageTime]:
    job.check(fresh=True)
    if (found := find_output(job.store, stage, flow)) is not None:
        record, output = found
        print(f"{stage.name:<9}  skipped: done before, in {record.seconds:.0f} s", flush=True)
        return output, StageTime(name=stage.name, seconds=record.seconds, skipped=True)
    started = time.monotonic()
    job.event("info", f"stage {stage.name} started")
    print(f"{stage.name:<9}  started", flush=True)
    with StageProgress(stage.name) as progress, run.stage(stage.name):
        output = _tried(job, stage, flow, progress)
    job.check(fresh=True)
    if isinstance(output, TrainOutcome | SearchOutcome):
        run.add_tokens(output.tokens)
    seconds = time.monotonic() - started
    job.event("info", f"stage {stage.name} finished", {"seconds": round(seconds, 1)})
    if stage.inputs is not None:
        document = TypeAdapter(stage.output).dump_python(output, mode="json")
        job.finish_stage(stage.name, stage.inputs(flow), document, seconds)
    return output, StageTime(name=stage.name, seconds=seconds, skipped=False)


def _tried(job: Job, stage: Stage[Any], flow: Flow, progress: StageProgress) -> Any:
    """A stage's output. A stage that loses a worker by accident is tried again, up to `STAGE_TRIES` times in all; it
    resumes from what it has in the store. Without its cluster there is nothing to try it on."""
    for tries in range(1, STAGE_TRIES + 1):
        try:
            return stage.run(flow, StageContext(job, progress.update, may_join_cluster=True))
        except WorkerLost as error:
            check_cluster(job.id)
            if tries == STAGE_TRIES:
                raise
            job.event(
                "warning", f"stage {stage.name}: {error.message}; it is tried again ({tries + 1} of {STAGE_TRIES})"
            )
            for _ in range(int(_RETRY_AFTER_S * tries)):  # a machine that died takes a moment to be replaced
                time.sleep(1.0)
                job.check()
    raise AssertionError("unreachable")


def _attempt(
    store: Workspace,
    spec: JobSpec,
    work: Callable[[Job, Heartbeat], R],
    job_id: str,
    launched: Launched | Released | None = None,
) -> R:
    """Claim the job's next attempt and do its work. Raises what the work raises, after writing it into the record."""
    _require_team(store, spec)
    registry.claim_name(store, spec.name)  # before anything is written of a job that would be refused
    takeover = describe_takeover(store, job_id)
    job = jobs.start_attempt(store, spec, job_id, launched=launched)
    if takeover is not None:
        print(f"note: {takeover}", flush=True)
    job.event("info", f"attempt {job.attempt} started")
    try:
        require_packages(spec.tracking)
        with (
            sigterm.checkpoint_on_sigterm(job, pauses=not isinstance(launched, Launched) or launched.submitted),
            Heartbeat(job, spec).beating() as run,
        ):
            result = work(job, run)
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
                job.finish("failed", error=str(known), accident=isinstance(known, WorkerLost))
        if known is error:
            raise
        raise known from error
    return result


def _require_team(store: Workspace, spec: JobSpec) -> None:
    """The job's team is that of the workspace, and so of the credentials, not of the job file."""
    if spec.team not in (None, store.team):
        raise SpecError(
            f"the job file has team: {spec.team}, and this is the workspace of team {store.team!r} (KITAE_TEAM): leave "
            "team out, or start the job as that team"
        )


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
    return DiskFull(f"the disk is full: make room, or set TMPDIR and KITAE_CACHE to a larger disk ({error})")
