"""What a plan says of the work ahead: the rows, what they become on a base, the search. Counted before it runs.

Reads the rows, and the first ones with the base's tokenizer, where these are within reach: a local base, or a copy in
the store of which the small files are downloaded. Trains and stores nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ray_jobs.data import prepare, versions
from ray_jobs.data.findings import Findings
from ray_jobs.data.ingest import read_rows
from ray_jobs.data.preparation import Preparation, TokenFit
from ray_jobs.data.sources import RowFile, find_files, is_small, local_copy
from ray_jobs.data.token_fit import token_fit
from ray_jobs.errors import DataError, KitaeError
from ray_jobs.models import bases, load_processor, longest_read
from ray_jobs.pipeline.outputs import EncodedRows
from ray_jobs.registry import catalogue
from ray_jobs.search.space import default_space
from ray_jobs.spec import JobSpec, Range
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import Row
from ray_jobs.tasks.positions import capped

ROWS = 200
"""Rows that are counted: a plan is an answer in seconds."""
_MOST_BYTES = 64 * 2**20
"""Size of the files of rows that are read for it."""
_WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class Preview:
    """What is known of a stage's output before it runs."""

    text: str = ""
    report: Preparation | None = None
    """That of the rows."""
    fit: TokenFit | None = None
    """That of the first rows, with the base's tokenizer."""


def preview_rows(store: Workspace, spec: JobSpec) -> Preview:
    """The dataset that the rows become. Empty where the files are large.

    Raises DataError with everything that is wrong with them.
    """
    if spec.data.dataset is not None:
        found = versions.dataset_of(store, spec.data.dataset, spec.task)
        return Preview(prepare.Outline(found, {}).as_text())
    if not is_small([file for source in spec.data.sources for file in find_files(store, source).files], _MOST_BYTES):
        return Preview()
    outline = prepare.outline(store, spec.data, TASKS[spec.task], name=spec.data.name or spec.name)
    return Preview(outline.as_text(), outline.report)


def preview_examples(store: Workspace, spec: JobSpec, base_model: str) -> Preview:
    """What the first rows become on a base. Empty where it cannot be known yet."""
    task = TASKS[spec.task]
    if not base_model or spec.data.dataset is not None:
        return Preview()
    try:
        files = [file for source in spec.data.train_sources for file in find_files(store, source).files]
        if not is_small([file for file in files if not file.is_local], _MOST_BYTES):
            return Preview()
        with _tokenizer_files(store, base_model) as directory:
            if directory is None:
                return Preview()
            rows = list(islice(_rows(store, spec, files), ROWS))
            tokenizer = load_processor(directory, spec.task)
            setting = task.setting_for(rows, tokenizer, store.now().date())
            labels = [] if task.label_column is None else sorted({row[task.label_column] for _, row in rows})
            written = task.with_setting(setting)
            max_tokens = capped(spec.data.max_tokens, longest_read(directory))
            data = spec.data.model_copy(update={"max_tokens": max_tokens})
            fit, examples = token_fit([row for _, row in rows], written, tokenizer, labels, data)
    except DataError as error:  # the stage's own error has every row
        return Preview(f"the first rows cannot be written for this base: {error}")
    except KitaeError:  # the stages before it say what is missing
        return Preview()
    text = EncodedRows(
        train_rows=len(rows), train_examples=examples, test_kept=(), key="", labels=(), prompts=setting
    ).as_text()
    return Preview(f"of the first {len(rows)} rows: {text}" if text else "", fit=fit)


def describe_search(spec: JobSpec) -> str:
    """A job's search in a line, for a plan."""
    search = spec.search
    assert search is not None
    space: dict[str, Any] = dict(search.space) if search.space is not None else dict(default_space(spec, {}, 0))
    if search.space is None and "lora.rank" in space:
        space["lora.rank"] = "by the number of supervised tokens"
    tried = [
        f"{name} {values.min:g} to {values.max:g}"
        if isinstance(values, Range)
        else f"{name} {', '.join(map(str, values)) if isinstance(values, tuple) else values}"
        for name, values in space.items()
    ]
    return f"{search.schedules} with {search.samples}, at most {search.trials} trials over {'; '.join(tried)}"


def _rows(store: Workspace, spec: JobSpec, files: Sequence[RowFile]) -> Iterator[tuple[str, Row]]:
    """(place, row) of each valid row of the files."""
    data = spec.data
    for file in files:
        with local_copy(store, file) as path:
            found = read_rows(
                path, path.name, TASKS[spec.task], data.columns, Findings(), encoding=data.encoding, sheet=data.sheet
            )
            for record, row in found:
                yield f"{path.name} {record.place}", row


@contextmanager
def _tokenizer_files(store: Workspace, base_model: str) -> Iterator[Path | None]:
    """A directory with the base's files, without weights where they are not here. None: out of reach."""
    path, entry = Path(base_model).expanduser(), catalogue.find(store, base_model)
    if bases.is_local(store, base_model):
        yield path if path.is_dir() else None
        return
    if entry is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="kitae-tokenizer-") as scratch:
        for info in store.list(f"{entry.key}/"):
            if not info.key.endswith(_WEIGHTS):
                store.download_file(info.key, Path(scratch) / info.key.removeprefix(f"{entry.key}/"))
        yield Path(scratch)
