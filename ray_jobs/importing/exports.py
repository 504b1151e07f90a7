"""Reads what was exported from OpenAI: a working directory of `kitae import`, or files under plain names.

    files/*.jsonl  files.json  jobs.json  evals/*.json  completions/*.jsonl

`files.json` gives the names of the files; without it a file's id and name are those on the disk. Writes nothing but the
repair of a line that a killed run left half written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ray_jobs.errors import DataError
from ray_jobs.importing.client import Document

FINE_TUNE = "fine-tune"


@dataclass(frozen=True)
class SourceFile:
    """A file of rows of the source."""

    id: str
    filename: str
    path: Path

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size


@dataclass
class Export:
    """What a directory has."""

    root: Path
    files: list[SourceFile] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    """Ids of files that are listed without their content."""
    jobs: list[Document] = field(default_factory=list)
    evals: list[Document] = field(default_factory=list)
    completion_files: list[Path] = field(default_factory=list)

    def completions(self) -> Iterator[Document]:
        """Every stored completion, the first of each id. Raises DataError."""
        seen = set[str]()
        for path in self.completion_files:
            for number, each in _lines(path):
                identifier = str(each.get("id") or f"{path.name}:{number}")
                if identifier not in seen:
                    seen.add(identifier)
                    yield {**each, "id": identifier}


def read(root: Path) -> Export:
    """Read a directory. Raises DataError if it has nothing that can be imported."""
    if not root.is_dir():
        raise DataError(f"{root} is not a directory: name one with files/, jobs.json, evals/ or completions/")
    found = Export(root)
    listed = {each["id"]: each for each in read_list(root / "files.json") if isinstance(each.get("id"), str)}
    for path in sorted((root / "files").glob("*.jsonl")):
        name = str((listed.get(path.stem) or {}).get("filename") or path.name)
        found.files.append(SourceFile(path.stem, printable(name), path))
    there = {each.id for each in found.files}
    found.gone = [identifier for identifier in listed if identifier not in there]
    found.jobs = [each for each in read_list(root / "jobs.json") if isinstance(each.get("id"), str)]
    for path in sorted((root / "evals").glob("*.json")):
        each = _json(path)
        for document in each if isinstance(each, list) else [each]:
            if not isinstance(document, dict):
                raise DataError(f"{path} must hold an eval, a JSON object, or a list of them")
            found.evals.append({"id": path.stem, **document})
    found.completion_files = sorted((root / "completions").glob("*.jsonl"))
    if not (found.files or found.gone or found.jobs or found.evals or found.completion_files):
        raise DataError(
            f"{root} has nothing to import: it needs files/*.jsonl, jobs.json, evals/*.json or completions/"
        )
    return found


def read_list(path: Path) -> list[Document]:
    """The objects of a list: a JSON list, or OpenAI's list object. Empty without the file. Raises DataError."""
    if not path.exists():
        return []
    document = _json(path)
    data = document.get("data") if isinstance(document, dict) else document
    if not isinstance(data, list) or not all(isinstance(each, dict) for each in data):
        raise DataError(f"{path} must hold a list of objects, or an object with this list in `data`")
    return data


def completion_ids(path: Path) -> set[str]:
    """The ids in a file of completions; a half-written last line is cut off."""
    if not path.exists():
        return set()
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    return {str(each["id"]) for _, each in _lines(path) if "id" in each}


def printable(text: str) -> str:
    """A name of the source as a terminal and a file's form may show it."""
    return "".join(character for character in text if character.isprintable())[:255] or "rows.jsonl"


def _lines(path: Path) -> Iterator[tuple[int, Document]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path} line {number} is not JSON: {error}") from error
            if not isinstance(found, dict):
                raise DataError(f"{path} line {number} is not a JSON object")
            yield number, found


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
