"""Files and trees: commit, parallel transfer, the cache, and disks that fill up."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.errors import (
    ConflictError,
    CorruptObject,
    MachineError,
    StoreError,
)
from ray_jobs.storage import Store
from ray_jobs.storage.bucket import Bucket
from ray_jobs.storage.transfer import PART_BYTES, Transfer, parts_of
from tests.conftest import StoreServer
from tests.repository import ROOT
from tests.storage.builders import MB, at_once, bucket_of, contents, key_of, make_tree, save


def test_a_tree_round_trips(store: Store, tmp_path: Path) -> None:
    directory = make_tree(tmp_path / "in", small=10, empty=0, sub__deep__x=3 * MB, big=40 * MB)
    (directory / "sub" / "語 +%&?#.txt").write_text("é")
    seen: list[tuple[int, int]] = []
    files = store.upload_tree(directory, "t", progress=lambda done, total: seen.append((done, total)))
    total = sum(len(data) for data in contents(directory).values())
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert store.read_manifest("t") is None
    manifest = store.commit("t", files, {"step": 3})
    assert manifest.size_bytes == total
    assert store.read_manifest("t") == manifest
    seen.clear()
    tree = store.fetch("t", progress=lambda done, _: seen.append((done, 0)))
    assert contents(tree) == contents(directory)
    assert seen[-1][0] == total
    assert sorted(path.name for path in tree.parent.iterdir()) == [manifest.digest, f"{manifest.digest}.lock"]


def test_the_digest_depends_on_the_content_alone(store: Store, tmp_path: Path) -> None:
    directory = make_tree(tmp_path / "in", a=10, b=20)
    first = save(store, directory, "one", {"a": 1, "b": [1.0, "é"]})
    again = save(store, directory, "two", {"b": [1.0, "é"], "a": 1})
    assert first.digest == again.digest
    assert save(store, directory, "three", {"a": 2}).digest != first.digest
    (directory / "a").write_bytes(b"x" * 10)
    assert save(store, directory, "four", {"a": 1, "b": [1.0, "é"]}).digest != first.digest


def test_a_tree_is_committed_once(store: Store, tmp_path: Path) -> None:
    directory = make_tree(tmp_path / "in", a=10)
    manifest = save(store, directory, "t")
    assert save(store, directory, "t") == manifest
    with pytest.raises(ConflictError, match="other content"):
        store.commit("t", manifest.files, {"other": True})
    (directory / "a").write_bytes(b"0123456789")
    with pytest.raises(ConflictError, match="never overwritten"):
        store.upload_tree(directory, "t")
    assert store.read_manifest("t") == manifest
    store.fetch("t")


def test_one_of_eight_commits_of_different_trees_wins(store: Store, tmp_path: Path) -> None:
    files = store.upload_tree(make_tree(tmp_path / "in", a=10), "t")

    def commit(number: int) -> int | None:
        try:
            store.commit("t", files, {"number": number})
        except ConflictError:
            return None
        return number

    (winner,) = [number for number in at_once(8, commit) if number is not None]
    committed = store.read_manifest("t")
    assert committed is not None
    assert committed.meta == {"number": winner}


def test_a_tree_with_a_missing_file_is_not_committed(store: Store, tmp_path: Path) -> None:
    files = store.upload_tree(make_tree(tmp_path / "in", a=10, b=10), "t")
    store.delete(["t/a"])
    with pytest.raises(StoreError, match="a: 10 bytes expected, found nothing"):
        store.commit("t", files, {})
    assert store.read_manifest("t") is None


def test_a_repeated_upload_sends_only_the_rest(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_tree(tmp_path / "in", a=10, b=PART_BYTES + 1)
    store.upload_tree(directory, "t")
    (directory / "c").write_bytes(b"new")
    put: list[str] = []
    original = Bucket.put
    monkeypatch.setattr(Bucket, "put", lambda self, key, *a, **k: put.append(key) or original(self, key, *a, **k))  # type: ignore[func-returns-value]  # append gives None
    monkeypatch.setattr(Bucket, "begin_upload", lambda *_, **__: pytest.fail("sent again"))
    store.upload_tree(directory, "t")
    assert [key.rpartition("/")[2] for key in put] == ["c"]


def test_leftovers_of_a_dead_upload_are_replaced(store: Store, tmp_path: Path) -> None:
    store.upload_tree(make_tree(tmp_path / "old", a=10, b=PART_BYTES + 1), "t")
    directory = make_tree(tmp_path / "new", a=10, b=PART_BYTES + 1)
    save(store, directory, "t")
    assert contents(store.fetch("t")) == contents(directory)


@pytest.mark.parametrize("size", [10, PART_BYTES + 1])
def test_a_late_writer_cannot_change_a_committed_tree(
    store: Store, store_server: StoreServer, tmp_path: Path, size: int
) -> None:
    late = make_tree(tmp_path / "late", a=size) / "a"
    manifest = save(store, make_tree(tmp_path / "in", a=size), "t")
    # The late writer listed the tree before it was written.
    with (
        pytest.raises(ConflictError),
        Transfer(bucket_of(store, store_server), total_bytes=size, progress=None) as transfer,
    ):
        transfer.upload("a", late, key_of(store, "t/a"), None)
    store.fetch("t")
    assert store.read_manifest("t") == manifest


def test_eight_uploads_of_the_same_tree_all_succeed(store: Store, tmp_path: Path) -> None:
    directory = make_tree(tmp_path / "in", a=1000, b=PART_BYTES + 1)
    manifests = at_once(8, lambda _: save(store, directory, "t", {"same": True}))
    assert len({manifest.digest for manifest in manifests}) == 1
    store.fetch("t")


def test_a_deleted_tree_loses_its_manifest_first(
    store: Store, store_server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, make_tree(tmp_path / "in", a=1, b=1), "t")
    save(store, make_tree(tmp_path / "in", a=1), "tt")
    bucket = bucket_of(store, store_server)
    upload_id, _ = bucket.begin_upload(key_of(store, "t/c"), metadata={})
    deleted: list[str] = []
    original = Bucket.delete
    monkeypatch.setattr(Bucket, "delete", lambda self, key: deleted.append(key) or original(self, key))  # type: ignore[func-returns-value]  # append gives None
    store.delete_tree("t")
    assert deleted[0].endswith("t/manifest.json")
    assert list(store.list("t")) == []
    assert list(bucket.open_uploads(key_of(store))) == []
    assert store.read_manifest("tt") is not None
    assert upload_id


def test_unstorable_files_are_named_before_anything_is_sent(store: Store, tmp_path: Path) -> None:
    directory = make_tree(tmp_path / "in", a=1)
    (directory / "broken").symlink_to("nowhere")
    (directory / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    (directory / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match="3 thing") as caught:
        store.upload_tree(directory, "t")
    assert len(caught.value.details) == 3
    assert list(store.list()) == []
    with pytest.raises(StoreError, match="no directory"):
        store.upload_tree(tmp_path / "absent", "t")


def test_a_link_is_stored_as_a_file(store: Store, tmp_path: Path) -> None:
    make_tree(tmp_path / "blobs", a=100)
    directory = make_tree(tmp_path / "in")
    (directory / "model.safetensors").symlink_to(tmp_path / "blobs" / "a")
    save(store, directory, "t")
    tree = store.fetch("t")
    assert (tree / "model.safetensors").read_bytes() == (tmp_path / "blobs" / "a").read_bytes()
    assert not (tree / "model.safetensors").is_symlink()


def test_a_file_that_changes_during_its_upload_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_tree(tmp_path / "in", a=10)
    original = Bucket.put

    def slow(self: Bucket, key: str, data: bytes, **options: Any) -> str:
        etag = original(self, key, data, **options)
        (directory / "a").write_bytes(b"changed!!!")
        os.utime(directory / "a", (1, 1))
        return etag

    monkeypatch.setattr(Bucket, "put", slow)
    with pytest.raises(StoreError, match="changed while it was uploaded"):
        store.upload_tree(directory, "t")


def test_a_file_round_trips_and_can_be_replaced(store: Store, tmp_path: Path) -> None:
    source = make_tree(tmp_path, a=PART_BYTES * 2 + 5) / "a"
    entry = store.upload_file(source, "f/a")
    assert store.download_file("f/a", tmp_path / "b" / "c") == replace(entry, path="c")
    assert (tmp_path / "b" / "c").read_bytes() == source.read_bytes()
    source.write_bytes(b"new")
    store.upload_file(source, "f/a")
    store.download_file("f/a", tmp_path / "b" / "c")
    assert (tmp_path / "b" / "c").read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["c"]
    with pytest.raises(StoreError, match="no file"):
        store.upload_file(tmp_path / "absent", "f/b")


def test_a_big_tree_moves_in_parallel(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_tree(tmp_path / "in", a=80 * MB, b=30 * MB, c__d=10 * MB, **{f"n{i}": 1000 for i in range(10)})
    most = {"now": 0, "upload_part": 0, "get_range": 0}
    lock = threading.Lock()

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with lock:
                most["now"] += 1
                most[name] = max(most[name], most["now"])
            try:
                return original(*arguments, **options)
            finally:
                with lock:
                    most["now"] -= 1

        return call

    for name in ("upload_part", "get_range"):
        monkeypatch.setattr(Bucket, name, counted(name, getattr(Bucket, name)))
    save(store, directory, "t")
    assert contents(store.fetch("t")) == contents(directory)
    assert most["upload_part"] >= 4
    assert most["get_range"] >= 4


def test_the_other_parts_of_a_failed_file_are_not_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, make_tree(tmp_path / "in", a=400_000, b=400_000), "t")
    asked: list[int] = []
    small, original = [(offset, 1000) for offset in range(0, 400_000, 1000)], Bucket.get_range

    def short(self: Bucket, key: str, offset: int, size_bytes: int, *, etag: str) -> bytes:
        if key.endswith("/b"):
            return original(self, key, offset, size_bytes, etag=etag)
        asked.append(offset)
        time.sleep(0.01)  # as long as a store takes: the others are cancelled meanwhile
        return b""

    monkeypatch.setattr("ray_jobs.storage.transfer.parts_of", lambda size_bytes: small)
    monkeypatch.setattr(Bucket, "get_range", short)
    with pytest.raises(CorruptObject, match="gave 0 bytes"):
        store.fetch("t")
    assert len(asked) < 200, "the failed file has 400 parts"


def test_concurrent_fetches_download_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_tree(tmp_path / "in", a=1000, b__c=10)
    save(store, directory, "t")
    downloads: list[str] = []
    original = Bucket.get_range

    def counted(self: Bucket, key: str, *arguments: Any, **options: Any) -> bytes:
        downloads.append(key.rpartition("/")[2])
        return original(self, key, *arguments, **options)

    monkeypatch.setattr(Bucket, "get_range", counted)
    found = set(at_once(8, lambda _: store.fetch("t")))
    assert len(found) == 1
    assert sorted(downloads) == ["a", "c"]
    assert contents(found.pop()) == contents(directory)


def test_a_damaged_cache_entry_is_downloaded_again(store: Store, tmp_path: Path) -> None:
    directory = make_tree(tmp_path / "in", a=1000, b=10)
    save(store, directory, "t")
    cached = store.fetch("t")
    (cached / "a").write_bytes(b"cut")
    (cached / "b").unlink()
    assert store.fetch("t") == cached
    assert contents(cached) == contents(directory)
    assert sorted(path.suffix for path in cached.parent.iterdir()) == ["", ".lock"]


def test_the_cache_keeps_two_trees_of_one_prefix_apart(store: Store, tmp_path: Path) -> None:
    save(store, make_tree(tmp_path / "one", a=10), "t")
    first = store.fetch("t")
    store.delete_tree("t")
    save(store, make_tree(tmp_path / "two", a=10), "t")
    second = store.fetch("t")
    assert contents(first) == contents(tmp_path / "one")
    assert contents(second) == contents(tmp_path / "two")


def test_a_small_disk_is_reported_before_the_download(store: Store, store_server: StoreServer, tmp_path: Path) -> None:
    save(store, make_tree(tmp_path / "in", a=6 * MB, b=4 * MB), "t")
    small = tmp_path / "small"
    small.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", small]).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        free = shutil.disk_usage(small).free
        with pytest.raises(MachineError, match=f"{10 * MB} bytes needed, {free} bytes free.*KITAE_CACHE"):
            Store(store.uri(), store_server.settings(), cache=small).fetch("t")
        assert shutil.disk_usage(small).free > free - MB
        assert [path.suffix for path in (small / "trees").iterdir()] == [".lock"]
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_full_disk_ends_the_download(store: Store, store_environment: dict[str, str], tmp_path: Path) -> None:
    save(store, make_tree(tmp_path / "in", a=3 * PART_BYTES), "t")
    program = textwrap.dedent("""
        from ray_jobs.errors import MachineError
        from ray_jobs.storage import Store

        try:
            Store.from_env(check=False).fetch("t")
        except MachineError as error:
            print(error)
        """)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * PART_BYTES, 2 * PART_BYTES))

    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "KITAE_CACHE": str(out)},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"{3 * PART_BYTES} bytes needed" in done.stdout, done.stderr
    assert [path.suffix for path in (out / "trees").iterdir()] == [".lock"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@given(st.integers(0, 5 * 10**13))
def test_parts_cover_a_file_within_the_limits_of_s3(size: int) -> None:
    parts = parts_of(size)
    assert len(parts) <= 10_000
    assert sum(part for _, part in parts) == size
    assert all(part >= 5 * 2**20 for _, part in parts[:-1])
    ends = [offset + part for offset, part in parts]
    assert [offset for offset, _ in parts] == [0, *ends][: len(parts)]
