"""Damaged bytes, objects and manifests are found before they are used."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.digests import canonical_digest
from ray_jobs.errors import (
    CorruptObject,
    StoreError,
)
from ray_jobs.storage import FileEntry, Store
from ray_jobs.storage.manifest import make_manifest, why_unsafe
from ray_jobs.storage.transfer import PART_BYTES
from tests.conftest import StoreServer
from tests.storage.builders import bucket_of, contents, key_of, make_tree, save
from tests.storage.faulty_store import Forward, Request, Response, faulty


def test_the_store_refuses_a_wrong_checksum(store: Store, store_server: StoreServer) -> None:
    bucket, key = bucket_of(store, store_server), key_of(store, "a")
    with pytest.raises(CorruptObject):
        bucket.put(key, b"bytes", sha256=bytes(32))
    assert not store.exists("a")
    upload_id, _ = bucket.begin_upload(key, metadata={})
    with pytest.raises(CorruptObject):
        bucket.upload_part(key, upload_id, 1, b"bytes", sha256=bytes(32))


def flip(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


@pytest.mark.parametrize("size", [1000, PART_BYTES + 1])
def test_bytes_damaged_in_an_upload_are_sent_again(store_server: StoreServer, tmp_path: Path, size: int) -> None:
    damaged: list[str] = []

    def fault(request: Request, forward: Forward) -> Response:
        if request.method == "PUT" and len(request.body) >= 1000 and not damaged:
            damaged.append(request.path)
            request = replace(request, body=flip(request.body))
        return forward(request)

    directory = make_tree(tmp_path / "in", a=size)
    with faulty(store_server.settings(), fault) as settings:
        store = Store(f"s3://kitae/{uuid.uuid4().hex}", settings, cache=tmp_path / "cache")
        save(store, directory, "t")
        assert damaged
        assert contents(store.fetch("t")) == contents(directory)


def test_bytes_damaged_in_a_download_are_found(store_server: StoreServer, tmp_path: Path) -> None:
    def fault(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if request.method == "GET" and request.path.endswith("/t/a"):
            return replace(response, body=flip(response.body))
        return response

    with faulty(store_server.settings(), fault) as settings:
        store = Store(f"s3://kitae/{uuid.uuid4().hex}", settings, cache=tmp_path / "cache")
        save(store, make_tree(tmp_path / "in", a=1000), "t")
        with pytest.raises(CorruptObject, match="SHA-256"):
            store.fetch("t")
        with pytest.raises(CorruptObject):
            store.get("t/a")
    assert [path.suffix for path in (tmp_path / "cache" / "trees").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("other bytes", b"0" * 1000, "SHA-256"),
        ("cut off", b"0" * 999, "999 bytes, its manifest says 1000"),
        ("longer", b"0" * 1001, "1001 bytes"),
        ("gone", None, "in the manifest but not in the store"),
    ],
)
def test_an_object_other_than_the_committed_one_is_not_read(
    store: Store, tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    save(store, make_tree(tmp_path / "in", a=1000, b=PART_BYTES + 10), "t")
    if data is None:
        store.delete("t/a")
    else:
        store.put("t/a", data)
    with pytest.raises(CorruptObject, match=message):
        store.fetch("t")
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("cache", "in")] == []
    assert [path.suffix for path in (tmp_path / "cache" / "trees").iterdir()] == [".lock"]


def test_one_damaged_part_is_found(store: Store, tmp_path: Path) -> None:
    directory = make_tree(tmp_path / "in", a=3 * PART_BYTES)
    save(store, directory, "t")
    with (directory / "a").open("r+b") as file:
        file.seek(PART_BYTES + 5)
        file.write(b"wrong")
    store.upload_file(directory / "a", "t/a")
    with pytest.raises(CorruptObject, match="SHA-256"):
        store.fetch("t")


def manifest_document(path: str = "a", digest: str | None = None) -> dict[str, Any]:
    files = [{"path": path, "size_bytes": 1, "sha256": "0" * 64}]
    right = canonical_digest([files, {}])
    return {"format": 1, "digest": digest or right, "files": files, "meta": {}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a manifest"),
        (b"{}", "not a manifest"),
        (b"[1]", "not a manifest"),
        (json.dumps(manifest_document(digest="0" * 64)).encode(), "own digest"),
        (json.dumps(manifest_document("../../etc/passwd")).encode(), "names files it must not"),
        (json.dumps(manifest_document("/etc/passwd")).encode(), "names files it must not"),
        (json.dumps(manifest_document() | {"format": 2}).encode(), "upgrade"),
    ],
)
def test_a_damaged_manifest_is_refused(store: Store, data: bytes, message: str) -> None:
    store.put("t/manifest.json", data)
    with pytest.raises(CorruptObject, match=message):
        store.read_manifest("t")


@given(st.text(max_size=30))
def test_a_safe_path_stays_in_its_directory(path: str) -> None:
    if why_unsafe(path) is None:
        base = "/base/dir"
        assert os.path.normpath(os.path.join(base, path)).startswith(base + "/")


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../../b", "a//b", "./a", "a\\b", "a\0", "manifest.json", "a/"])
def test_unsafe_paths_are_refused(path: str) -> None:
    assert why_unsafe(path) is not None
    with pytest.raises(StoreError):
        make_manifest([FileEntry(path, 1, "0" * 64)], {})


def test_a_repeated_path_is_refused() -> None:
    with pytest.raises(StoreError, match="twice"):
        make_manifest([FileEntry("a", 1, "0" * 64), FileEntry("a", 2, "1" * 64)], {})
