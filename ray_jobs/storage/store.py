"""Store: the interface of the object store.

Owns the store's address, JSON documents with compare-and-swap, committed trees and their local cache. Reads the
environment in `from_env` only.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.digests import canonical_json
from ray_jobs.errors import ConflictError, CorruptObject, ObjectNotFound, StoreError, StoreLacks
from ray_jobs.storage.bucket import Bucket, StoreSettings
from ray_jobs.storage.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    ObjectInfo,
    decode_manifest,
    encode_manifest,
    make_manifest,
)
from ray_jobs.storage.probe import probe
from ray_jobs.storage.transfer import ProgressFn, Transfer, locked, require_free, scan, sha256_of, temporary_beside
from ray_jobs.storage.unreadable import MAX_DOCUMENT_BYTES, UnreadableRecords, parse_document

if TYPE_CHECKING:
    from ray_jobs.storage.arrow import StoreFileSystem

Names = list[str]  # within Store, `list` is its own method

_PROBE_PATIENCE_S = 10.0
_SWAP_PATIENCE_S = 30.0
_REQUESTS_AT_ONCE = 16

_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")
_ADDRESS = {
    "KITAE_STORE": "the bucket and prefix that hold everything, such as s3://bucket/kitae",
    "AWS_ENDPOINT_URL": "the store's address, such as https://s3.eu-west-1.amazonaws.com",
}
_KEYS = {"AWS_ACCESS_KEY_ID": "the store's access key", "AWS_SECRET_ACCESS_KEY": "the access key's secret"}
# With any of these variables, boto finds credentials without the two keys.
_OTHER_CREDENTIALS = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_PROFILE",
)


class Store:
    """A bucket and a prefix of an S3-compatible store. Keys are relative to the prefix. Safe to share between threads.

    A pickle carries the address and no credentials: the unpickling process uses those of its own environment.
    """

    def __init__(self, uri: str, settings: StoreSettings, *, cache: Path | None = None) -> None:
        """`uri` is `s3://bucket` or `s3://bucket/prefix`; `cache` is the default directory of `fetch`."""
        name, self._prefix = split_uri(uri)
        self._bucket = Bucket(name, settings)
        self._cache = cache or Path.home() / ".cache" / "kitae"
        self.unreadable = UnreadableRecords()

    @staticmethod
    def from_env(*, check: bool = True) -> Store:
        """The store of KITAE_STORE and AWS_*; with `check` it is probed. StoreError lists every missing variable."""
        store = _open(os.environ)
        if check:
            store.probe()
        return store

    def failing_fast(self) -> Store:
        """The same store for a process whose callers wait: while the store is away, its operations raise
        StoreUnreachable after 2 s, or 10 s if it accepts connections, and once that happened at once."""
        fast = self.at(self.uri())
        fast._bucket = self._bucket.failing_fast()
        return fast

    def __repr__(self) -> str:
        return f"Store({self.uri()!r}, {self._bucket.settings.endpoint_url!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return (_reopen, (self.uri(),))

    def uri(self, key: str = "") -> str:
        return f"s3://{self._bucket.name}/{self._full(key)}".rstrip("/")

    @property
    def root(self) -> Store:
        """The whole store."""
        return self

    def path(self, key: str) -> str:
        """Where a key is in the store, relative to the store's root."""
        return key

    def key_at(self, path: str) -> str:
        """The key of a path: the inverse of `path`."""
        return path

    def at(self, uri: str) -> Store:
        """A store rooted at another `s3://` address, with the same endpoint and credentials."""
        other = Store(uri, self._bucket.settings, cache=self._cache)
        other._bucket = replace(self._bucket, name=other._bucket.name)
        return other

    def filesystem(self, key: str) -> tuple[StoreFileSystem, str]:
        """The store as a pyarrow file system, and a key's path in it."""
        from ray_jobs.storage.arrow import StoreFileSystem

        return StoreFileSystem(self._bucket.settings), f"{self._bucket.name}/{self._full(key)}"

    def probe(self) -> None:
        """Try every required feature. Raises StoreUnreachable, StoreAccessDenied or StoreLacks."""
        patience_s = min(_PROBE_PATIENCE_S, self._bucket.settings.patience_s)
        probe(self._bucket.patient_for(patience_s), self._prefix)

    def now_s(self) -> float:
        """Unix seconds by the store's clock, which every replica, job and command shares; to a second or better."""
        return self._bucket.now_s()

    def now(self) -> datetime:
        """`now_s` as a UTC time."""
        return datetime.fromtimestamp(self.now_s(), UTC)

    # ---- single objects -------------------------------------------------------------------------------------------

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """The whole object. Raises ObjectNotFound, or CorruptObject if it has more than `max_bytes`."""
        return self._bucket.get(self._full(key), max_bytes=max_bytes)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """A document's bytes and etag. Raises as `get`."""
        return self._bucket.get(self._full(key), max_bytes=MAX_DOCUMENT_BYTES)

    def read_in_pieces(self, key: str, piece_bytes: int) -> Iterator[bytes]:
        """The object in pieces. Raises ObjectNotFound, or ConflictError if it is replaced meanwhile."""
        head = self._bucket.head(self._full(key))
        for offset in range(0, head.size_bytes, piece_bytes):
            size_bytes = min(piece_bytes, head.size_bytes - offset)
            yield self._bucket.get_range(self._full(key), offset, size_bytes, etag=head.etag)

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        """Write an object and return its etag. Raises ConflictError if the condition does not hold."""
        return self._bucket.put(self._full(key), data, if_absent=if_absent, if_match=if_match)

    def get_json(self, key: str) -> Any:
        """A document. Raises ObjectNotFound, or CorruptObject for anything but JSON within the bounds."""
        return self._parse(key, self.get_with_etag(key)[0])

    def put_json(self, key: str, document: Any, *, if_absent: bool = False, if_match: str | None = None) -> str:
        return self.put(key, canonical_json(document), if_absent=if_absent, if_match=if_match)

    def update_json(self, key: str, change: Callable[[dict[str, Any] | None], dict[str, Any]]) -> dict[str, Any]:
        """Replace a document by `change(document)` (None: it does not exist), retried until no other write intervened.

        `change` may be called several times, so it must be pure; its exceptions end the update. Raises ConflictError
        after 30 s.
        """
        deadline = time.monotonic() + _SWAP_PATIENCE_S
        delay_s = 0.01
        while True:
            try:
                data, etag = self.get_with_etag(key)
                old = self._parse(key, data)
            except ObjectNotFound:
                old, etag = None, None
            new = change(old)
            if old is not None and canonical_json(new) == canonical_json(old):
                return new
            try:
                self.put_json(key, new, if_absent=etag is None, if_match=etag)
                return new
            except ConflictError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(0, delay_s))
            delay_s = min(2 * delay_s, 0.5)

    def copy(self, key: str, target: str) -> None:
        """Copy an object within the store. A target that is written already stays (`Bucket.copy`)."""
        self._bucket.copy(self._full(key), self._full(target))

    def exists(self, key: str) -> bool:
        return self._bucket.find(self._full(key)) is not None

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """Objects below `prefix/` with keys greater than `after`, in key order; a request per 1,000, made lazily."""
        found = self._bucket.objects(self._full(folder_of(prefix)), after=self._full(after) if after else "")
        for info in found:
            yield replace(info, key=self.key_at(info.key.removeprefix(self._prefix)))

    def list_dirs(self, prefix: str = "") -> Names:
        """The names of the folders one level below `prefix/`."""
        folder = self._full(folder_of(prefix))
        return [found.removeprefix(folder).rstrip("/") for found in self._bucket.folders(folder)]

    def delete(self, keys: Iterable[str] | str) -> None:
        """Delete keys; an absent key is no error."""
        wanted = [keys] if isinstance(keys, str) else list(keys)
        # One request per key: several stores lack the request that deletes many.
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            for _ in pool.map(self._bucket.delete, [self._full(key) for key in wanted]):
                pass

    def delete_tree(self, prefix: str) -> None:
        """Delete everything below `prefix/`, its manifest first: no reader sees a committed tree with missing files."""
        folder = folder_of(prefix)
        self.delete(folder + MANIFEST_NAME)
        with suppress(StoreLacks):  # if unfinished uploads cannot be listed, the bucket's lifecycle rules end them
            for key, upload_id in self._bucket.open_uploads(self._full(folder)):
                self._bucket.abort_upload(key, upload_id)
        self.delete([info.key for info in self.list(prefix)])

    # ---- files and trees ------------------------------------------------------------------------------------------

    def upload_file(self, path: Path, key: str) -> FileEntry:
        """Write a file under `key`, in parallel parts, replacing an existing object. The entry's path is the file's."""
        if not path.is_file():
            raise StoreError(f"no file at {path}: nothing to upload")
        existing = self._bucket.find(self._full(key))
        with Transfer(self._bucket, total_bytes=path.stat().st_size, progress=None) as transfer:
            return transfer.run([partial(transfer.upload, path.name, path, self._full(key), existing)])[0]

    def download_file(self, key: str, path: Path, *, progress: ProgressFn | None = None) -> FileEntry:
        """Read `key` into the file `path`, which is replaced only once all bytes are verified."""
        head = self._bucket.head(self._full(key))
        with temporary_beside(path) as directory:
            require_free(directory, head.size_bytes)
            target = directory / path.name
            with Transfer(self._bucket, total_bytes=head.size_bytes, progress=progress) as transfer:
                (entry,) = transfer.run([partial(transfer.download, head.key, target, None)])
            os.replace(target, path)
        return entry

    def upload_tree(self, directory: Path, prefix: str, *, progress: ProgressFn | None = None) -> tuple[FileEntry, ...]:
        """Write every file of a directory below `prefix/`, for `commit` to make visible.

        A file already stored with the same bytes is not sent again, so an interrupted upload resumes. Raises
        ConflictError if another tree is committed there, or if another process writes one.
        """
        files = scan(directory)
        committed = self.read_manifest(prefix)
        if committed is not None:
            entries = tuple(FileEntry(path, file.stat().st_size, sha256_of(file)) for path, file in files.items())
            if tuple(sorted(entries)) != committed.files:
                raise ConflictError(
                    f"{self.uri(prefix)} is already committed, with other files; it is never overwritten"
                )
            return entries
        folder = self._full(folder_of(prefix))
        existing = {info.key: info for info in self._bucket.objects(folder)}
        sizes = {path: file.stat().st_size for path, file in files.items()}
        largest_first = sorted(files, key=lambda path: -sizes[path])  # the largest ends last
        with Transfer(self._bucket, total_bytes=sum(sizes.values()), progress=progress) as transfer:
            return transfer.run(
                [
                    partial(transfer.upload, path, files[path], folder + path, existing.get(folder + path))
                    for path in largest_first
                ]
            )

    def commit(self, prefix: str, files: Iterable[FileEntry], meta: Mapping[str, Any]) -> Manifest:
        """Make the files below `prefix/` visible as one tree, by writing its manifest, last and once.

        If the same content is committed already, succeeds; for other content, raises ConflictError.
        """
        manifest = make_manifest(files, meta)
        folder = folder_of(prefix)
        present = {info.key.removeprefix(folder): info.size_bytes for info in self.list(prefix)}
        missing = [
            f"{entry.path}: {entry.size_bytes} bytes expected, found {present.get(entry.path, 'nothing')}"
            for entry in manifest.files
            if present.get(entry.path) != entry.size_bytes
        ]
        if missing:
            raise StoreError(f"{self.uri(prefix)} cannot be committed: upload these first", details=missing)
        try:
            self.put(folder + MANIFEST_NAME, encode_manifest(manifest), if_absent=True)
        except ConflictError as error:
            existing = self.read_manifest(prefix)
            if existing is None or existing.digest != manifest.digest:
                raise ConflictError(f"{self.uri(prefix)} is already committed, with other content") from error
        return manifest

    def read_manifest(self, prefix: str) -> Manifest | None:
        """The manifest of a tree; None if it is not committed. Raises CorruptObject for a damaged manifest."""
        key = folder_of(prefix) + MANIFEST_NAME
        try:
            data, _ = self.get_with_etag(key)
        except ObjectNotFound:
            return None
        return decode_manifest(data, source=self.uri(key))

    def fetch(self, prefix: str, *, progress: ProgressFn | None = None) -> Path:
        """A local directory with a committed tree: downloaded once per machine, and cached by the manifest's digest.

        The directory is shared; do not write to it. It appears once every file is verified. Raises ObjectNotFound if
        nothing is committed, CorruptObject if a file does not match the manifest, MachineError if the disk is too
        small.
        """
        manifest = self.read_manifest(prefix)
        if manifest is None:
            raise ObjectNotFound(f"nothing is committed at {self.uri(prefix)}: it has no {MANIFEST_NAME}")
        directory = self._cache / "trees" / manifest.digest
        with locked(directory.with_suffix(".lock")):
            if not _sizes_match(directory, manifest):
                with temporary_beside(directory) as temporary:
                    self._download(manifest, self._full(folder_of(prefix)), temporary / "tree", progress)
                    if directory.exists():  # left damaged by a crash of the machine
                        os.rename(directory, temporary / "damaged")
                    os.rename(temporary / "tree", directory)
        return directory

    # ---- private --------------------------------------------------------------------------------------------------

    def _full(self, key: str) -> str:
        return self._prefix + self.path(key)

    def _download(self, manifest: Manifest, folder: str, tree: Path, progress: ProgressFn | None) -> None:
        """Read a tree into the new directory `tree`, and write it to the disk before it gets its name in the cache."""
        tree.mkdir()
        require_free(tree, manifest.size_bytes)
        with Transfer(self._bucket, total_bytes=manifest.size_bytes, progress=progress) as transfer:
            transfer.run(
                [
                    partial(transfer.download, folder + entry.path, tree / entry.path, entry)
                    for entry in sorted(manifest.files, key=lambda entry: -entry.size_bytes)
                ]
            )
        for entry in manifest.files:
            with (tree / entry.path).open("rb") as file:
                os.fsync(file.fileno())

    def _parse(self, key: str, data: bytes) -> Any:
        try:
            return parse_document(data)
        except ValueError as error:
            raise CorruptObject(f"{self.uri(key)} is not JSON: {error}") from error


def _reopen(uri: str) -> Store:
    return _open({**os.environ, "KITAE_STORE": uri})


def _open(environment: Mapping[str, str]) -> Store:
    """The store that these variables name. Raises StoreError with one detail per missing or wrong variable."""
    needed = _ADDRESS if any(environment.get(name) for name in _OTHER_CREDENTIALS) else _ADDRESS | _KEYS
    problems = [f"{name} is not set: {what}" for name, what in needed.items() if not environment.get(name)]
    endpoint_url = environment.get("AWS_ENDPOINT_URL", "")
    if endpoint_url and not re.fullmatch(r"https?://[^/\s@]+/?", endpoint_url):
        problems.append("AWS_ENDPOINT_URL is not of the form http(s)://host:port, without path or credentials")
    uri = environment.get("KITAE_STORE", "")
    if uri and not _URI.fullmatch(uri):
        problems.append(f"KITAE_STORE is {uri!r}, not of the form s3://bucket/prefix")
    patience = environment.get("KITAE_STORE_PATIENCE_S") or "60"
    if not re.fullmatch(r"\d+(\.\d+)?", patience):
        problems.append(f"KITAE_STORE_PATIENCE_S is {patience!r}, not a number of seconds")
    if problems:
        fix = "run `kitae local up` here, or set these (`kitae local env` prints them in the directory of a service)"
        raise StoreError(f"the store is not configured: {fix}", details=problems)
    settings = StoreSettings(
        endpoint_url=endpoint_url.rstrip("/"),
        region=environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1",
        access_key_id=environment.get("AWS_ACCESS_KEY_ID") or None,
        secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY") or None,
        session_token=environment.get("AWS_SESSION_TOKEN") or None,
        patience_s=float(patience),
    )
    cache = environment.get("KITAE_CACHE")
    return Store(uri, settings, cache=Path(cache).expanduser() if cache else None)


def split_uri(uri: str) -> tuple[str, str]:
    """(bucket, prefix); the prefix is empty or ends in a slash."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise StoreError(f"{uri!r} is not of the form s3://bucket/prefix")
    return match[1], folder_of(match[2] or "")


def folder_of(prefix: str) -> str:
    stripped = prefix.strip("/")
    return f"{stripped}/" if stripped else ""


def _sizes_match(directory: Path, manifest: Manifest) -> bool:
    sizes = [(directory / entry.path, entry.size_bytes) for entry in manifest.files]
    return directory.is_dir() and all(path.is_file() and path.stat().st_size == size for path, size in sizes)
