"""Parallel transfer: files in parts, trees of files, every byte verified by SHA-256 in both directions.

Keys are whole keys. Commits no manifest; `store` decides what may be written where. Throughput is limited by the store,
the network or SHA-256, which uses one core per file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ray_jobs.errors import ConflictError, CorruptObject, MachineError, ObjectNotFound, StoreError
from ray_jobs.storage.bucket import SHA256_META, Bucket
from ray_jobs.storage.manifest import FileEntry, ObjectInfo, why_unsafe

T = TypeVar("T")

ProgressFn = Callable[[int, int], None]
"""Called with the bytes done and the total, from several threads but never concurrently."""

PART_BYTES = 16 * 2**20
_MOST_PARTS = 10_000  # S3's limit
_FILES_AT_ONCE = 4
_HASH_BLOCK_BYTES = 2**20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class LocalFile:
    """A file of a directory: its path in the tree, its local path, its size."""

    path: str
    source: Path
    size_bytes: int


def part_bytes_for(size_bytes: int) -> int:
    """Bytes per part: 16 MiB, or more if that would make over 10,000 parts."""
    least = -(-size_bytes // _MOST_PARTS)
    return max(PART_BYTES, -(-least // 2**20) * 2**20)


def parts_of(size_bytes: int) -> list[tuple[int, int]]:
    """(offset, size) of each part."""
    step = part_bytes_for(size_bytes)
    return [(offset, min(step, size_bytes - offset)) for offset in range(0, size_bytes, step)]


def scan(directory: Path) -> list[LocalFile]:
    """Every file below `directory`, sorted. Raises StoreError naming every file that cannot be stored."""
    if not directory.is_dir():
        raise StoreError(f"no directory at {directory}: nothing to upload")
    found, problems = [], []
    for folder, subfolders, names in os.walk(directory):
        links = [Path(folder, name) for name in subfolders if Path(folder, name).is_symlink()]
        problems += [f"{link} is a link to a directory" for link in links]
        for name in names:
            source = Path(folder, name)
            path = source.relative_to(directory).as_posix()
            reason = why_unsafe(path)
            if reason is not None:
                problems.append(reason)
            elif not source.is_file():
                problems.append(f"{source} is not a file (a broken link, a socket, a device)")
            else:
                found.append(LocalFile(path, source, source.stat().st_size))
    if problems:
        raise StoreError(f"{directory} holds {len(problems)} thing(s) that cannot be stored", details=problems)
    return sorted(found, key=lambda file: file.path)


def sha256_of(path: Path) -> str:
    with reading(path) as descriptor:
        return _hash(descriptor, 0, os.fstat(descriptor).st_size, hashlib.sha256()).hexdigest()


class Transfer:
    """The threads and the progress of one upload or download. A context manager; an error stops all threads."""

    def __init__(self, bucket: Bucket, *, total_bytes: int, progress: ProgressFn | None) -> None:
        self._stop = threading.Event()
        self._bucket = bucket.stopping_at(self._stop)
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

    def upload(self, file: LocalFile, key: str, existing: ObjectInfo | None) -> FileEntry:
        """Write one file under `key`.

        The write is conditional on the object seen before (`existing`, or absent), so that a writer taken for dead
        cannot change what a newer one has committed. The same bytes found there count as written.
        """
        before = _stamp(file.source)
        entry = FileEntry(file.path, file.size_bytes, sha256_of(file.source))
        if existing is not None and existing.size_bytes == entry.size_bytes and self._holds(key, entry):
            self._advance(entry.size_bytes)
            return entry
        etag = None if existing is None else existing.etag
        try:
            if entry.size_bytes <= PART_BYTES:
                self._upload_whole(file.source, key, entry, etag)
            else:
                self._upload_parts(file.source, key, entry, etag)
        except ConflictError:
            if not self._holds(key, entry):
                raise
        if _stamp(file.source) != before:
            raise StoreError(f"{file.source} changed while it was uploaded; upload it again once it no longer changes")
        return entry

    def download(self, key: str, target: Path, expected: FileEntry | None) -> FileEntry:
        """Read `key` into the new file `target`; verifies `expected`, or the digest that its writer recorded."""
        path = key if expected is None else expected.path
        try:
            head = self._bucket.head(key)
        except ObjectNotFound as error:
            if expected is None:
                raise
            raise CorruptObject(f"{key} at {self._bucket.where} is in the manifest but not in the store") from error
        if expected is not None and head.size_bytes != expected.size_bytes:
            raise CorruptObject(
                f"{key} at {self._bucket.where} has {head.size_bytes} bytes, its manifest says {expected.size_bytes}"
            )
        sha256 = expected.sha256 if expected is not None else head.metadata.get(SHA256_META)
        with writing(target, head.size_bytes) as descriptor:
            parts = parts_of(head.size_bytes)
            futures = [
                self._parts.submit(self._download_part, key, head.etag, descriptor, offset, size)
                for offset, size in parts
            ]
            digest = hashlib.sha256()
            try:
                for future, (offset, size) in zip(futures, parts, strict=True):
                    future.result()
                    _hash(descriptor, offset, size, digest)
            except ConflictError as error:
                raise CorruptObject(f"{key} at {self._bucket.where} was replaced while it was read") from error
            finally:
                self._settle(futures)  # no thread may write to a closed descriptor
        if sha256 is not None and digest.hexdigest() != sha256:
            raise CorruptObject(
                f"{key} at {self._bucket.where} has SHA-256 {digest.hexdigest()}, it was written with {sha256}; "
                "write it again, and check the store's disks"
            )
        return FileEntry(path, head.size_bytes, digest.hexdigest())

    def _upload_whole(self, source: Path, key: str, entry: FileEntry, etag: str | None) -> None:
        with reading(source) as descriptor:
            data = _read(descriptor, 0, entry.size_bytes)
        self._bucket.put(
            key,
            data,
            if_absent=etag is None,
            if_match=etag,
            metadata={SHA256_META: entry.sha256},
            sha256=bytes.fromhex(entry.sha256),
        )
        self._advance(entry.size_bytes)

    def _upload_parts(self, source: Path, key: str, entry: FileEntry, etag: str | None) -> None:
        upload_id, mark = self._bucket.begin_upload(key, metadata={SHA256_META: entry.sha256})
        try:
            with reading(source) as descriptor:
                futures = [
                    self._parts.submit(self._upload_part, key, upload_id, number, descriptor, offset, size)
                    for number, (offset, size) in enumerate(parts_of(entry.size_bytes), start=1)
                ]
                try:
                    parts = self._first_failure_or_all(futures)
                finally:
                    self._settle(futures)
            self._bucket.finish_upload(key, upload_id, mark, parts, if_absent=etag is None, if_match=etag)
        except BaseException:
            self._abort_quietly(key, upload_id)
            raise

    def _upload_part(
        self, key: str, upload_id: str, number: int, descriptor: int, offset: int, size_bytes: int
    ) -> dict[str, Any]:
        part = self._bucket.upload_part(key, upload_id, number, _read(descriptor, offset, size_bytes))
        self._advance(size_bytes)
        return part

    def _download_part(self, key: str, etag: str, descriptor: int, offset: int, size_bytes: int) -> None:
        data = self._bucket.get_range(key, offset, size_bytes, etag=etag)
        if len(data) != size_bytes:
            raise CorruptObject(
                f"{key} at {self._bucket.where} gave {len(data)} bytes from byte {offset}, not {size_bytes}"
            )
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
        self._advance(size_bytes)

    def _holds(self, key: str, entry: FileEntry) -> bool:
        try:
            head = self._bucket.head(key)
        except ObjectNotFound:
            return False
        return head.size_bytes == entry.size_bytes and head.metadata.get(SHA256_META) == entry.sha256

    def _abort_quietly(self, key: str, upload_id: str) -> None:
        with suppress(StoreError):  # the cause of the abort is raised; the parts are deleted with the tree
            self._bucket.patient_for(0).abort_upload(key, upload_id)

    def _advance(self, size_bytes: int) -> None:
        with self._lock:
            self._done_bytes += size_bytes
            if self._progress is not None:
                self._progress(self._done_bytes, self._total_bytes)

    def _settle(self, futures: Sequence[Future[Any]]) -> None:
        for future in futures:
            future.cancel()
        wait(futures)

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
def reading(path: Path) -> Iterator[int]:
    """A descriptor for reading a file. Raises MachineError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise MachineError(f"cannot read {path}: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path, size_bytes: int) -> Iterator[int]:
    """A descriptor for writing a new file of this size. MachineError, with the free space, if the disk is full."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(descriptor, size_bytes)
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise no_room(path.parent, size_bytes) from error
        raise MachineError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A temporary directory on the disk of `target`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise MachineError(f"cannot write below {target.parent}: {error.strerror}") from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def require_free(directory: Path, needed_bytes: int) -> None:
    """Raise MachineError unless the disk of `directory` has this many bytes free."""
    if shutil.disk_usage(directory).free < needed_bytes:
        raise no_room(directory, needed_bytes)


def no_room(directory: Path, needed_bytes: int) -> MachineError:
    free_bytes = shutil.disk_usage(directory).free
    return MachineError(
        f"no room in {directory}: {needed_bytes} bytes needed, {free_bytes} bytes free (or a quota or file size limit "
        "is less); free some, or set KITAE_CACHE to a directory on a larger disk"
    )


def _read(descriptor: int, offset: int, size_bytes: int) -> bytes:
    data = os.pread(descriptor, size_bytes, offset)
    while len(data) < size_bytes:  # the kernel returns at most 2 GiB at once
        more = os.pread(descriptor, size_bytes - len(data), offset + len(data))
        if not more:
            raise StoreError(f"a file shrank while it was uploaded: {size_bytes - len(data)} bytes are missing")
        data += more
    return data


def _hash(descriptor: int, offset: int, size_bytes: int, digest: hashlib._Hash) -> hashlib._Hash:
    """Update `digest` with this range of the file."""
    end = offset + size_bytes
    while offset < end:
        block = _read(descriptor, offset, min(_HASH_BLOCK_BYTES, end - offset))
        digest.update(block)
        offset += len(block)
    return digest


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
