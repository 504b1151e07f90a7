"""A store in this process: an S3 client over a dictionary that counts requests, with a clock that a test moves.

For tests with more objects, or more time, than a server can give them. It knows conditional writes, listings in pages
of 1,000, and no multipart uploads.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from ray_jobs.storage import Store, Workspace
from ray_jobs.storage.bucket import StoreSettings
from ray_jobs.storage.clock import StoreClock

PAGE = 1000
START_S = datetime(2026, 12, 1, tzinfo=UTC).timestamp()


class MovedClock(StoreClock):
    """A clock that a test moves."""

    def __init__(self) -> None:
        super().__init__()
        self.at_s = START_S

    def now_s(self) -> float:
        return self.at_s


@dataclass
class _Stored:
    data: bytes
    etag: str
    metadata: dict[str, str]
    modified: datetime


@dataclass
class MemoryClient:
    """The operations of an S3 client that `Bucket` calls for small objects."""

    clock: MovedClock = field(default_factory=MovedClock)
    requests: Counter[str] = field(default_factory=Counter)
    """Requests by operation."""
    objects: dict[str, _Stored] = field(default_factory=dict)
    _keys: list[str] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _writes: int = 0

    @property
    def made(self) -> int:
        """Requests so far."""
        return self.requests.total()

    def put_object(self, *, Key: str, Body: bytes, Metadata: dict[str, str], **given: Any) -> dict[str, Any]:
        with self._lock:
            self.requests["put"] += 1
            found = self.objects.get(Key)
            if given.get("IfNoneMatch") and found is not None:
                raise _error(412, "PreconditionFailed")
            if "IfMatch" in given and (found is None or found.etag != given["IfMatch"]):
                raise _error(412, "PreconditionFailed")
            self._writes += 1
            etag = f'"{hashlib.md5(Body, usedforsecurity=False).hexdigest()}-{self._writes}"'
            if found is None:
                insort(self._keys, Key)
            now = datetime.fromtimestamp(self.clock.at_s, UTC)
            self.objects[Key] = _Stored(bytes(Body), etag, dict(Metadata), now)
            return {"ETag": etag}

    def get_object(self, *, Key: str, Range: str = "", **_: Any) -> dict[str, Any]:
        with self._lock:
            self.requests["get"] += 1
            found = self._found(Key)
            first, _dash, last = Range.removeprefix("bytes=").partition("-")
            data = found.data[int(first) : int(last) + 1] if Range else found.data
            return {"Body": io.BytesIO(data), "ETag": found.etag, "ContentLength": len(data)}

    def head_object(self, *, Key: str, **_: Any) -> dict[str, Any]:
        with self._lock:
            self.requests["head"] += 1
            found = self._found(Key)
            return {
                "ContentLength": len(found.data),
                "ETag": found.etag,
                "Metadata": found.metadata,
                "LastModified": found.modified,
            }

    def delete_object(self, *, Key: str, **_: Any) -> None:
        with self._lock:
            self.requests["delete"] += 1
            if self.objects.pop(Key, None) is not None:
                del self._keys[bisect_right(self._keys, Key) - 1]

    def list_objects_v2(
        self, *, Prefix: str, Delimiter: str = "", StartAfter: str = "", ContinuationToken: str = "", **_: Any
    ) -> dict[str, Any]:
        with self._lock:
            self.requests["list"] += 1
            contents: list[dict[str, Any]] = []
            folders: list[str] = []
            last = max(StartAfter, ContinuationToken)
            at = bisect_right(self._keys, last) if last >= Prefix else bisect_left(self._keys, Prefix)
            while at < len(self._keys) and (key := self._keys[at]).startswith(Prefix):
                if len(contents) + len(folders) == PAGE:
                    more = {"IsTruncated": True, "NextContinuationToken": last}
                    return {"Contents": contents, "CommonPrefixes": [{"Prefix": one} for one in folders]} | more
                head, found, _rest = key[len(Prefix) :].partition(Delimiter) if Delimiter else (key, "", "")
                if found:
                    folders.append(Prefix + head + found)
                    last = Prefix + head + found + chr(0x10FFFF)
                    at = bisect_right(self._keys, last)
                    continue
                one = self.objects[key]
                contents.append({"Key": key, "Size": len(one.data), "ETag": one.etag, "LastModified": one.modified})
                last = key
                at += 1
            return {"Contents": contents, "CommonPrefixes": [{"Prefix": one} for one in folders]}

    def get_paginator(self, operation_name: str) -> Any:
        self.requests["list"] += 1

        class NoUploads:
            def paginate(self, **_: Any) -> list[dict[str, Any]]:
                return []

        return NoUploads()

    def by_prefix(self) -> Counter[str]:
        """Number of objects by the first part of their keys."""
        return Counter(key.split("/")[1] for key in self._keys)

    def _found(self, key: str) -> _Stored:
        if key not in self.objects:
            raise _error(404, "NoSuchKey")
        return self.objects[key]


def memory_store(client: MemoryClient | None = None, team: str = "blue") -> tuple[Workspace, MemoryClient]:
    """A new store as a team's workspace, and its client; with a client, another process's on the same objects."""
    client = client or MemoryClient()
    store = Store("s3://memory/kitae", StoreSettings(endpoint_url="http://memory.invalid", patience_s=0))
    store._bucket = replace(store._bucket, clock=client.clock)
    store._bucket._clients[os.getpid()] = client  # type: ignore[assignment]  # the operations that are used
    return Workspace(store, team), client


def _error(status: int, code: str) -> ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "memory")
