"""A dataset in the store: `datasets/{digest}/` with a file of rows for each side and, last, manifest.json.

Owns the stored form, also that of earlier versions, and the digest: the same rows on the same sides for the same task
and recipe are the same dataset, whatever their source. `prepare.py` makes datasets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from ray_jobs.data.preparation import Preparation
from ray_jobs.data.split import SIDES, SideName
from ray_jobs.digests import json_sha256
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import Row

FORMAT = 3
"""Format of the manifest, which changes with what the preparation does to rows. 2: two sides, in the files' order."""
REPORT_FILE = "preparation.json"
"""The report of the preparation; absent up to format 2."""
_FORMER_FILE = "held_out.jsonl"
"""Both sides that are not trained, up to format 2."""


class Dataset(BaseModel):
    """A dataset without its rows."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    digest: str
    """16 hex digits over everything below but `version`, the recipe and the rows."""
    task: str
    train_rows: int
    validation_rows: int
    """They steer the training: its early stop, its best checkpoint, and a search."""
    test_rows: int
    """Only the evaluation that decides reads them."""
    labels: tuple[str, ...] = ()
    """Values of the task's label column in the training rows, sorted; empty for a task without labels."""
    repeated_rows: int = 0
    """Training rows that equal an earlier one. They stay, unless `data.clean` drops them."""
    leaked_rows: int = 0
    """Rows that were left out because rows on another side have their inputs, or nearly so."""
    version: str = ""
    """Its name and number, such as `reviews@3`. Empty: it has none."""

    @model_validator(mode="before")
    @classmethod
    def _former(cls, values: Any) -> Any:
        """Up to format 2 one held-out side was for both purposes."""
        if not isinstance(values, Mapping) or "held_out_rows" not in values:
            return values
        return {"validation_rows": values["held_out_rows"], "test_rows": values["held_out_rows"], **values}

    @property
    def key(self) -> str:
        """Its key in the store."""
        return f"datasets/{self.digest}"


@dataclass(frozen=True)
class SideRows(Collection[Row]):
    """Rows of a side, read line by line, in the task's form of today: an earlier version may have stored another."""

    path: Path
    task: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row]:
        task = TASKS[self.task]
        with self.path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield task.normalise(json.loads(line))

    def __contains__(self, row: object) -> bool:
        return any(each == row for each in self)


@dataclass(frozen=True)
class DatasetFiles:
    """A dataset on this machine. The files are shared: only read them."""

    dataset: Dataset
    directory: Path

    @cached_property
    def train_rows(self) -> list[Row]:
        return self.rows("train")

    @cached_property
    def validation_rows(self) -> list[Row]:
        return self.rows("validation")

    @cached_property
    def test_rows(self) -> list[Row]:
        return self.rows("test")

    def rows(self, side: SideName) -> list[Row]:
        """Rows of a side, in memory."""
        return list(self.side(side))

    def side(self, side: SideName) -> SideRows:
        """Rows of a side, from the disk."""
        return SideRows(self.path(side), self.dataset.task, getattr(self.dataset, f"{side}_rows"))

    def path(self, side: str) -> Path:
        """The file with a side's rows."""
        path = self.directory / file_of(side)
        return path if path.exists() else self.directory / _FORMER_FILE


def file_of(side: str) -> str:
    """Name of the file with a side's rows."""
    return f"{side}.jsonl"


def report_of(store: Workspace, digest: str) -> Preparation | None:
    """The report of a dataset's preparation. None: an earlier version made it. Raises ObjectNotFound without one."""
    path = store.fetch(f"datasets/{digest}") / REPORT_FILE
    return Preparation.model_validate_json(path.read_bytes()) if path.exists() else None


def from_manifest(digest: str, meta: Mapping[str, Any]) -> Dataset:
    """The dataset of a manifest."""
    return Dataset.model_validate({**meta, "digest": digest})


def digest_of(tree: Path, facts: dict[str, Any]) -> str:
    """The digest of a dataset from the files of its sides and the facts of its manifest."""
    digest = json_sha256(facts)
    for side in SIDES:
        with (tree / file_of(side)).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def find(store: Workspace, digest: str) -> Dataset | None:
    """A dataset without its rows; None if it does not exist."""
    manifest = store.read_manifest(f"datasets/{digest}")
    return None if manifest is None else from_manifest(digest, manifest.meta)


def load(store: Workspace, digest: str) -> DatasetFiles:
    """A dataset with its rows, downloaded to this machine's cache once. Raises ObjectNotFound without one."""
    directory = store.fetch(f"datasets/{digest}")
    dataset = find(store, digest)
    assert dataset is not None  # fetch has just read its manifest
    return DatasetFiles(dataset, directory)
