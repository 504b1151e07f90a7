"""Parallel transfer: files in parts, trees of files, every byte verified by SHA-256 in both directions.

Keys are whole keys. Commits no manifest; `store` decides what may be written where. Throughput is limited by the store,
the network or SHA-256, which uses one core per file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from ray_jobs.errors import ConflictError, CorruptObject, DiskFull, MachineError, StoreError
from ray_jobs.storage.bucket import SHA256_META, Bucket
from ray_jobs.storage.manifest import FileEntry, ObjectInfo, why_unsafe

T = TypeVar("T")

ProgressFn = Callable[[int, int], None]
"""Called with the bytes done and the total, from several threads but never concurrently."""

PART_BYTES = 16 * 2**20
_MOST_PARTS = 10_000  # S3's limit
_FILES_AT_ONCE = 4
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def parts_of(size_bytes: int) -> list[tuple[int, int]]:
    """(offset, size) of each part: 16 MiB, or as many MiB as keep a file within `_MOST_PARTS`."""
    part_bytes = max(PART_BYTES, -(-size_bytes // (_MOST_PARTS * 2**20)) * 2**20)
    return [(offset, min(part_bytes, size_bytes - offset)) for offset in range(0, size_bytes, part_bytes)]


def scan(directory: Path) -> dict[str, Path]:
    """Path in the tree → file, for every file below `directory`. Raises StoreError naming all that cannot be stored."""
    if not directory.is_dir():
        raise StoreError(f"no directory at {directory}: nothing to upload")
    found, problems = {}, []
    for source in directory.rglob("*"):
        path = source.relative_to(directory).as_posix()
        if source.is_dir() and not source.is_symlink():
            continue
        if not source.is_file():
            problems.append(f"{source} is not a file (a link to a directory or to nothing, a socket, a device)")
        elif (reason := why_unsafe(path)) is not None:
            problems.append(reason)
        else:
            found[path] = source
    if problems:
        raise StoreError(f"{directory} holds {len(problems)} thing(s) that cannot be stored", details=problems)
    return found


def sha256_of(path: Path) -> str:
    with _reading(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Transfer:
    """The threads and the progress of one upload or download. A context manager; an error stops all threads."""

    def __init__(self, bucket: Bucket, *, total_bytes: int, progress: ProgressFn | None) -> None:
        self._stop = threading.Event()
        self._bucket = replace(bucket, stop=self._stop)
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._progress = progress
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        # Two pools: a file's thread waits for its parts, which must not wait for a file's thread.
        self._files = ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="kitae-file")
        self._parts = ThreadPoolExecutor(bucket.settings.parallel, thread_name_prefix="kitae-part")

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._stop.set()
        self._files.shutdown(cancel_futures=True)
        self._parts.shutdown(cancel_futures=True)

    def run(self, jobs: Sequence[Callable[[], FileEntry]]) -> tuple[FileEntry, ...]:
        """Run the jobs, one per file, and return their results in order; the first failure stops the others."""
        futures = [self._files.submit(job) for job in jobs]
        return tuple(self._first_failure_or_all(futures))

    def upload(self, path: str, source: Path, key: str, existing: ObjectInfo | None) -> FileEntry:
        """Write the file `source` under `key`; `path` is its path in the tree.

        The write is conditional on the object seen before (`existing`, or absent), so that a writer taken for dead
        cannot change what a newer one has committed. The same bytes found there count as written.
        """
        before = source.stat()
        entry = FileEntry(path, before.st_size, sha256_of(source))
        if existing is not None and existing.size_bytes == entry.size_bytes and self._holds(key, entry):
            self._advance(entry.size_bytes)
            return entry
        send = self._upload_whole if entry.size_bytes <= PART_BYTES else self._upload_parts
        try:
            send(source, key, entry, None if existing is None else existing.etag)
        except ConflictError:
            if not self._holds(key, entry):
                raise
        after = source.stat()
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise StoreError(f"{source} changed while it was uploaded; upload it again once it no longer changes")
        return entry

    def download(self, key: str, target: Path, expected: FileEntry | None) -> FileEntry:
        """Read `key` into the new file `target`; verifies `expected`, or the digest that its writer recorded."""
        where = f"{key} at {self._bucket.where}"
        head = self._bucket.head(key) if expected is None else self._bucket.find(key)
        if head is None:
            raise CorruptObject(f"{where} is in the manifest but not in the store")
        if expected is not None and head.size_bytes != expected.size_bytes:
            raise CorruptObject(f"{where} has {head.size_bytes} bytes, its manifest says {expected.size_bytes}")
        sha256 = expected.sha256 if expected is not None else head.metadata.get(SHA256_META)
        digest = hashlib.sha256()
        with _writing(target, head.size_bytes):
            parts = parts_of(head.size_bytes)
            futures = [self._parts.submit(self._download_part, head, target, offset, size) for offset, size in parts]
            try:
                for future, (offset, size) in zip(futures, parts, strict=True):
                    future.result()
                    digest.update(_read(target, offset, size))
            except ConflictError as error:
                raise CorruptObject(f"{where} was replaced while it was read") from error
            finally:
                _settle(futures)
        if sha256 is not None and digest.hexdigest() != sha256:
            raise CorruptObject(
                f"{where} has SHA-256 {digest.hexdigest()}, it was written with {sha256}; write it again, and check "
                "the store's disks"
            )
        return FileEntry(target.name if expected is None else expected.path, head.size_bytes, digest.hexdigest())

    def _upload_whole(self, source: Path, key: str, entry: FileEntry, etag: str | None) -> None:
        self._bucket.put(
            key,
            _read(source, 0, entry.size_bytes),
            if_absent=etag is None,
            if_match=etag,
            metadata={SHA256_META: entry.sha256},
            sha256=bytes.fromhex(entry.sha256),
        )
        self._advance(entry.size_bytes)

    def _upload_parts(self, source: Path, key: str, entry: FileEntry, etag: str | None) -> None:
        upload_id, mark = self._bucket.begin_upload(key, metadata={SHA256_META: entry.sha256})
        futures = [
            self._parts.submit(self._upload_part, key, upload_id, number, source, offset, size)
            for number, (offset, size) in enumerate(parts_of(entry.size_bytes), start=1)
        ]
        try:
            parts = self._first_failure_or_all(futures)
            self._bucket.finish_upload(key, upload_id, mark, parts, if_absent=etag is None, if_match=etag)
        except BaseException:
            _settle(futures)  # a part sent after the abort would stay
            with suppress(StoreError):  # the cause of the abort is raised; the parts are deleted with the tree
                self._bucket.patient_for(0).abort_upload(key, upload_id)
            raise

    def _upload_part(
        self, key: str, upload_id: str, number: int, source: Path, offset: int, size_bytes: int
    ) -> dict[str, Any]:
        part = self._bucket.upload_part(key, upload_id, number, _read(source, offset, size_bytes))
        self._advance(size_bytes)
        return part

    def _download_part(self, head: ObjectInfo, target: Path, offset: int, size_bytes: int) -> None:
        data = self._bucket.get_range(head.key, offset, size_bytes, etag=head.etag)
        if len(data) != size_bytes:
            raise CorruptObject(
                f"{head.key} at {self._bucket.where} gave {len(data)} bytes from byte {offset}, not {size_bytes}"
            )
        with target.open("r+b") as file:
            file.seek(offset)
            file.write(data)
        self._advance(size_bytes)

    def _holds(self, key: str, entry: FileEntry) -> bool:
        found = self._bucket.find(key)
        stored = None if found is None else (found.size_bytes, found.metadata.get(SHA256_META))
        return stored == (entry.size_bytes, entry.sha256)

    def _advance(self, size_bytes: int) -> None:
        with self._lock:
            self._done_bytes += size_bytes
            if self._progress is not None:
                self._progress(self._done_bytes, self._total_bytes)

    def _first_failure_or_all(self, futures: Sequence[Future[T]]) -> list[T]:
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failures = [failure for future in done if (failure := future.exception()) is not None]
        if failures:
            with self._lock:  # failures after the stop are its consequence: raise the first
                self._failure = self._failure or failures[0]
            self._stop.set()
            raise self._failure
        return [future.result() for future in futures]


@contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A temporary directory on the disk of `target`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        directory = TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True)
    except OSError as error:
        kind = DiskFull if is_no_room(error) else MachineError
        raise kind(f"cannot write below {target.parent}: {error.strerror}") from error
    with directory as name:
        yield Path(name)


def is_no_room(error: OSError) -> bool:
    """Whether the disk, a quota or the largest size of a file is reached."""
    return error.errno in _NO_ROOM


def require_free(directory: Path, needed_bytes: int) -> None:
    """Raise DiskFull unless the disk of `directory` has this many bytes free."""
    if shutil.disk_usage(directory).free < needed_bytes:
        raise _no_room(directory, needed_bytes)


def _settle(futures: Sequence[Future[Any]]) -> None:
    """Cancel the parts that have not begun, and wait for the others."""
    for future in futures:
        future.cancel()
    wait(futures)


@contextmanager
def _writing(path: Path, size_bytes: int) -> Iterator[None]:
    """Create a file of this size, which the block fills. DiskFull, with the free space, if there is no room."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o644)) as file:
            file.truncate(size_bytes)
        yield
    except OSError as error:
        if is_no_room(error):
            raise _no_room(path.parent, size_bytes) from error
        raise MachineError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def _reading(path: Path) -> Iterator[BufferedReader]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise MachineError(f"cannot read {path}: {error.strerror}") from error


def _read(path: Path, offset: int, size_bytes: int) -> bytes:
    with _reading(path) as file:
        file.seek(offset)
        data = file.read(size_bytes)
    if len(data) < size_bytes:
        raise StoreError(f"{path} shrank while it was uploaded: {size_bytes - len(data)} bytes are missing")
    return data


def _no_room(directory: Path, needed_bytes: int) -> DiskFull:
    free_bytes = shutil.disk_usage(directory).free
    return DiskFull(
        f"no room in {directory}: {needed_bytes} bytes needed, {free_bytes} bytes free (or a quota or file size limit "
        "is less); free some, or set KITAE_CACHE to a directory on a larger disk"
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """A lock between the processes of this machine; the kernel releases it when its holder dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        kind = DiskFull if is_no_room(error) else MachineError
        raise kind(f"cannot write {path}: {error.strerror}; set KITAE_CACHE to another directory") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
