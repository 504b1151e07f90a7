"""A versioned dataset in the store: `datasets/{digest}/` with train.jsonl, held_out.jsonl and, last, manifest.json.

Owns the digest: the same rows on the same sides for the same task are the same dataset, whatever their source. Keeps
the order of the file; batching decides the order of training.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ray_jobs.data.ingest import Findings, canonical_line, check_mapping, local_copy, read_rows
from ray_jobs.data.split import choose, row_digest, split, without_leak
from ray_jobs.digests import json_sha256
from ray_jobs.errors import DataError
from ray_jobs.spec import DataSection
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import Row, Task

TRAIN_FILE = "train.jsonl"
HELD_OUT_FILE = "held_out.jsonl"


@dataclass(frozen=True)
class Dataset:
    """A dataset without its rows."""

    digest: str
    """16 hex digits over everything below and the rows."""
    task: str
    train_rows: int
    held_out_rows: int
    labels: tuple[str, ...]
    """Values of the task's label column in the training rows, sorted; empty for a task without labels."""
    repeated_rows: int
    """Training rows that equal an earlier one. They stay."""
    leaked_rows: int
    """Rows of the training file that were left out because data.held_out has them too."""

    @property
    def key(self) -> str:
        """Its key in the store."""
        return f"datasets/{self.digest}"


_DATASET = TypeAdapter(Dataset)


@dataclass(frozen=True)
class DatasetFiles:
    """A dataset on this machine. The files are shared: only read them."""

    dataset: Dataset
    directory: Path

    @cached_property
    def train_rows(self) -> list[Row]:
        return self._read(TRAIN_FILE)

    @cached_property
    def held_out_rows(self) -> list[Row]:
        return self._read(HELD_OUT_FILE)

    def _read(self, name: str) -> list[Row]:
        """Rows in the task's form of today: an earlier version may have stored them in another."""
        task = TASKS[self.dataset.task]
        with (self.directory / name).open(encoding="utf-8", newline="\n") as file:
            return [task.normalise(json.loads(line)) for line in file]


def prepare(store: Workspace, data: DataSection, task: Task[Any]) -> Dataset:
    """Read, check and split the rows and store the dataset, once. Raises DataError with everything that is wrong."""
    with tempfile.TemporaryDirectory(prefix="kitae-dataset-") as temporary:
        scratch = Path(temporary)
        train, held_out = _ingest(store, data, task, scratch)
        chosen = choose(train.digests, data.max_rows)
        tree = scratch / "tree"
        tree.mkdir()
        leaked = 0
        set_aside: Sequence[int]
        if held_out is None:
            kept, set_aside = split(train.digests, chosen, data.held_out_fraction)
        else:
            kept, set_aside = without_leak(train.digests, chosen, set(held_out.digests)), range(len(held_out.digests))
            leaked = len(chosen) - len(kept)
        labels = train.copy(kept, tree / TRAIN_FILE)
        held_out_labels = (held_out or train).copy(set_aside, tree / HELD_OUT_FILE)
        if task.label_column is not None:
            _check_labels(labels, held_out_labels)
        facts = {
            "format": 1,
            "task": task.name,
            "train_rows": len(kept),
            "held_out_rows": len(set_aside),
            "labels": sorted(labels),
            "repeated_rows": len(kept) - len({train.digests[i] for i in kept}),
            "leaked_rows": leaked,
        }
        dataset = _DATASET.validate_python(facts | {"digest": _digest(tree, facts)})
        if store.read_manifest(dataset.key) is None:
            store.commit(dataset.key, store.upload_tree(tree, dataset.key), facts)
    return dataset


def load(store: Workspace, digest: str) -> DatasetFiles:
    """A dataset with its rows, downloaded to this machine's cache once. Raises ObjectNotFound without one."""
    directory = store.fetch(f"datasets/{digest}")
    manifest = store.read_manifest(f"datasets/{digest}")
    assert manifest is not None  # fetch has just read it
    return DatasetFiles(_DATASET.validate_python(manifest.meta | {"digest": digest}), directory)


@dataclass
class _Spool:
    """Checked rows on disk, a canonical line each; in memory only what the split reads."""

    path: Path
    digests: list[bytes]
    labels: list[str | None]

    def copy(self, rows: Sequence[int], path: Path) -> set[str]:
        """Write these rows (ascending numbers) to a file. Returns their labels."""
        wanted = set(rows)
        with self.path.open("rb") as source, path.open("wb") as target:
            target.writelines(line for i, line in enumerate(source) if i in wanted)
        return {label for i in rows if (label := self.labels[i]) is not None}


def _ingest(store: Workspace, data: DataSection, task: Task[Any], scratch: Path) -> tuple[_Spool, _Spool | None]:
    """Both files' rows; every finding in both raises one DataError."""
    check_mapping(task, data.columns)
    findings = Findings()
    spools = []
    for i, source in enumerate(data.sources):
        spool = _Spool(scratch / f"{i}.jsonl", [], [])
        with local_copy(store, source) as path, spool.path.open("w", encoding="utf-8", newline="\n") as file:
            for _line, row in read_rows(path, source, task, data.columns, findings):
                canonical = canonical_line(row)
                file.write(canonical + "\n")
                spool.digests.append(row_digest(canonical))
                spool.labels.append(None if task.label_column is None else row[task.label_column])
        spools.append(spool)
    findings.raise_if_any(data.sources)
    return spools[0], spools[1] if len(spools) > 1 else None


def _check_labels(train: set[str], held_out: set[str]) -> None:
    """Raises DataError."""
    if len(train) < 2:
        found = f"only the label {next(iter(train))!r}" if train else "no label"
        raise DataError(f"the training rows have {found}, and a classifier needs two or more: add rows of other labels")
    unknown = sorted(held_out - train)
    if unknown:
        raise DataError(
            f"{len(unknown)} label(s) occur only in held-out rows, so they cannot be learnt: add training rows with "
            "them, or remove them",
            details=[repr(label) for label in unknown[:20]],
        )


def _digest(tree: Path, facts: dict[str, Any]) -> str:
    digest = json_sha256(facts)
    for name in (TRAIN_FILE, HELD_OUT_FILE):
        with (tree / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
