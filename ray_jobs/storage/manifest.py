"""The manifest of a committed tree: its files, digest and JSON. Pure; no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ray_jobs.digests import canonical_digest, canonical_json
from ray_jobs.errors import CorruptObject, StoreError
from ray_jobs.storage.unreadable import parse_document

MANIFEST_NAME = "manifest.json"
_FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object. `key` is relative to the store's root, or to the bucket's for a single request."""

    key: str
    size_bytes: int
    etag: str
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    """User metadata; listings leave it empty."""
    modified_s: float = field(default=0.0, compare=False)
    """When it was written, in Unix seconds by the store's clock."""


@dataclass(frozen=True, order=True)
class FileEntry:
    """One file of a tree. `path` is relative to the tree, with forward slashes; `sha256` is 64 hex digits."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The commit marker of a tree. `digest` is SHA-256 over the sorted files and `meta`: same content, same digest."""

    files: tuple[FileEntry, ...]
    meta: dict[str, Any] = field(hash=False)
    digest: str

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files)


def make_manifest(files: Iterable[FileEntry], meta: Mapping[str, Any]) -> Manifest:
    """A manifest of these files. Raises StoreError for a path that is unsafe or repeated."""
    entries = tuple(sorted(files))
    problems = [reason for entry in entries if (reason := why_unsafe(entry.path)) is not None]
    paths = [entry.path for entry in entries]
    problems += [f"{path!r} is named twice" for path in sorted({path for path in paths if paths.count(path) > 1})]
    if problems:
        raise StoreError(f"{len(problems)} path(s) are not allowed in a manifest", details=problems)
    return Manifest(entries, dict(meta), _digest(entries, meta))


def encode_manifest(manifest: Manifest) -> bytes:
    document = {
        "format": _FORMAT,
        "digest": manifest.digest,
        "files": [asdict(entry) for entry in manifest.files],
        "meta": manifest.meta,
    }
    return canonical_json(document)


def decode_manifest(data: bytes, *, source: str) -> Manifest:
    """Parse a manifest. Raises CorruptObject if the bytes are not a manifest, or do not match its digest."""
    try:
        document = parse_document(data)
        rows, meta, digest, version = document["files"], document["meta"], document["digest"], document["format"]
        entries = tuple(FileEntry(str(r["path"]), int(r["size_bytes"]), str(r["sha256"])) for r in rows)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptObject(f"{source} is not a manifest: {error}; write the tree again") from error
    if version != _FORMAT:
        raise CorruptObject(f"{source} has manifest format {version!r}, this version reads {_FORMAT}: upgrade Kitae")
    bad = [reason for entry in entries if (reason := why_unsafe(entry.path)) is not None]
    bad += [f"{entry.path}: {entry.sha256!r} is no SHA-256" for entry in entries if not _SHA256.fullmatch(entry.sha256)]
    if bad:
        raise CorruptObject(f"{source} names files it must not", details=bad)
    if not isinstance(meta, dict) or digest != _digest(entries, meta):
        raise CorruptObject(f"{source} does not match its own digest {digest!r}; write the tree again")
    return Manifest(entries, meta, digest)


def why_unsafe(path: str) -> str | None:
    """Why this relative path must not be used below a directory; None if it is safe."""
    if path == MANIFEST_NAME:
        return f"{path!r} is the commit marker's own name; rename the file"
    # The store may have other writers: no path of a manifest may lead out of the directory.
    parts = path.split("/")
    if not path or "\\" in path or "\0" in path or PurePosixPath(path).is_absolute():
        return f"{path!r} is not a relative path with forward slashes"
    if any(part in ("", ".", "..") for part in parts):
        return f"{path!r} has an empty part, '.' or '..'"
    return None


def _digest(entries: tuple[FileEntry, ...], meta: Mapping[str, Any]) -> str:
    return canonical_digest([[asdict(entry) for entry in entries], dict(meta)])
