"""What a submitted job needs before its runner starts: local rows and bases go into the store, from where they are.

Owns `prepare`, which runs those first stages of a job that read files of this machine. The runner finds their records
and reads no file, so it may be on another machine. Does not know Ray.
"""

from __future__ import annotations

import time

from pydantic import TypeAdapter

from ray_jobs import jobs, registry
from ray_jobs.data.dataset import Dataset
from ray_jobs.jobs import Job, JobRecord, StageRecord
from ray_jobs.jobs.progress import StageProgress
from ray_jobs.pipeline.outputs import BaseCopy, Flow
from ray_jobs.pipeline.pipeline import checked, find_output
from ray_jobs.pipeline.sources import local_sources
from ray_jobs.pipeline.stage_work import StageContext
from ray_jobs.pipeline.stages import Stage, stages_of
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace


def prepare(store: Workspace, spec: JobSpec, job_id: str | None = None) -> JobRecord:
    """Check the job as `plan` does, put its local rows and bases into the store, and record the job as queued.

    `job_id`: as `jobs.id_of` finds it. No attempt is claimed: a runner of the job that is alive continues. Raises as
    `plan`, and as the stages; then the job's record is unchanged.
    """
    flow = Flow(spec, job_id or jobs.id_of(store, spec))
    found = checked(store, flow, {})
    local = local_sources(store, flow)
    reads = {Dataset: spec.data.sources}
    for stage in stages_of(flow, found):
        read = {stage.base_model} if stage.output is BaseCopy else reads.get(stage.output, ())
        if local.intersection(read) and find_output(store, stage, flow) is None:
            _run(store, flow, stage)
    prints = {**dict(zip(spec.data.sources, found.rows, strict=True)), **found.bases}
    registry.claim_name(store, spec.name)  # before the job is recorded, as a run does
    return jobs.queue(store, spec, flow.job_id, {source: prints[source] for source in local})


def _run(store: Workspace, flow: Flow, stage: Stage[object]) -> None:
    spec, started = flow.job_spec, time.monotonic()
    assert stage.inputs is not None
    print(f"{stage.name:<9}  started", flush=True)
    # These stages use the store of their job, and nothing else of it.
    job = Job(store, JobRecord(id=flow.job_id, spec=spec.model_dump(mode="json"), created_at=store.now()))
    with StageProgress(stage.name) as progress:
        output = stage.run(flow, StageContext(job, progress.update))
    record = StageRecord(
        name=stage.name,
        inputs=stage.inputs(flow),
        outputs=TypeAdapter(stage.output).dump_python(output, mode="json"),
        seconds=time.monotonic() - started,
        attempt=0,
        finished_at=store.now(),
    )
    jobs.write_stage(store, flow.job_id, record)
