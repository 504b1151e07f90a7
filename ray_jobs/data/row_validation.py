"""Row validation: a file of the store is checked before it is trained on, for bad lines, duplicates and tokens.

Owns the download and the tokenizer of the base; `file_check` reads the rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from ray_jobs.data.file_check import check_file, task_of
from ray_jobs.data.report import RowReport
from ray_jobs.models import load_processor
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.registry.files import fetch_checked
from ray_jobs.storage import Store


def check_rows(
    store: Store,
    key: str,
    filename: str,
    task: str | None = None,
    base: CatalogueEntry | None = None,
    columns: Mapping[str, str] | None = None,
) -> RowReport:
    """Validate a file of the store. `task` None: the one its columns suggest. `base` counts the tokens.

    `columns`: as `data.columns`.

    Raises DataError with a detail for each bad line, `line 3: …`, up to ten thousand.
    """
    with tempfile.TemporaryDirectory(prefix="kitae-rows-") as scratch:
        path = Path(scratch) / Path(key).name
        store.download_file(key, path)
        name = task or task_of(path, columns)
        tokenizer = (
            load_processor(fetch_checked(store, base.key), name) if base is not None and name in base.tasks else None
        )
        return check_file(path, filename, name, tokenizer, base, columns=columns, today=store.now().date())
