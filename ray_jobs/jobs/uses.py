"""What a base, a dataset or a job's checkpoints are used for: open jobs, and the jobs and models made from them.

Reads the records of all jobs and models, so it is for the command line. Deletes what no open job needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs import registry
from ray_jobs.errors import JobError, ObjectNotFound
from ray_jobs.jobs.record import JobRecord, StageRecord, exists, list_jobs, load, stages
from ray_jobs.registry.model import ModelVersion
from ray_jobs.storage import Workspace
from ray_jobs.storage.manifest import MANIFEST_NAME

_STAGE = "dataset"
_OF_ROWS = ("dataset-", "encode-")
"""Beginnings of the names of stage records that say that a dataset is in the store."""
_OF_TRAINING = ("checkpoints", "candidates", "search")
_TRAINED = ("search-", "train-", "evaluate-", "parity-")
_REGISTERED = "register-"


@dataclass(frozen=True)
class Uses:
    """Who uses something of the store."""

    open_jobs: tuple[str, ...]
    """Jobs that have not ended and need it."""
    jobs: tuple[str, ...]
    """All jobs that used it."""
    models: tuple[str, ...]
    """Versions made from it, `name@3`."""

    def require_unused(self, what: str) -> None:
        """Raise JobError while an open job needs it."""
        if self.open_jobs:
            raise JobError(
                f"{what} is used by open jobs: wait until they end, or cancel them first", details=self.open_jobs
            )

    def lines(self) -> Iterator[str]:
        """What was made from it, for people."""
        for name, found in (("jobs", self.jobs), ("models", self.models)):
            yield f"{name} made from it: {', '.join(found) or 'none'}"


def together(found: Sequence[Uses]) -> Uses:
    """The uses by several teams."""
    fields = ("open_jobs", "jobs", "models")
    return Uses(*(tuple(name for each in found for name in getattr(each, field)) for field in fields))


def of_base(store: Workspace, name: str, digest: str) -> Uses:
    """The uses of a base by its name in the catalogue and its digest."""
    using = [record for record in list_jobs(store) if name in _bases_of(record.spec)]
    models = (version for version in _versions(store) if version.base_digest == digest)
    return _uses([record for record in using if not record.over()], using, models)


def of_dataset(store: Workspace, digest: str) -> Uses:
    """The uses of a dataset. A running job that has not stored its dataset yet may be about to use it."""
    using, still = [], []
    for record in list_jobs(store):
        made = [stage for stage in stages(store, record.id) if stage.name == _STAGE]
        used = any(_digest_of(stage) == digest for stage in made)
        using += [record] if used else []
        still += [record] if not record.over() and (used or (record.status == "running" and not made)) else []
    models = (version for version in _versions(store) if version.lineage.dataset_digest == digest)
    return _uses(still, using, models)


def delete_dataset(store: Workspace, digest: str) -> None:
    """Delete a dataset with its encoded rows. The jobs made from it read their rows again when they are run again.

    Raises ObjectNotFound for an unknown digest, JobError while an open job needs it.
    """
    key = f"datasets/{digest}"
    try:
        manifest = store.get(f"{key}/{MANIFEST_NAME}")
    except ObjectNotFound:
        raise ObjectNotFound(f"no dataset {digest!r} in {store.uri('datasets')}; `kitae data` lists them") from None
    of_dataset(store, digest).require_unused(f"the dataset {digest}")
    store.delete(f"{key}/{MANIFEST_NAME}")  # a job that begins now does not find it
    uses = of_dataset(store, digest)
    try:
        uses.require_unused(f"the dataset {digest}")
    except JobError:
        store.put(f"{key}/{MANIFEST_NAME}", manifest)
        raise
    for job in uses.jobs:
        records = [info.key for info in store.list(f"jobs/{job}/stages")]
        store.delete([each for each in records if each.rpartition("/")[2].startswith(_OF_ROWS)])
    store.delete_tree(key)


def of_checkpoints(store: Workspace, job_id: str) -> Uses:
    """The uses of a job's checkpoints: the job until it has ended. Raises JobError for an unknown job."""
    record = load(store, job_id)
    models = (version for version in _versions(store) if version.lineage.job_id == job_id)
    return _uses([] if record.over() else [record], [record], models)


def delete_checkpoints(store: Workspace, job_id: str) -> None:
    """Delete the checkpoints, candidates and search of a job that has ended. Its record, events and metrics stay.

    A job without a registered model trains from the start when it is run again. Raises JobError for an open job.
    """
    of_checkpoints(store, job_id).require_unused(f"the training of {job_id}")
    trees = [f"jobs/{job_id}/{part}" for part in _OF_TRAINING]
    found = [info.key for tree in trees for info in store.list(tree)]
    names = [info.key for info in store.list(f"jobs/{job_id}/stages")]
    if not any(name.rpartition("/")[2].startswith(_REGISTERED) for name in names):
        store.delete([name for name in names if name.rpartition("/")[2].startswith(_TRAINED)])
    # Manifests first: a run that begins now finds a whole checkpoint or none.
    store.delete([key for key in found if key.endswith(f"/{MANIFEST_NAME}")])
    for tree in trees:
        store.delete_tree(tree)


def require_made(store: Workspace, version: ModelVersion) -> None:
    """Raise JobError for a version whose job has not ended: it may still evaluate, publish or deploy it."""
    job = version.lineage.job_id
    if exists(store, job) and not (record := load(store, job)).over():
        raise JobError(
            f"{version.name}@{version.version} is of job {job}, which is {record.status}: wait until it ends, or "
            "cancel it first"
        )


def _uses(still: list[JobRecord], using: list[JobRecord], models: Iterator[ModelVersion]) -> Uses:
    made = tuple(f"{version.name}@{version.version}" for version in models)
    return Uses(tuple(record.id for record in still), tuple(record.id for record in using), made)


def _versions(store: Workspace) -> Iterator[ModelVersion]:
    for name in registry.names(store):
        yield from registry.versions(store, name)


def _bases_of(spec: dict[str, Any]) -> list[Any]:
    """The base models that a stored job file names."""
    space = (spec.get("search") or {}).get("space") or {}
    tried = space.get("base_model")
    return [spec.get("base_model"), *(tried if isinstance(tried, list | tuple) else ())]


def _digest_of(stage: StageRecord) -> object:
    return stage.outputs.get("digest")
