"""A whole job on one page: `run`, `tune` and `plan` walk the same list of stages (`stages.py`).

rows → dataset → base → encoded rows → (search) → training → evaluation → parity → registry → endpoint. A stage whose
record exists under the hash of its inputs is skipped, so a job that was killed resumes, and a finished job runs only
its deployment again.
"""

from __future__ import annotations

from functools import partial

from ray_jobs.errors import GateError
from ray_jobs.jobs import Job, Launched
from ray_jobs.jobs.record import read_stage
from ray_jobs.pipeline import sources
from ray_jobs.pipeline.attempt import StageRunner, attempt, find_output
from ray_jobs.pipeline.outputs import Flow, SearchOutcome
from ray_jobs.pipeline.results import JobResult, PlannedStage, PlanReport, TuneResult, job_result
from ray_jobs.pipeline.stages import stages_of
from ray_jobs.spec import JobSpec, SearchSection
from ray_jobs.storage import Store
from ray_jobs.training import checkpoint
from ray_jobs.training.metrics import write_csv


def run(store: Store, spec: JobSpec, *, launched: Launched | None = None) -> JobResult:
    """Run or resume a job to its end. Raises the job's error, after writing it into the job's record."""

    def work(job: Job) -> JobResult:
        flow, runner = Flow(spec), StageRunner(job)
        flow = runner.run(stages_of(flow, sources.read_sources(store, spec, flow.base_models)), flow)
        metrics_csv = write_csv(store, job.id, checkpoint.committed(store, flow.train_inputs.checkpoints))
        result = job_result(flow, runner.times, metrics_csv)
        job.event("info", f"registered {result.model}@{result.version}", result.tuned)
        return result

    return attempt(store, spec, work, launched)


def tune(store: Store, spec: JobSpec) -> TuneResult:
    """Run or resume a job up to the end of its search; `run` resumes from there. Raises as `run`."""
    spec = spec if spec.search is not None else spec.model_copy(update={"search": SearchSection()})

    def work(job: Job) -> TuneResult:
        flow = Flow(spec)
        stages = stages_of(flow, sources.read_sources(store, spec, flow.base_models))
        end = next(number for number, stage in enumerate(stages, 1) if stage.output is SearchOutcome)
        found = StageRunner(job).run(stages[:end], flow).get(SearchOutcome)
        return TuneResult(job_id=job.id, run=found.run, params=found.params, page=found.page)

    return attempt(store, spec, work)


def plan(store: Store, spec: JobSpec) -> PlanReport:
    """Which stages a run would skip. Reads the rows, the bases' listings and the stage records; writes nothing."""
    flow, planned, gate_error = Flow(spec), list[PlannedStage](), ""
    for stage in stages_of(flow, sources.read_sources(store, spec, flow.base_models)):
        which = f" ({stage.base_model})" if stage.base_model and len(flow.base_models) > 1 else ""
        if stage.off is not None:
            action = stage.off
        elif gate_error:
            action = f"not reached: {gate_error}"
        elif (found := find_output(stage, flow, partial(read_stage, store, spec.job_id))) is not None:
            record, output = found
            action = f"skipped: done in {record.seconds:.0f} s by attempt {record.attempt}{which}"
            flow = flow.with_output(stage.output, stage.base_model, output)
            try:
                stage.gate(flow)
            except GateError as error:
                gate_error = str(error)
        else:
            action = "will run" + which + (f": {stage.description}" if stage.description else "")
        planned.append(PlannedStage(stage.name, action))
    return PlanReport(spec.job_id, spec, tuple(planned))
