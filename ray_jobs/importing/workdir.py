"""The working directory of an import: what came from OpenAI, and what is at the target already.

    files/{id}.jsonl   files.json   jobs.json   evals/{id}.json   completions/completions.jsonl   from OpenAI
    rows/              files made here for the target
    state.json         what the target has; written after each object
    replay/            answers of replays and their reports

Owns names, the lock and whole writes. Readable by its owner only.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_jobs.errors import MachineError


class UploadedFile(BaseModel):
    """A file of the source that the target has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_id: str
    sha256: str
    """SHA-256 of the bytes that were sent."""


class ImportState(BaseModel):
    """What one target has, by the id of the source."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    layout: int = 1
    target: str | None = None
    """Address and team. None: nothing was brought yet."""
    files: dict[str, UploadedFile] = {}
    evals: dict[str, str] = {}
    jobs: dict[str, str] = {}
    """`{job} {base}` → id of the target's job."""


class Workdir:
    """An open working directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files, self.evals, self.completions = path / "files", path / "evals", path / "completions"
        self.rows, self.replay = path / "rows", path / "replay"

    def load(self) -> ImportState:
        """The state; an empty one before the first import. Raises MachineError."""
        file = self.path / "state.json"
        try:
            return ImportState.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return ImportState()
        except (OSError, ValidationError) as error:
            raise MachineError(
                f"{file} cannot be read: use another --workdir, or the version of Kitae that wrote it",
                details=str(error).splitlines()[:3],
            ) from error

    def save(self, state: ImportState) -> None:
        write(self.path / "state.json", state.model_dump_json(indent=2))


@contextmanager
def opened(path: Path) -> Iterator[Workdir]:
    """Create and lock the directory for one command. Raises MachineError if another command uses it."""
    workdir = Workdir(path)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (workdir.files, workdir.evals, workdir.completions, workdir.rows, workdir.replay):
            folder.mkdir(mode=0o700, exist_ok=True)
        lock = (path / "lock").open("w")
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror}: name another --workdir") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MachineError(f"another `kitae import` works in {path}: wait for it, or name another --workdir") from (
                error
            )
        yield workdir


def write(path: Path, text: str) -> None:
    """Write a file whole, so that a killed command leaves the old or the new one. Raises MachineError."""
    part = path.with_name(f"{path.name}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror}") from error


def write_json(path: Path, document: Any) -> None:
    write(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
