"""What a base or a dataset is used for: the open jobs that need it, the jobs and the models made from it.

Reads the records of all jobs and models, so it is for the command line. Deletes a dataset that no open job needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs import registry
from ray_jobs.errors import JobError, ObjectNotFound
from ray_jobs.jobs.record import JobRecord, StageRecord, list_jobs, stages
from ray_jobs.registry.model import ModelVersion
from ray_jobs.storage import Workspace
from ray_jobs.storage.manifest import MANIFEST_NAME

_STAGE = "dataset"
_OF_ROWS = ("dataset-", "encode-")
"""Names of stage records that say that a dataset is in the store."""


@dataclass(frozen=True)
class Uses:
    """Who uses a base or a dataset."""

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
        raise ObjectNotFound(f"no dataset {digest!r} in {store.uri('datasets')}; `kitae datasets` lists them") from None
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
