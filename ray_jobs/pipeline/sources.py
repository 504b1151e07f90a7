"""Fingerprints of what a job reads from outside the store's own records: its rows and its base models."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from ray_jobs.data.ingest import local_copy
from ray_jobs.digests import json_digest
from ray_jobs.errors import DataError, KitaeError
from ray_jobs.models import bases
from ray_jobs.pipeline.outputs import Flow
from ray_jobs.storage import Store


@dataclass(frozen=True)
class Sources:
    """Fingerprints that change with the content."""

    rows: tuple[str, ...]
    """`data.train` and, where the job file has one, `data.held_out`."""
    bases: Mapping[str, str]
    """By base model."""


def read_sources(store: Store, flow: Flow) -> Sources:
    """Fingerprint the rows and the bases. Raises one error with everything that is missing."""
    data = flow.job_spec.data
    problems: list[KitaeError] = []
    rows: tuple[str, ...] = ()
    prints: dict[str, str] = {}
    try:
        rows = tuple(_rows_fingerprint(store, source) for source in (data.train, data.held_out) if source)
    except KitaeError as error:
        problems.append(error)
    for base_model in filter(None, flow.base_models):
        try:
            prints[base_model] = bases.fingerprint(store, base_model)
        except KitaeError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:  # the first one's kind, which keeps its exit code
        raise type(problems[0])("the job cannot run", details=[str(problem) for problem in problems])
    return Sources(rows, prints)


def _rows_fingerprint(store: Store, source: str) -> str:
    """A value that changes with a file of rows. Raises DataError for a missing file."""
    if not source.startswith("s3://"):
        with local_copy(store, source) as path, path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder, _, name = source.rpartition("/")
    for info in store.at(folder).list():
        if info.key == name:
            return json_digest([info.size_bytes, info.etag])
    raise DataError(f"no rows at {source}: upload the file there, or correct the address")
