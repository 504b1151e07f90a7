"""Digests of JSON documents: job ids, stage keys, manifests and fingerprints are computed here.

The bytes that are hashed are part of the store's format: another separator or escape would give every existing object
another key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any


def canonical_json(document: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal documents, equal bytes. ValueError for NaN and infinity."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode()


def json_sha256(document: Any, *, ensure_ascii: bool = False) -> hashlib._Hash:
    """SHA-256 of the document as JSON with sorted keys and a space after each separator, to be updated further."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, ensure_ascii=ensure_ascii).encode())


def json_digest(document: Any, digits: int = 16, *, ensure_ascii: bool = False) -> str:
    """The first hex digits of `json_sha256`."""
    return json_sha256(document, ensure_ascii=ensure_ascii).hexdigest()[:digits]


def canonical_digest(document: Any, digits: int = 64) -> str:
    """The first hex digits of the SHA-256 of `canonical_json`."""
    return hashlib.sha256(canonical_json(document)).hexdigest()[:digits]


def tree_digest(files: Iterable[tuple[str, bytes]]) -> str:
    """16 hex digits of the SHA-256 over a tree's files, each as its path and its SHA-256: the name of a base's copy."""
    digest = hashlib.sha256()
    for path, sha256 in sorted(files, key=lambda file: PurePosixPath(file[0])):
        digest.update(f"{path}\0".encode())
        digest.update(sha256)
    return digest.hexdigest()[:16]
