"""What the rows of a job become on a base, for a plan: counted before anything is written.

Reads the first rows and the base's tokenizer, where both are within reach: a local base, or a copy in the store of
which the small files are downloaded. Trains and stores nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from ray_jobs.data.ingest import Findings, local_copy, read_rows
from ray_jobs.errors import DataError, KitaeError
from ray_jobs.models import bases, load_processor
from ray_jobs.pipeline.outputs import EncodedRows
from ray_jobs.registry import catalogue
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS

ROWS = 200
"""Rows that are counted: a plan is an answer in seconds."""
_MOST_BYTES = 64 * 2**20
"""Size of a file of rows in the store that is downloaded for it."""
_WEIGHTS = ".safetensors"


def preview(store: Workspace, spec: JobSpec, base_model: str) -> str:
    """What the first rows become, as `EncodedRows.as_text`. Empty where it cannot be known yet."""
    task = TASKS[spec.task]
    if not task.generates:
        return ""
    try:
        if not _is_small(store, spec.data.train):
            return ""
        with local_copy(store, spec.data.train) as path, _tokenizer_files(store, base_model) as directory:
            if directory is None:
                return ""
            found = read_rows(path, path.name, task, spec.data.columns, Findings())
            rows = [(f"row {number}", row) for number, row in islice(found, ROWS)]
            tokenizer = load_processor(directory, spec.task)
            setting = task.setting_for(rows, tokenizer, store.now().date())
            written = task.with_setting(setting)
            examples = sum(len(written.encode(row, tokenizer, ())) for _, row in rows)
    except DataError as error:  # the stage's own error has every row
        return f"the first rows cannot be written for this base: {error}"
    except KitaeError:  # the stages before it say what is missing
        return ""
    text = EncodedRows(
        train_rows=len(rows), train_examples=examples, held_out_kept=(), key="", labels=(), prompts=setting
    ).as_text()
    return f"of the first {len(rows)} rows: {text}" if text else ""


def _is_small(store: Workspace, source: str) -> bool:
    if not source.startswith("s3://"):
        return True
    folder, _, name = source.rpartition("/")
    return any(info.key == name and info.size_bytes <= _MOST_BYTES for info in store.at(folder).list())


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
