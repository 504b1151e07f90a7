"""Names and versions of datasets: `dataset-versions/{name}/{number}.json`, each with the digest of a dataset.

A job's rows become the next version of its dataset's name, unless they are the newest one already. Knows no rows.
"""

from __future__ import annotations

import re
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from ray_jobs.data.dataset import Dataset, find
from ray_jobs.errors import ConflictError, DataError, ObjectNotFound
from ray_jobs.spec import DataSection
from ray_jobs.spec.split import SplitSection
from ray_jobs.storage import Workspace
from ray_jobs.storage.documents import Documents

_DIGITS = 6
_DIGEST = re.compile("[0-9a-f]{16}")


class DatasetVersion(BaseModel):
    """One version of a named dataset."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    number: int
    digest: str
    split: SplitSection | None = None
    """How it was split. Sides are kept from version to version while this is the same."""
    job_id: str
    """The job that made it."""
    created_at: datetime

    @property
    def label(self) -> str:
        """`reviews@3`."""
        return f"{self.name}@{self.number}"


_VERSIONS = Documents(
    "dataset-versions/",
    DatasetVersion,
    "a dataset's version",
    lambda key, version: None if key == _key(version.name, version.number) else "it is of another version",
)


def all_versions(store: Workspace) -> list[DatasetVersion]:
    """Every version of every name, sorted."""
    return list(_VERSIONS.read_all(store).values())


def newest(store: Workspace, name: str) -> DatasetVersion | None:
    """The newest version of a name; None without one."""
    numbers = [key for key in _VERSIONS.names(store) if key.startswith(f"{name}/")]
    return _VERSIONS.find(store, numbers[-1]) if numbers else None


def resolve(store: Workspace, label: str) -> Dataset:
    """The dataset that `reviews` or `reviews@3` names. Raises ObjectNotFound, also where its rows were deleted."""
    name, at, number = label.partition("@")
    version = None
    if number.isdecimal():
        version = _VERSIONS.read(store, _key(name, int(number)))
    elif not at:
        version = newest(store, name)
    if version is None:
        raise _unknown(store, label, name)
    found = find(store, version.digest)
    if found is None:
        raise ObjectNotFound(f"the rows of {version.label} were deleted; prepare them again, or name another version")
    return found.model_copy(update={"version": version.label})


def find_dataset(store: Workspace, label: str) -> Dataset:
    """The dataset that a name, `reviews@3` or a digest names. Raises ObjectNotFound."""
    found = find(store, label) if _DIGEST.fullmatch(label) else None
    return found or resolve(store, label)


def dataset_of(store: Workspace, label: str, task: str) -> Dataset:
    """`resolve`, for a job. Raises DataError if the dataset is of another task."""
    found = resolve(store, label)
    if found.task != task:
        raise DataError(f"data.dataset: {found.version} has rows for the task {found.task}, and the job's is {task}")
    return found


def record(store: Workspace, name: str, data: DataSection, dataset: Dataset, job_id: str) -> DatasetVersion:
    """The dataset's version under a name: the newest one if it is this dataset, else the next."""
    while True:
        last = newest(store, name)
        if last is not None and last.digest == dataset.digest:
            return last
        version = DatasetVersion(
            name=name,
            number=1 if last is None else last.number + 1,
            digest=dataset.digest,
            split=data.split,
            job_id=job_id,
            created_at=store.now(),
        )
        try:
            _VERSIONS.create(store, _key(name, version.number), version)
        except ConflictError:  # another job has just recorded one
            continue
        return version


def _unknown(store: Workspace, label: str, name: str) -> ObjectNotFound:
    """The error for a label, with the labels that exist."""
    keys = [key.partition("/") for key in _VERSIONS.names(store)]
    numbers = [number.lstrip("0") for each, _, number in keys if each == name]
    known = ", ".join(sorted({each for each, _, _ in keys})[:20]) or "none yet"
    return ObjectNotFound(
        f"no dataset {label}; {f'{name} has ' + ', '.join(numbers[-10:]) if numbers else f'known: {known}'}"
    )


def _key(name: str, number: int) -> str:
    return f"{name}/{number:0{_DIGITS}}"
