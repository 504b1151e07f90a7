"""Trees of files, and requests below the store, for the tests of the store."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ray_jobs.storage import Manifest, Store
from ray_jobs.storage.bucket import Bucket
from ray_jobs.storage.store import split_uri
from tests.conftest import StoreServer

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


def bucket_of(store: Store, server: StoreServer) -> Bucket:
    """The bucket of a store, for single requests."""
    return Bucket(split_uri(store.uri())[0], server.settings())


def key_of(store: Store, key: str = "") -> str:
    """The whole key of a key of the store."""
    return store.uri(key).split("/", 3)[3]
