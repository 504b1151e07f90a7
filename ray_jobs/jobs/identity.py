"""Which record is that of a job file. Owns the ids that earlier versions gave to the same training."""

from __future__ import annotations

import re

from ray_jobs.errors import CorruptObject, JobError, SpecError
from ray_jobs.jobs.record import JobRecord, exists, load
from ray_jobs.spec import JobSpec, parse_spec
from ray_jobs.storage import Workspace

_DIGEST = re.compile(r"[0-9a-f]{10}")


def id_of(store: Workspace, spec: JobSpec) -> str:
    """The id of the job file's record, or the one that it gets.

    Earlier versions hashed the whole file, so a changed gate made another job: a record with the same name and identity
    is this job, the last that succeeded before any other.
    """
    if exists(store, spec.job_id):
        return spec.job_id
    named = (job_id.rpartition("-") for job_id in store.list_dirs("jobs/"))
    earlier = [f"{name}-{digest}" for name, _, digest in named if name == spec.name and _DIGEST.fullmatch(digest)]
    same = [record for job_id in earlier if (record := _readable(store, job_id)) and _is_same(record, spec)]
    if not same:
        return spec.job_id
    return max(same, key=lambda record: (record.status == "succeeded", record.created_at)).id


def _readable(store: Workspace, job_id: str) -> JobRecord | None:
    try:
        return load(store, job_id)
    except (CorruptObject, JobError):  # reported where it is listed; a prefix without a record
        return None


def _is_same(record: JobRecord, spec: JobSpec) -> bool:
    try:
        return parse_spec(record.spec, stored=True).identity == spec.identity
    except SpecError:
        return False
