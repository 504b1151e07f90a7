"""The files of a source of rows: one file, a folder, a glob, or an `s3://` object, prefix or glob.

Owns their order (by name) and the bounds on their number. Knows no format beyond the endings that are read.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath

from ray_jobs.data.formats import ROW_FORMATS, TEXTS, format_of
from ray_jobs.data.formats.records import MOST_LISTED, listed
from ray_jobs.digests import json_digest
from ray_jobs.errors import DataError, ObjectNotFound
from ray_jobs.storage import Store

MOST_FILES = 10_000
"""Files of one source."""
_MOST_ENTRIES = 100_000
"""Files of any kind that are looked at for them."""
_WILDCARDS = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class RowFile:
    """One file of rows."""

    address: str
    """A path or an `s3://` address; its name in messages."""
    size_bytes: int
    etag: str = ""
    """That of an object in the store; empty for a local file."""

    @property
    def is_local(self) -> bool:
        return not self.address.startswith("s3://")

    def located(self) -> RowFile:
        """The same file under an address that another process of this machine understands."""
        return replace(self, address=str(_local(self.address).absolute())) if self.is_local else self


@dataclass(frozen=True)
class RowFiles:
    """The files of a source, at least one, sorted by name."""

    files: tuple[RowFile, ...]
    notices: tuple[str, ...] = ()
    """What is in the folder besides and is not read."""


def find_files(store: Store, source: str) -> RowFiles:
    """The files of a source. Raises DataError where there are none, or too many."""
    if source.startswith("s3://"):
        return _in_store(store, source)
    path = _local(source)
    if path.is_file():
        return RowFiles((RowFile(source, path.stat().st_size),))
    if path.is_dir():
        return _chosen(source, _below(path, source))
    seen_from = "" if path.is_absolute() else f" (seen from {Path.cwd()})"
    if _WILDCARDS.search(source):
        names = islice(glob.iglob(str(path), recursive=True), _MOST_ENTRIES + 1)
        return _chosen(source, (RowFile(name, os.stat(name).st_size) for name in names if os.path.isfile(name)))
    raise DataError(
        f"{source} does not exist{seen_from}; name a file ({ROW_FORMATS}), a folder of them, a glob such as "
        "rows/*.jsonl, or s3://bucket/key"
    )


def is_here(source: str) -> bool:
    """True if a path or a glob names something on this machine."""
    path = _local(source)
    return path.exists() or (_WILDCARDS.search(source) is not None and any(glob.iglob(str(path), recursive=True)))


def _local(source: str) -> Path:
    """A path on this machine. `Path.expanduser` raises for a name such as `~x.csv`, where `~x` is no user."""
    return Path(os.path.expanduser(source))


@contextmanager
def local_copy(store: Store, file: RowFile) -> Iterator[Path]:
    """The file as a local path: itself, or a download that exists as long as the context."""
    if file.is_local:
        yield _local(file.address)
        return
    bucket, _, key = file.address.removeprefix("s3://").partition("/")
    with tempfile.TemporaryDirectory(prefix="kitae-rows-") as directory:
        path = Path(directory) / (Path(key).name or "rows")
        try:
            store.at(f"s3://{bucket}").download_file(key, path)
        except ObjectNotFound as error:
            raise _absent(file.address) from error
        yield path


def fingerprint(store: Store, source: str) -> str:
    """A value that changes with the content of a source's files. Raises DataError as `find_files`."""
    files = find_files(store, source).files
    prints = [_fingerprint(file) for file in files]
    if len(files) == 1 and files[0].address == source:
        return prints[0]
    return json_digest([[file.address, found] for file, found in zip(files, prints, strict=True)])


def _fingerprint(file: RowFile) -> str:
    if not file.is_local:
        return json_digest([file.size_bytes, file.etag])
    with _local(file.address).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


def _in_store(store: Store, source: str) -> RowFiles:
    if not source.removeprefix("s3://").partition("/")[1]:
        raise DataError(f"{source} names a bucket and no key: write s3://bucket/key, or s3://bucket/ for all of it")
    folder, _, name = source.rpartition("/")
    wild = _WILDCARDS.search(source)
    if not wild and name:
        for info in store.at(folder).list():
            if info.key == name:
                return RowFiles((RowFile(source, info.size_bytes, info.etag),))
            if info.key > name:
                break
    if wild:
        folder = source[: source.rindex("/", 0, wild.start())]
    elif name:
        folder = source
    pattern = _segments(source.removeprefix(f"{folder}/")) if wild else None
    found = (
        RowFile(f"{folder}/{info.key}", info.size_bytes, info.etag)
        for info in islice(store.at(folder).list(), _MOST_ENTRIES + 1)
        if pattern is None or pattern.fullmatch(info.key)
    )
    try:
        return _chosen(source, found)
    except _NothingThere:
        raise _absent(source) from None


def _segments(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression: `*` and `?` stay within a folder, `**/` is any number of folders."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", pattern)
    forms = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    text = ""
    for part in parts:
        if part.startswith("[") and part.endswith("]") and len(part) > 2:
            text += f"[{'^' if part[1] == '!' else ''}{re.escape(part[1:].lstrip('!')).replace(chr(92) + '-', '-')}]"
        else:
            text += forms.get(part) or re.escape(part)
    return re.compile(text)


def _below(path: Path, source: str) -> Iterator[RowFile]:
    """The files of a folder and its folders, without hidden ones and Excel's locks (`~$`)."""
    for directory, folders, names in os.walk(path):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        below = PurePosixPath(source) / Path(directory).relative_to(path).as_posix()
        for name in names:
            if not name.startswith((".", "~$")) and (file := Path(directory) / name).is_file():
                yield RowFile(str(below / name), file.stat().st_size)


class _NothingThere(DataError):
    """A source without any file."""


def _chosen(source: str, found: Iterable[RowFile]) -> RowFiles:
    """The files that are rows. Texts (.txt, .md, .html) beside files of rows are a README or a licence, and no rows."""
    files = sorted(islice(found, _MOST_ENTRIES + 1), key=lambda file: file.address)
    if not files:
        raise _NothingThere(f"{source} has no files: name a file ({ROW_FORMATS}), a folder of them or a glob")
    endings = {file.address: _ending(file.address) for file in files}
    rows = [file for file in files if endings[file.address] not in (*TEXTS, "")]
    rows = rows or [file for file in files if endings[file.address]]
    read = {file.address for file in rows}
    others = [file.address for file in files if file.address not in read]
    named = listed(others[:MOST_LISTED], len(others))
    if not rows:
        raise DataError(f"{source} has no file of rows ({ROW_FORMATS}), but {named}")
    if len(rows) > MOST_FILES or len(files) > _MOST_ENTRIES:
        raise DataError(f"{source} has more than {MOST_FILES} files of rows: join them, or name fewer")
    notices = (f"{len(others)} other file(s) are not read: {named}",)
    return RowFiles(tuple(rows), notices if others else ())


def _ending(address: str) -> str:
    """The ending by which a file is read; empty for one that is not."""
    try:
        return format_of(PurePosixPath(address).name)
    except DataError:
        return ""


def _absent(source: str) -> DataError:
    return DataError(f"no rows at {source}: upload the file there, or correct the address")


def is_small(files: Sequence[RowFile], most_bytes: int) -> bool:
    """True if the files have at most `most_bytes` together."""
    return sum(file.size_bytes for file in files) <= most_bytes
