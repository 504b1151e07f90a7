"""A versioned dataset in the store: `datasets/{digest}/` with train.jsonl, held_out.jsonl and, last, manifest.json.

Owns the digest: the same rows on the same sides for the same task are the same dataset, whatever their source. Keeps
the order of the file; batching decides the order of training.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter

from ray_jobs.data.clean.rows import Cleaning
from ray_jobs.data.columns import check_mapping
from ray_jobs.data.findings import Findings
from ray_jobs.data.ingest import canonical_line, read_rows
from ray_jobs.data.labels import check_labels, contradictory, doubtful
from ray_jobs.data.sources import find_files, local_copy
from ray_jobs.data.split import (
    SIDE_COLUMN,
    choose,
    input_digest,
    is_set_aside,
    row_digest,
    split,
    split_as_marked,
    without_leak,
)
from ray_jobs.digests import json_sha256
from ray_jobs.errors import DataError
from ray_jobs.spec import DataSection
from ray_jobs.spec.personal_data import PersonalDataPolicy
from ray_jobs.storage import Workspace
from ray_jobs.storage.documents import Documents
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import Row, Task

TRAIN_FILE = "train.jsonl"
HELD_OUT_FILE = "held_out.jsonl"
_SHOWN_LABELS = 8
_MOST_HELD_OUT = 2.5
"""Times the share that is to be held out; a larger part is reported."""


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
    """Rows that were left out of training because held-out rows have their inputs too."""

    @property
    def key(self) -> str:
        """Its key in the store."""
        return f"datasets/{self.digest}"


_DATASET = TypeAdapter(Dataset)


@dataclass(frozen=True)
class Outline:
    """A dataset, the number of training rows of each label, and what was guessed, renamed or not used."""

    dataset: Dataset
    labels: Mapping[str, int]
    notices: tuple[str, ...] = ()

    def as_text(self) -> str:
        """In a line, for a plan."""
        dataset, parts = self.dataset, list[str]()
        parts.append(f"{dataset.train_rows:,} rows to train on, {dataset.held_out_rows:,} held out")
        if self.labels:
            common = sorted(self.labels.items(), key=lambda each: (-each[1], each[0]))
            shares = [f"{label} {count / dataset.train_rows:.0%}" for label, count in common[:_SHOWN_LABELS]]
            more = [f"{len(common) - _SHOWN_LABELS} more"] if len(common) > _SHOWN_LABELS else []
            parts.append(f"labels {', '.join(shares + more)}")
        if dataset.repeated_rows:
            parts.append(f"{dataset.repeated_rows:,} rows equal an earlier one")
        if dataset.leaked_rows:
            parts.append(f"{dataset.leaked_rows:,} rows are left out, since their inputs are held out")
        return "; ".join([*parts, *self.notices])


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


def prepare(
    store: Workspace, data: DataSection, task: Task[Any], note: Callable[[str], None] = lambda _: None
) -> Dataset:
    """Read, check and split the rows and store the dataset, once. `note`: receives what was guessed or not used.

    Raises DataError with everything that is wrong.
    """
    with _built(store, data, task, note, _salt(store, data.personal_data)) as (found, tree, facts):
        dataset = found.dataset
        if store.read_manifest(dataset.key) is None:
            store.commit(dataset.key, store.upload_tree(tree, dataset.key), facts)
    return dataset


def outline(store: Workspace, data: DataSection, task: Task[Any]) -> Outline:
    """What `prepare` would store, for a plan. Raises DataError with everything that is wrong; stores nothing."""
    notices: list[str] = []
    with _built(store, data, task, notices.append, secrets.token_bytes(16)) as (found, _, _):
        return replace(found, notices=tuple(notices))


@contextmanager
def _built(
    store: Workspace, data: DataSection, task: Task[Any], note: Callable[[str], None], salt: bytes | None
) -> Iterator[tuple[Outline, Path, dict[str, Any]]]:
    """A dataset's outline, its files on this machine, and the facts of its manifest."""
    with tempfile.TemporaryDirectory(prefix="kitae-dataset-") as temporary:
        scratch = Path(temporary)
        train, held_out = _ingest(store, data, task, scratch, note, salt)
        chosen = choose(train.digests, data.max_rows)
        tree = scratch / "tree"
        tree.mkdir()
        leaked = 0
        set_aside: Sequence[int]
        marked = _marks(train, data, note)
        if marked is not None:
            kept, set_aside = split_as_marked(train.inputs, marked, chosen)
            leaked = len(chosen) - len(kept) - len(set_aside)
        elif held_out is None:
            kept, set_aside = split(train.inputs, train.labels, chosen, data.held_out_fraction)
            if len(set_aside) > _MOST_HELD_OUT * data.held_out_fraction * len(chosen):
                note(
                    f"{len(set_aside):,} of {len(chosen):,} rows are held out, more than data.held_out_fraction "
                    f"({data.held_out_fraction:.0%}): rows with one input stay together, and each label has one"
                )
        else:
            kept, set_aside = without_leak(train.inputs, chosen, set(held_out.inputs)), range(len(held_out.digests))
            leaked = len(chosen) - len(kept)
        labels = train.copy(kept, tree / TRAIN_FILE)
        held_out_labels = (held_out or train).copy(set_aside, tree / HELD_OUT_FILE)
        if task.label_column is not None:
            check_labels(set(labels), set(held_out_labels))
            for notice in [*doubtful(labels + held_out_labels), *contradictory(train.inputs, train.labels)]:
                note(notice)
        facts = {
            "format": 2,
            "task": task.name,
            "train_rows": len(kept),
            "held_out_rows": len(set_aside),
            "labels": sorted(labels),
            "repeated_rows": len(kept) - len({train.digests[i] for i in kept}),
            "leaked_rows": leaked,
        }
        dataset = _DATASET.validate_python(facts | {"digest": _digest(tree, facts)})
        yield Outline(dataset, labels), tree, facts


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
    digests: list[bytes] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    marked: list[bool | None] = field(default_factory=list)
    """Whether the column `split` holds the row out; None where it names no side."""

    def copy(self, rows: Sequence[int], path: Path) -> Counter[str]:
        """Write these rows (ascending numbers) to a file. Returns how many have each label."""
        wanted = set(rows)
        with self.path.open("rb") as source, path.open("wb") as target:
            target.writelines(line for i, line in enumerate(source) if i in wanted)
        return Counter(label for i in rows if (label := self.labels[i]) is not None)


def _ingest(
    store: Workspace,
    data: DataSection,
    task: Task[Any],
    scratch: Path,
    note: Callable[[str], None],
    salt: bytes | None,
) -> tuple[_Spool, _Spool | None]:
    """Both sides' rows; every finding in all files raises one DataError. `salt`: of the placeholders."""
    check_mapping(task, data.columns)
    findings, personal = Findings(), Cleaning(data.personal_data, salt)
    train = _Spool(scratch / "train.jsonl")
    held_out = None if data.held_out is None else _Spool(scratch / "held_out.jsonl")
    _spool(store, data, data.train_sources, task, train, findings, personal)
    if held_out is not None:
        _spool(store, data, (data.held_out or "",), task, held_out, findings, personal)
    findings.raise_if_any(data.sources)
    personal.raise_if_refused()
    for notice in [*findings.notices, *personal.notes()]:
        note(notice)
    return train, held_out


def _spool(
    store: Workspace, data: DataSection, sources: Sequence[str], task: Task[Any], spool: _Spool, findings: Findings,
    personal: Cleaning,
) -> None:  # fmt: skip
    """Write the checked rows of every file of the sources to the spool, in the order of the files."""
    with spool.path.open("w", encoding="utf-8", newline="\n") as target:
        for source in sources:
            found = find_files(store, source)
            for notice in found.notices:
                findings.note(source, notice)
            for file in found.files:
                with local_copy(store, file) as path:
                    rows = read_rows(
                        path, file.address, task, data.columns, findings, encoding=data.encoding, sheet=data.sheet
                    )
                    for record, given in rows:
                        row = personal.clean(given, record.number)
                        if row is None:
                            continue
                        canonical = canonical_line(row)
                        target.write(canonical + "\n")
                        spool.digests.append(row_digest(canonical))
                        spool.inputs.append(input_digest(task.input_of(row)))
                        spool.marked.append(is_set_aside(record.values.get(SIDE_COLUMN)))
                        spool.labels.append(None if task.label_column is None else row[task.label_column])


def _marks(train: _Spool, data: DataSection, note: Callable[[str], None]) -> list[bool | None] | None:
    """Each row's mark, if the rows name their own sides; None: they are split otherwise, which is said.

    Raises DataError where rows are held out by their own word and by data.held_out.
    """
    counts = Counter(train.marked)
    held_out, others = counts[True], counts[None]
    if not held_out or SIDE_COLUMN in data.columns.values():  # a column of the task
        return None
    rows = f"the column {SIDE_COLUMN!r} of data.train holds {held_out:,} row(s) out"
    if data.held_out is not None:
        raise DataError(
            f"{rows}, and data.held_out is given: remove these rows, rename the column, or leave data.held_out out"
        )
    if others or held_out == len(train.marked):
        why = f"{others:,} row(s) name no side" if others else "none is to be trained on"
        note(f"{rows}, and {why}: it is not used, and rows are held out by their inputs")
        return None
    return train.marked


class _Salt(BaseModel):
    """The secret of a team's placeholders, so that a value has the same one in all of its datasets."""

    salt: str = Field(default_factory=lambda: secrets.token_hex(32))


def _salt(store: Workspace, policy: PersonalDataPolicy | None) -> bytes | None:
    """The team's salt, made where a policy redacts for the first time. None: the policy redacts nothing."""
    if policy is None or "redact" not in policy.model_dump().values():
        return None
    salts = Documents("datasets/", _Salt, "the salt of placeholders")
    return bytes.fromhex(salts.get_or_create(store, "placeholder-salt", _Salt()).salt)


def _digest(tree: Path, facts: dict[str, Any]) -> str:
    digest = json_sha256(facts)
    for name in (TRAIN_FILE, HELD_OUT_FILE):
        with (tree / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
