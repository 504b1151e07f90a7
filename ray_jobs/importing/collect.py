"""Fetches what an account has at OpenAI into the working directory. Only reads there.

Resumes where an earlier run ended: contents that are there are not fetched again, and nothing that was fetched is lost
when OpenAI deletes it. Does not know the target.
"""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray_jobs.errors import DiskFull, RemoteError
from ray_jobs.importing.client import ApiClient, Document
from ray_jobs.importing.exports import FINE_TUNE, completion_ids, read_list
from ray_jobs.importing.workdir import Workdir, write_json
from ray_jobs.jobs.progress import StageProgress

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_ENDED = (404, 410)
_FORBIDDEN = 403
_PAGE = 100
_AT_ONCE = 4
"""Requests for the messages of completions at the same time."""
_SPARE_BYTES = 2**28


def collect(source: ApiClient, workdir: Workdir, *, most_completions: int) -> list[str]:
    """Fetch files, jobs, evals and completions. Returns what could not be read. Raises RemoteError, DiskFull."""
    notes: list[str] = []
    files = _listed(source, "/files", {"purpose": FINE_TUNE, "limit": _PAGE}, notes)
    jobs = _listed(source, "/fine_tuning/jobs", {"limit": _PAGE}, notes)
    write_json(workdir.path / "jobs.json", _union(read_list(workdir.path / "jobs.json"), jobs))
    evals = _listed(source, "/evals", {"limit": _PAGE}, notes)
    for each in evals:
        write_json(workdir.evals / f"{each['id']}.json", each)
    # A stub or a proxy may ignore the filter.
    wanted = [each for each in files if each.get("purpose") == FINE_TUNE]
    _fetch_contents(source, workdir, wanted, notes)
    if most_completions:
        _fetch_completions(source, workdir, most_completions, notes)
    return notes


def _listed(source: ApiClient, path: str, params: dict[str, Any], notes: list[str]) -> list[Document]:
    """Every object of a list with a usable id. A list that ended or may not be read is noted."""
    found: list[Document] = []
    try:
        for page in source.pages(path, params):
            found += page
    except RemoteError as error:
        if error.status not in (*_ENDED, _FORBIDDEN):
            raise
        notes.append(_why_unread(source, path, error))
    usable = [each for each in found if isinstance(each.get("id"), str) and _IDENTIFIER.fullmatch(each["id"])]
    if len(usable) < len(found):
        notes.append(f"{len(found) - len(usable)} object(s) of {path} have no usable id and are left out")
    return usable


def _why_unread(source: ApiClient, path: str, error: RemoteError) -> str:
    if error.status == _FORBIDDEN:
        return f"{path} is not read: the key may not ({error.message})"
    return f"{path} is skipped: {source.address.name} no longer has it ({error.status})"


def _union(known: list[Document], found: list[Document]) -> list[Document]:
    """The current items, then those that an earlier run listed."""
    ids = {each["id"] for each in found}
    return [*found, *(each for each in known if each.get("id") not in ids)]


def _fetch_contents(source: ApiClient, workdir: Workdir, files: list[Document], notes: list[str]) -> None:
    index = workdir.path / "files.json"
    missing = [each for each in files if not _content_of(workdir, each).exists()]
    total = sum(_size_of(each) or 0 for each in missing)
    free = shutil.disk_usage(workdir.path).free
    if total + _SPARE_BYTES > free:
        raise DiskFull(
            f"the files have {total:,} bytes and {workdir.path} has {free:,} free: free some, or name another --workdir"
        )
    write_json(index, _union(read_list(index), files))
    done = 0
    with StageProgress("files") as progress:
        for each in missing:
            try:
                source.download(f"/files/{each['id']}/content", _content_of(workdir, each), size_bytes=_size_of(each))
            except RemoteError as error:
                if error.status not in (400, _FORBIDDEN, *_ENDED):
                    raise
                notes.append(f"{each['id']} has no content to fetch: {error.message}")
            done += _size_of(each) or 0
            progress.update(done, total, "bytes")


def _content_of(workdir: Workdir, file: Document) -> Path:
    return workdir.files / f"{file['id']}.jsonl"


def _size_of(file: Document) -> int | None:
    size = file.get("bytes")
    return size if isinstance(size, int) and size >= 0 else None


def _fetch_completions(source: ApiClient, workdir: Workdir, most: int, notes: list[str]) -> None:
    """Append each stored completion with its messages as a line, in the order of the list, a page at a time."""
    path = workdir.completions / "completions.jsonl"
    known = completion_ids(path)
    seen = 0
    params = {"limit": _PAGE, "order": "asc"}
    with StageProgress("answers") as progress, ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for page in source.pages("/chat/completions", params):
                page = page[: most - seen]
                seen += len(page)
                usable = [
                    each for each in page if isinstance(each.get("id"), str) and _IDENTIFIER.fullmatch(each["id"])
                ]
                new = [each for each in usable if each["id"] not in known]
                with path.open("a", encoding="utf-8") as file:
                    fetched = pool.map(lambda each: _messages(source, each["id"]), new)
                    for each, messages in zip(new, fetched, strict=True):
                        file.write(json.dumps({**each, "messages": messages}, ensure_ascii=False) + "\n")
                known.update(each["id"] for each in new)
                progress.update(seen, max(seen, most), "completions")
                if seen >= most:
                    notes.append(f"the first {most:,} stored completions are read: --completions N reads more")
                    return
        except RemoteError as error:
            if error.status not in (*_ENDED, _FORBIDDEN):
                raise
            notes.append(_why_unread(source, "/chat/completions", error))


def _messages(source: ApiClient, identifier: str) -> list[Document] | None:
    """The messages of a stored completion. None: they are not there any more."""
    found: list[Document] = []
    try:
        for page in source.pages(f"/chat/completions/{identifier}/messages", {"limit": _PAGE, "order": "asc"}):
            found += page
    except RemoteError as error:
        if error.status in _ENDED:
            return None
        raise
    return found
