"""The object store, against a real server: conditions, transfer, verification, and what happens when things break."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.digests import canonical_json
from ray_jobs.errors import (
    ConflictError,
    CorruptObject,
    MachineError,
    ObjectNotFound,
    StoreAccessDenied,
    StoreError,
    StoreLacks,
    StoreUnreachable,
)
from ray_jobs.storage import FileEntry, Manifest, Store
from ray_jobs.storage.bucket import Bucket, Settings
from ray_jobs.storage.manifest import make_manifest, why_unsafe
from ray_jobs.storage.probe import CHECKS
from ray_jobs.storage.transfer import PART_BYTES, LocalFile, Transfer, parts_of
from tests.conftest import StoreServer, start_store_server, stop_store_server
from tests.repository import ROOT
from tests.storage.faulty_store import Fault, Forward, Request, Response, error, faulty

T = TypeVar("T")
MB = 10**6


def at_once(count: int, work: Callable[[int], T]) -> list[T]:
    start = threading.Barrier(count)

    def run(number: int) -> T:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def make_tree(directory: Path, **sizes: int) -> Path:
    """Files of random bytes; `__` in a name is a slash."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, size in sizes.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def save(store: Store, directory: Path, prefix: str, meta: dict[str, Any] | None = None) -> Manifest:
    return store.commit(prefix, store.upload_tree(directory, prefix), meta or {})


@pytest.fixture
def fragile_server(tmp_path: Path) -> Iterator[StoreServer]:
    """A server of the test's own, to be killed."""
    server = start_store_server(tmp_path / "server")
    yield server
    stop_store_server(server)


# ---- single objects -----------------------------------------------------------------------------------------------


def test_what_is_put_is_got(store: Store) -> None:
    etag = store.put("a/b", b"\0\xff")
    assert store.get("a/b") == b"\0\xff"
    assert store.get_with_etag("a/b") == (b"\0\xff", etag)
    assert store.exists("a/b")
    assert not store.exists("a")
    store.put_json("ja", {"名": ["é", 1.5, None]})
    assert store.get("ja") == '{"名":["é",1.5,null]}'.encode()
    assert store.get_json("ja") == {"名": ["é", 1.5, None]}


def test_what_is_absent_is_not_found(store: Store) -> None:
    for ask in (store.get, store.get_json, lambda key: store.download_file(key, Path("never"))):
        with pytest.raises(ObjectNotFound, match="absent"):
            ask("absent")
    store.delete("absent")
    assert list(store.list("absent")) == []
    assert store.list_dirs("absent") == []


def test_not_a_number_is_not_json(store: Store) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.put_json("a", {"loss": float("nan")})
    store.put("a", b"{")
    with pytest.raises(CorruptObject, match="not JSON"):
        store.get_json("a")


def test_conditions(store: Store) -> None:
    first = store.put("a", b"1", if_absent=True)
    with pytest.raises(ConflictError):
        store.put("a", b"2", if_absent=True)
    second = store.put("a", b"2", if_match=first)
    with pytest.raises(ConflictError):
        store.put("a", b"3", if_match=first)
    with pytest.raises(ConflictError):
        store.put("b", b"3", if_match=second)
    assert store.get("a") == b"2"
    assert not store.exists("b")


def test_of_sixteen_who_claim_a_key_one_wins(store: Store) -> None:
    for attempt in range(5):

        def claim(number: int, key: str = f"claim/{attempt}") -> int | None:
            try:
                store.put(key, b"%d" % number, if_absent=True)
            except ConflictError:
                return None
            return number

        winners = [number for number in at_once(16, claim) if number is not None]
        assert len(winners) == 1
        assert store.get(f"claim/{attempt}") == b"%d" % winners[0]


def test_no_update_is_lost_among_sixteen_writers(store: Store) -> None:
    def add(document: dict[str, Any] | None) -> dict[str, Any]:
        return {"count": 1 if document is None else document["count"] + 1}

    at_once(16, lambda _: [store.update_json("counter", add) for _ in range(3)])
    assert store.get_json("counter") == {"count": 48}


def test_an_update_that_changes_nothing_writes_nothing(store: Store) -> None:
    etag = store.put_json("a", {"x": 1})
    assert store.update_json("a", lambda old: dict(old or {})) == {"x": 1}
    assert store.get_with_etag("a")[1] == etag


def test_listing_is_by_folder_and_relative_to_the_root(store: Store) -> None:
    for key in ("m/a/1/x", "m/a/2/x", "m/ab/1/x", "m/top"):
        store.put(key, b"12")
    assert [info.key for info in store.list("m/a")] == ["m/a/1/x", "m/a/2/x"]
    assert [info.key for info in store.list("m/a/")] == ["m/a/1/x", "m/a/2/x"]
    assert {info.size_bytes for info in store.list()} == {2}
    assert store.list_dirs("m") == ["a", "ab"]
    assert store.list_dirs("m/a/") == ["1", "2"]
    other = store.at(store.uri("m"))
    assert [info.key for info in other.list("ab")] == ["ab/1/x"]
    assert other.get("top") == b"12"
    assert other.uri("top") == store.uri("m/top")


def test_a_listing_may_be_longer_than_a_page(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: store.put(f"many/{number:04d}", b""), range(1050)))
    assert [info.key for info in store.list("many")] == [f"many/{number:04d}" for number in range(1050)]


# ---- trees --------------------------------------------------------------------------------------------------------


def test_a_tree_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
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
    assert store.download_tree("t", tmp_path / "out", progress=lambda done, _: seen.append((done, 0))) == manifest
    assert contents(tmp_path / "out") == contents(directory)
    assert seen[-1][0] == total
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_the_digest_of_a_tree_is_that_of_its_content(store: Store, tmp_path: Path) -> None:
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
    store.download_tree("t", tmp_path / "out")


def test_of_eight_who_commit_different_trees_one_wins(store: Store, tmp_path: Path) -> None:
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


def test_what_was_not_uploaded_is_not_committed(store: Store, tmp_path: Path) -> None:
    files = store.upload_tree(make_tree(tmp_path / "in", a=10, b=10), "t")
    store.delete(["t/a"])
    with pytest.raises(StoreError, match="a: 10 bytes expected, found nothing"):
        store.commit("t", files, {})
    assert store.read_manifest("t") is None


def test_an_upload_that_broke_off_sends_only_the_rest(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    store.download_tree("t", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(directory)


@pytest.mark.parametrize("size", [10, PART_BYTES + 1])
def test_a_writer_taken_for_dead_cannot_change_what_is_committed(store: Store, tmp_path: Path, size: int) -> None:
    late = make_tree(tmp_path / "late", a=size) / "a"
    manifest = save(store, make_tree(tmp_path / "in", a=size), "t")
    # It looked before the other one came, and saw nothing.
    bucket = store._bucket
    with (
        pytest.raises(ConflictError),
        Transfer(bucket, total_bytes=size, progress=None) as transfer,
    ):
        transfer.upload(LocalFile("a", late, size), f"{store._prefix}t/a", None)
    store.download_tree("t", tmp_path / "out")
    assert store.read_manifest("t") == manifest


def test_eight_who_upload_the_same_tree_at_once_all_succeed(store: Store, tmp_path: Path) -> None:
    directory = make_tree(tmp_path / "in", a=1000, b=PART_BYTES + 1)
    manifests = at_once(8, lambda _: save(store, directory, "t", {"same": True}))
    assert len({manifest.digest for manifest in manifests}) == 1
    store.download_tree("t", tmp_path / "out")


def test_a_deleted_tree_loses_its_manifest_first(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, make_tree(tmp_path / "in", a=1, b=1), "t")
    save(store, make_tree(tmp_path / "in", a=1), "tt")
    upload_id, _ = store._bucket.begin_upload(f"{store._prefix}t/c", metadata={})
    deleted: list[str] = []
    original = Bucket.delete
    monkeypatch.setattr(Bucket, "delete", lambda self, key: deleted.append(key) or original(self, key))  # type: ignore[func-returns-value]  # append gives None
    store.delete_tree("t")
    assert deleted[0].endswith("t/manifest.json")
    assert list(store.list("t")) == []
    assert list(store._bucket.open_uploads(store._prefix)) == []
    assert store.read_manifest("tt") is not None
    assert upload_id


def test_what_cannot_be_stored_is_named_before_anything_is_sent(store: Store, tmp_path: Path) -> None:
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


def test_a_file_that_is_a_link_is_stored_as_a_file(store: Store, tmp_path: Path) -> None:
    make_tree(tmp_path / "blobs", a=100)
    directory = make_tree(tmp_path / "in")
    (directory / "model.safetensors").symlink_to(tmp_path / "blobs" / "a")
    save(store, directory, "t")
    tree = store.fetch("t")
    assert (tree / "model.safetensors").read_bytes() == (tmp_path / "blobs" / "a").read_bytes()
    assert not (tree / "model.safetensors").is_symlink()


def test_a_file_that_changes_while_it_is_uploaded_is_refused(
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


def test_files(store: Store, tmp_path: Path) -> None:
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


def test_a_download_never_overwrites_another_directory(store: Store, tmp_path: Path) -> None:
    save(store, make_tree(tmp_path / "in", a=10), "t")
    mine = make_tree(tmp_path / "mine", thesis=10)
    before = contents(mine)
    with pytest.raises(StoreError, match="exists and is not"):
        store.download_tree("t", mine)
    assert contents(mine) == before
    store.download_tree("t", tmp_path / "out")
    store.download_tree("t", tmp_path / "out")  # it is this tree already
    (tmp_path / "empty").mkdir()
    store.download_tree("t", tmp_path / "empty")
    assert contents(tmp_path / "empty") == contents(tmp_path / "in")


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
    store.download_tree("t", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(directory)
    assert most["upload_part"] >= 4
    assert most["get_range"] >= 4


# ---- the cache ----------------------------------------------------------------------------------------------------


def test_fetching_downloads_once_even_for_many_at_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_tree(tmp_path / "in", a=1000, b__c=10)
    save(store, directory, "t")
    downloads: list[str] = []
    original = Store.download_tree

    def counted(self: Store, prefix: str, *arguments: Any, **options: Any) -> Manifest:
        downloads.append(prefix)
        return original(self, prefix, *arguments, **options)

    monkeypatch.setattr(Store, "download_tree", counted)
    found = set(at_once(8, lambda _: store.fetch("t")))
    assert len(found) == 1
    assert downloads == ["t"]
    assert contents(found.pop()) == contents(directory)


def test_a_damaged_cache_is_made_anew(store: Store, tmp_path: Path) -> None:
    directory = make_tree(tmp_path / "in", a=1000, b=10)
    save(store, directory, "t")
    cached = store.fetch("t")
    (cached / "a").write_bytes(b"cut")
    (cached / "b").unlink()
    assert store.fetch("t") == cached
    assert contents(cached) == contents(directory)
    assert sorted(path.suffix for path in cached.parent.iterdir()) == ["", ".lock"]


def test_the_cache_tells_two_trees_at_one_place_apart(store: Store, tmp_path: Path) -> None:
    save(store, make_tree(tmp_path / "one", a=10), "t")
    first = store.fetch("t")
    store.delete_tree("t")
    save(store, make_tree(tmp_path / "two", a=10), "t")
    second = store.fetch("t", cache=tmp_path / "cache")
    assert contents(first) == contents(tmp_path / "one")
    assert contents(second) == contents(tmp_path / "two")


# ---- damage -------------------------------------------------------------------------------------------------------


def test_a_checksum_that_does_not_match_is_refused_by_the_store(store: Store) -> None:
    bucket, key = store._bucket, f"{store._prefix}a"
    with pytest.raises(CorruptObject):
        bucket.put(key, b"bytes", sha256=bytes(32))
    assert not store.exists("a")
    upload_id, _ = bucket.begin_upload(key, metadata={})
    with pytest.raises(CorruptObject):
        bucket.upload_part(key, upload_id, 1, b"bytes", sha256=bytes(32))


def flip(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


@pytest.mark.parametrize("size", [1000, PART_BYTES + 1])
def test_bytes_that_change_on_the_way_there_are_sent_again(
    store_server: StoreServer, tmp_path: Path, size: int
) -> None:
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


def test_bytes_that_change_on_the_way_back_are_found(store_server: StoreServer, tmp_path: Path) -> None:
    def fault(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if request.method == "GET" and request.path.endswith("/t/a"):
            return replace(response, body=flip(response.body))
        return response

    with faulty(store_server.settings(), fault) as settings:
        store = Store(f"s3://kitae/{uuid.uuid4().hex}", settings)
        save(store, make_tree(tmp_path / "in", a=1000), "t")
        with pytest.raises(CorruptObject, match="SHA-256"):
            store.download_tree("t", tmp_path / "out")
        with pytest.raises(CorruptObject):
            store.get("t/a")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("other bytes", b"0" * 1000, "SHA-256"),
        ("cut off", b"0" * 999, "999 bytes, its manifest says 1000"),
        ("longer", b"0" * 1001, "1001 bytes"),
        ("gone", None, "in the manifest but not in the store"),
    ],
)
def test_an_object_that_is_not_what_was_committed_is_not_read(
    store: Store, tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    save(store, make_tree(tmp_path / "in", a=1000, b=PART_BYTES + 10), "t")
    if data is None:
        store.delete("t/a")
    else:
        store.put("t/a", data)
    with pytest.raises(CorruptObject, match=message):
        store.download_tree("t", tmp_path / "out")
    with pytest.raises(CorruptObject, match=message):
        store.fetch("t")
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("cache", "in")] == []
    assert [path.suffix for path in (tmp_path / "cache" / "trees").iterdir()] == [".lock"]


def test_one_wrong_part_of_many_is_found(store: Store, tmp_path: Path) -> None:
    directory = make_tree(tmp_path / "in", a=3 * PART_BYTES)
    save(store, directory, "t")
    with (directory / "a").open("r+b") as file:
        file.seek(PART_BYTES + 5)
        file.write(b"wrong")
    store.upload_file(directory / "a", "t/a")
    with pytest.raises(CorruptObject, match="SHA-256"):
        store.download_tree("t", tmp_path / "out")


def manifest_document(path: str = "a", digest: str | None = None) -> dict[str, Any]:
    files = [{"path": path, "size_bytes": 1, "sha256": "0" * 64}]
    import hashlib

    right = hashlib.sha256(canonical_json([files, {}])).hexdigest()
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
def test_a_manifest_that_is_none(store: Store, data: bytes, message: str) -> None:
    store.put("t/manifest.json", data)
    with pytest.raises(CorruptObject, match=message):
        store.read_manifest("t")


# ---- interruptions ------------------------------------------------------------------------------------------------


def test_an_upload_that_is_killed_leaves_nothing_to_read(
    store: Store, store_environment: dict[str, str], tmp_path: Path
) -> None:
    directory = make_tree(tmp_path / "in", a=60 * MB, b=60 * MB, c=1000)
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from ray_jobs.storage import Store

        store = Store.from_env(check=False)
        files = store.upload_tree(Path(sys.argv[1]), "t", progress=lambda done, total: print(done, flush=True))
        store.commit("t", files, {})
        """)
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(directory)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) > 30 * MB:
            child.send_signal(signal.SIGKILL)
            break
    assert child.wait(30) == -signal.SIGKILL
    assert store.read_manifest("t") is None
    with pytest.raises(ObjectNotFound, match="nothing is committed"):
        store.fetch("t")
    save(store, directory, "t")
    assert contents(store.fetch("t")) == contents(directory)


def kill_in_the_middle(server: StoreServer, *, away_s: float) -> Callable[[int, int], None]:
    """A progress function that kills the server at a third of the way and starts it again after a while."""
    killed = threading.Event()

    def restart() -> None:
        server.kill()
        time.sleep(away_s)
        server.start()

    def progress(done: int, total: int) -> None:
        if done > total / 3 and not killed.is_set():
            killed.set()
            thread = threading.Thread(target=restart)
            thread.start()
            threads.append(thread)

    threads: list[threading.Thread] = []
    progress.threads = threads  # type: ignore[attr-defined]  # to be joined by the test
    return progress


def test_a_transfer_survives_kill_9_of_the_store(fragile_server: StoreServer, tmp_path: Path) -> None:
    store = Store("s3://kitae/x", fragile_server.settings(), cache=tmp_path / "cache")
    directory = make_tree(tmp_path / "in", a=60 * MB, b=30 * MB, c=1000, d=10 * MB)
    up = kill_in_the_middle(fragile_server, away_s=2)
    files = store.upload_tree(directory, "t", progress=up)
    (thread,) = up.threads  # type: ignore[attr-defined]
    thread.join()
    store.commit("t", files, {})
    down = kill_in_the_middle(fragile_server, away_s=2)
    store.download_tree("t", tmp_path / "out", progress=down)
    (thread,) = down.threads  # type: ignore[attr-defined]
    thread.join()
    assert contents(tmp_path / "out") == contents(directory)
    store.put("after", b"1", if_absent=True)


def test_a_store_that_stays_away_is_told_after_the_patience(fragile_server: StoreServer, tmp_path: Path) -> None:
    directory = make_tree(tmp_path / "in", a=3 * PART_BYTES, **{f"n{i}": 10 for i in range(20)})
    store = Store("s3://kitae/x", fragile_server.settings(patience_s=2))
    fragile_server.kill()
    for use in (
        lambda: store.get("a"),
        lambda: store.upload_tree(directory, "t"),
        lambda: list(store.list()),
        store.probe,
    ):
        started = time.monotonic()
        with pytest.raises(StoreUnreachable, match="KITAE_STORE_PATIENCE_S") as caught:
            use()
        assert 2 <= time.monotonic() - started < 10
        assert fragile_server.endpoint_url in str(caught.value)
        assert fragile_server.credentials.secret_access_key not in str(caught.value)


@pytest.mark.parametrize("size", [10, PART_BYTES + 1])
def test_a_write_whose_answer_was_lost_is_not_a_conflict(store_server: StoreServer, tmp_path: Path, size: int) -> None:
    lost: list[str] = []

    def fault(request: Request, forward: Forward) -> Response | None:
        response = forward(request)
        if "if-none-match" in request.headers and request.path not in lost:
            assert response.status == 200
            lost.append(request.path)
            return None
        return response

    with faulty(store_server.settings(), fault) as settings:
        store = Store(f"s3://kitae/{uuid.uuid4().hex}", settings)
        store.put("claim", b"mine", if_absent=True)
        with pytest.raises(ConflictError):
            store.put("claim", b"yours", if_absent=True)
        manifest = save(store, make_tree(tmp_path / "in", a=size), "t")
        assert store.read_manifest("t") == manifest
    assert len(lost) == 3


def test_a_store_that_is_overloaded_is_asked_again(store_server: StoreServer, tmp_path: Path) -> None:
    count = 0

    def fault(request: Request, forward: Forward) -> Response | None:
        nonlocal count
        count += 1
        match count % 4:
            case 0:
                return error(503, "SlowDown")
            case 1:
                return error(500, "InternalError")
            case 2:
                return None
        return forward(request)

    with faulty(store_server.settings(), fault) as settings:
        store = Store(f"s3://kitae/{uuid.uuid4().hex}", settings)
        for number in range(5):
            store.put(f"a{number}", b"x", if_absent=True)
            assert store.get(f"a{number}") == b"x"


@pytest.mark.parametrize(
    ("status", "code", "kind", "message", "again"),
    [
        (500, "InternalError", StoreUnreachable, "its disk may be full", True),
        (507, "XMinioStorageFull", StoreError, "has no room", False),
        (400, "InvalidArgument", StoreError, "400 InvalidArgument: made by a test", False),
        (403, "RequestTimeTooSkewed", StoreAccessDenied, "clock", False),
        (400, "IllegalLocationConstraintException", StoreUnreachable, "AWS_REGION", False),
    ],
)
def test_what_a_store_answers_is_passed_on(
    store_server: StoreServer, status: int, code: str, kind: type[StoreError], message: str, again: bool
) -> None:
    asked: list[str] = []

    def fault(request: Request, forward: Forward) -> Response:
        if request.method == "PUT":  # botocore asks for the bucket's region before it gives up on one
            asked.append(request.path)
        return error(status, code)

    with faulty(store_server.settings(patience_s=1), fault) as settings, pytest.raises(kind, match=message) as caught:
        Store("s3://kitae/x", settings).put("a", b"1")
    assert type(caught.value) is kind
    assert (len(asked) > 1) == again


# ---- what a store may be --------------------------------------------------------------------------------------


def test_the_embedded_store_has_everything_and_keeps_nothing_of_the_probe(store: Store) -> None:
    store.probe()
    assert list(store.list()) == []
    assert list(store._bucket.open_uploads(store._prefix)) == []


def without(*names: str) -> Fault:
    return lambda request, forward: forward(request.without(*names))


def not_implemented(query: str) -> Fault:
    def fault(request: Request, forward: Forward) -> Response:
        return error(501, "NotImplemented") if query in request.path.partition("?")[2] else forward(request)

    return fault


def whole_instead_of_range(request: Request, forward: Forward) -> Response:
    return forward(request.without("range"))


@pytest.mark.parametrize(
    ("name", "fault", "lacking"),
    [
        (
            "If-None-Match ignored",
            without("if-none-match"),
            [
                "conditional writes (If-None-Match: *)",
                "conditional writes that hold in a race",
                "conditional multipart uploads (If-None-Match: *)",
            ],
        ),
        (
            "If-Match ignored",
            without("if-match"),
            ["conditional writes (If-Match)", "conditional multipart uploads (If-Match)"],
        ),
        (
            "checksums ignored",
            without("x-amz-checksum-sha256"),
            ["checksums (x-amz-checksum-sha256)", "checksums of parts"],
        ),
        (
            "no multipart",
            not_implemented("uploads"),
            [feature for feature, _, _ in CHECKS if "multipart" in feature or "parts" in feature],
        ),
        ("ranges ignored", whole_instead_of_range, ["range reads"]),
        ("metadata lost", without("x-amz-meta-note"), ["reading back what was written, with its metadata"]),
    ],
)
def test_the_probe_names_what_a_store_lacks(
    store_server: StoreServer, name: str, fault: Fault, lacking: list[str]
) -> None:
    with faulty(store_server.settings(), fault) as settings:
        store = Store(f"s3://kitae/{uuid.uuid4().hex}", settings)
        with pytest.raises(StoreLacks) as caught:
            store.probe()
        named = [feature for feature, why, _ in CHECKS if any(f"{feature}: {why}" in d for d in caught.value.details)]
        assert named == lacking
        assert len(caught.value.details) == len(lacking)
        assert f"lacks {len(lacking)} of the {len(CHECKS)}" in caught.value.message
    assert list(Store(store.uri(), store_server.settings()).list()) == []


def test_a_store_behind_a_proxy_without_faults_lacks_nothing(store_server: StoreServer) -> None:
    with faulty(store_server.settings(), lambda request, forward: forward(request)) as settings:
        Store(f"s3://kitae/{uuid.uuid4().hex}", settings).probe()


@pytest.mark.parametrize("wrong", ["access_key_id", "secret_access_key"])
def test_wrong_credentials(store_server: StoreServer, wrong: str) -> None:
    changes: dict[str, Any] = {wrong: "wrong-and-secret"}
    store = Store("s3://kitae/x", replace(store_server.settings(), **changes))
    for use in (store.probe, lambda: store.get("a"), lambda: store.put("a", b""), lambda: store.exists("a")):
        started = time.monotonic()
        with pytest.raises(StoreAccessDenied, match="AWS_SECRET_ACCESS_KEY") as caught:
            use()
        assert time.monotonic() - started < 5
        assert "wrong-and-secret" not in str(caught.value)
        assert store_server.credentials.secret_access_key not in str(caught.value)


def test_credentials_are_in_no_text_and_no_pickle(store: Store, store_server: StoreServer) -> None:
    secret = store_server.credentials.secret_access_key
    assert secret not in repr(store)
    assert secret not in repr(store_server.settings())
    assert secret.encode() not in pickle.dumps(store)


def test_a_pickled_store_opens_with_the_environment_of_where_it_arrives(
    store: Store, store_environment: dict[str, str]
) -> None:
    store.put("a", b"1")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"1"


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://store.invalid"])
def test_a_wrong_address(store_server: StoreServer, address: str) -> None:
    store = Store("s3://kitae/x", replace(store_server.settings(patience_s=1), endpoint_url=address))
    with pytest.raises(StoreUnreachable, match="AWS_ENDPOINT_URL") as caught:
        store.probe()
    assert address in str(caught.value)


def test_an_address_where_something_else_answers(store_server: StoreServer, tmp_path: Path) -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "16")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(b"<html>Hello</htm")

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # the names that http.server calls

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        store = Store("s3://kitae/x", replace(store_server.settings(patience_s=1), endpoint_url=url))
        with pytest.raises((StoreUnreachable, StoreLacks), match=url):
            store.probe()
    finally:
        server.shutdown()
        server.server_close()


def test_a_missing_bucket_is_made(store_server: StoreServer) -> None:
    store = Store(f"s3://made-{uuid.uuid4().hex[:8]}", store_server.settings())
    with pytest.raises(StoreError, match="Create the bucket"):
        store.get("a")
    store.probe()
    store.put("a", b"1")
    assert store.get("a") == b"1"


def test_a_missing_bucket_that_may_not_be_made(store_server: StoreServer) -> None:
    def fault(request: Request, forward: Forward) -> Response:
        creates = request.method == "PUT" and request.path.count("/") == 1
        return error(403, "AccessDenied") if creates else forward(request)

    with faulty(store_server.settings(), fault) as settings:
        store = Store("s3://absent-bucket/x", settings)
        with pytest.raises(StoreAccessDenied, match=r"bucket 'absent-bucket' does not exist.*create it"):
            store.probe()


# ---- the environment ------------------------------------------------------------------------------------------


def test_all_missing_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["KITAE_STORE", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    for name in [*names, "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"]:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StoreError) as caught:
        Store.from_env()
    assert [detail.split()[0] for detail in caught.value.details] == names
    monkeypatch.setenv("AWS_PROFILE", "company")
    with pytest.raises(StoreError) as caught:
        Store.from_env()
    assert [detail.split()[0] for detail in caught.value.details] == names[:2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KITAE_STORE", "bucket/prefix"),
        ("KITAE_STORE", "s3://Bucket_/x"),
        ("AWS_ENDPOINT_URL", "localhost:9000"),
        ("AWS_ENDPOINT_URL", "http://user:secret@host"),
        ("KITAE_STORE_PATIENCE_S", "soon"),
    ],
)
def test_variables_of_the_wrong_form(
    store_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=name) as caught:
        Store.from_env()
    assert "secret" not in str(caught.value)


def test_the_environment_is_all_a_process_needs(
    store: Store, store_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KITAE_CACHE", str(tmp_path / "elsewhere"))
    save(store, make_tree(tmp_path / "in", a=1), "t")
    assert Store.from_env().fetch("t").is_relative_to(tmp_path / "elsewhere")


# ---- this machine ---------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_told_before_the_download(store: Store, tmp_path: Path) -> None:
    save(store, make_tree(tmp_path / "in", a=6 * MB, b=4 * MB), "t")
    small = tmp_path / "small"
    small.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", small]).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        free = shutil.disk_usage(small).free
        with pytest.raises(MachineError, match=f"{10 * MB} bytes needed, {free} bytes free.*KITAE_CACHE"):
            store.download_tree("t", small / "out")
        with pytest.raises(MachineError, match="bytes needed"):
            store.fetch("t", cache=small)
        assert shutil.disk_usage(small).free > free - MB
        assert not (small / "out").exists()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_disk_that_fills_up_in_the_middle(store: Store, store_environment: dict[str, str], tmp_path: Path) -> None:
    save(store, make_tree(tmp_path / "in", a=3 * PART_BYTES), "t")
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from ray_jobs.errors import MachineError
        from ray_jobs.storage import Store

        try:
            Store.from_env(check=False).download_tree("t", Path(sys.argv[1]))
        except MachineError as error:
            print(error)
        """)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * PART_BYTES, 2 * PART_BYTES))

    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", program, str(out)],
        cwd=ROOT,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"{3 * PART_BYTES} bytes needed" in done.stdout, done.stderr
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


# ---- pure -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 5 * 10**13))
def test_parts_cover_a_file_within_the_limits_of_s3(size: int) -> None:
    parts = parts_of(size)
    assert len(parts) <= 10_000
    assert sum(part for _, part in parts) == size
    assert all(part >= 5 * 2**20 for _, part in parts[:-1])
    ends = [offset + part for offset, part in parts]
    assert [offset for offset, _ in parts] == [0, *ends][: len(parts)]


@given(st.text(max_size=30))
def test_a_path_of_a_manifest_stays_in_its_directory(path: str) -> None:
    if why_unsafe(path) is None:
        base = "/base/dir"
        assert os.path.normpath(os.path.join(base, path)).startswith(base + "/")


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../../b", "a//b", "./a", "a\\b", "a\0", "manifest.json", "a/"])
def test_unsafe_paths(path: str) -> None:
    assert why_unsafe(path) is not None
    with pytest.raises(StoreError):
        make_manifest([FileEntry(path, 1, "0" * 64)], {})


def test_a_path_twice_in_a_manifest() -> None:
    with pytest.raises(StoreError, match="twice"):
        make_manifest([FileEntry("a", 1, "0" * 64), FileEntry("a", 2, "1" * 64)], {})


def test_settings_have_enough_requests_at_once() -> None:
    assert Settings("http://x").parallel >= 8
