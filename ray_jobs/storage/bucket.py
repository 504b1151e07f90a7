"""Single requests to one bucket: signed, checksummed, retried, their failures translated into Kitae's errors.

Keys are whole keys. Knows no prefixes and no trees. Safe to use from many threads.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from ray_jobs.errors import CorruptObject, ObjectNotFound, StoreAccessDenied, StoreError, StoreLacks, StoreUnreachable
from ray_jobs.storage.breaker import Breaker
from ray_jobs.storage.clock import StoreClock
from ray_jobs.storage.faults import RETRIED, FaultKind, as_error, classify
from ray_jobs.storage.manifest import ObjectInfo

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CopySourceTypeDef, ListObjectsV2OutputTypeDef

T = TypeVar("T")

SHA256_META = "sha256"
_WRITE_META = "kitae-write"
_MAX_DELAY_S = 3.0
_DAMAGED_TRIES = 3
_FAST_S = 2.0
_FAST_SILENCE_S = 10.0


@dataclass(frozen=True)
class StoreSettings:
    """Address and credentials of a store. Credentials of None: boto's own chain (a service account's role, an instance
    profile)."""

    endpoint_url: str
    region: str = "us-east-1"
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    patience_s: float = 60.0
    """Seconds for which a request is retried while the store fails or does not answer."""
    silence_s: float = 60.0
    """Seconds without a byte after which a request has failed."""
    parallel: int = field(default_factory=lambda: min(32, max(8, 2 * (os.cpu_count() or 1))))
    """Concurrent requests of a transfer; each holds one part in memory."""


@dataclass(frozen=True, eq=False)
class Bucket:
    """One bucket of one store. Safe to share between threads; creates its client on first use.

    A bucket made of another by `replace` shares its client.
    """

    name: str
    settings: StoreSettings
    stop: threading.Event = field(default_factory=threading.Event)
    """Ends the waits between retries."""
    breaker: Breaker | None = None
    """Fails requests at once while the store does not answer. None: each waits for `patience_s`."""
    clock: StoreClock = field(default_factory=StoreClock)
    """Learns the store's time from every answer."""
    _clients: dict[int, S3Client] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def where(self) -> str:
        return f"s3://{self.name} ({self.settings.endpoint_url})"

    def patient_for(self, patience_s: float) -> Bucket:
        return replace(self, settings=replace(self.settings, patience_s=patience_s))

    def failing_fast(self) -> Bucket:
        """The bucket for a process whose callers wait: it gives up after seconds, and then at once until the store
        answers again."""
        settings = self.settings
        settings = replace(
            settings, patience_s=min(_FAST_S, settings.patience_s), silence_s=min(_FAST_SILENCE_S, settings.silence_s)
        )
        return replace(self, settings=settings, breaker=Breaker(), _clients={}, _lock=threading.Lock())

    # ---- requests -------------------------------------------------------------------------------------------------

    def now_s(self) -> float:
        """Unix seconds by the store's clock; a request if no answer has arrived yet. StoreLacks without a `Date`."""
        if self.clock.now_s() is None:
            self.find(".clock")  # any answer has the time
        found = self.clock.now_s()
        if found is None:
            raise StoreLacks(f"the answers of {self.where} have no Date header, from which Kitae takes the time")
        return found

    def get(self, key: str, *, max_bytes: int | None = None) -> tuple[bytes, str]:
        """The whole object and its etag; verifies the stored checksum, if any.

        Raises CorruptObject if it has more than `max_bytes`, without reading it.
        """
        return self._read(f"get {key}", max_bytes=max_bytes, Key=key, ChecksumMode="ENABLED")

    def get_range(self, key: str, offset: int, size_bytes: int, *, etag: str) -> bytes:
        """`size_bytes` bytes from `offset` of exactly the object with this etag. ConflictError if it was replaced."""
        wanted = f"bytes={offset}-{offset + size_bytes - 1}"
        return self._read(f"get {key} from byte {offset}", Key=key, Range=wanted, IfMatch=etag)[0]

    def head(self, key: str) -> ObjectInfo:
        """Raises ObjectNotFound."""
        found = self._try(f"head {key}", lambda: self._client().head_object(Bucket=self.name, Key=key))
        modified_s = found["LastModified"].timestamp()
        return ObjectInfo(key, found["ContentLength"], found["ETag"], found["Metadata"], modified_s)

    def find(self, key: str) -> ObjectInfo | None:
        try:
            return self.head(key)
        except ObjectNotFound:
            return None

    def put(
        self,
        key: str,
        data: bytes,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
        metadata: Mapping[str, str] | None = None,
        sha256: bytes | None = None,
    ) -> str:
        """Write one object with its SHA-256, which the store verifies; returns the etag.

        `sha256` replaces the digest that is sent (the probe sends a wrong one).
        """
        mark = uuid.uuid4().hex
        arguments: dict[str, Any] = {
            "Bucket": self.name,
            "Key": key,
            "Body": data,
            "ChecksumSHA256": _base64(sha256 or hashlib.sha256(data).digest()),
            "Metadata": {**(metadata or {}), _WRITE_META: mark},
            **_conditions(if_absent, if_match),
        }
        return self._try(
            f"put {key}",
            lambda: self._client().put_object(**arguments)["ETag"],
            settled=lambda: self._etag_of_mine(key, mark),
        )

    def copy(self, key: str, target: str) -> None:
        """Copy an object in the store itself, in parts where it is large. A target that is written already, which has
        its size and is not JSON, stays."""
        found = self.find(target)
        if found is not None and not key.endswith(".json") and found.size_bytes == self.head(key).size_bytes:
            return
        source: CopySourceTypeDef = {"Bucket": self.name, "Key": key}
        self._try(f"copy {key}", lambda: self._client().copy(source, self.name, target))

    def delete(self, key: str) -> None:
        self._try(f"delete {key}", lambda: self._client().delete_object(Bucket=self.name, Key=key))

    def objects(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix` and is greater than `after`, in key order, without metadata.

        One request per 1,000, made as the objects are consumed.
        """
        arguments = {"StartAfter": after} if after else {}
        for page in self._pages(prefix, **arguments):
            for item in page.get("Contents", []):
                modified_s = item["LastModified"].timestamp()
                yield ObjectInfo(item["Key"], item["Size"], item["ETag"], modified_s=modified_s)

    def folders(self, prefix: str) -> Iterator[str]:
        """The distinct `prefix…/` one level below."""
        for page in self._pages(prefix, Delimiter="/"):
            for item in page.get("CommonPrefixes", []):
                yield item["Prefix"]

    # ---- multipart ------------------------------------------------------------------------------------------------

    def begin_upload(self, key: str, *, metadata: Mapping[str, str]) -> tuple[str, str]:
        """(upload id, mark): an object written by this upload carries the mark."""
        mark = uuid.uuid4().hex
        upload_id = self._try(
            f"begin upload of {key}",
            lambda: self._client().create_multipart_upload(
                Bucket=self.name, Key=key, ChecksumAlgorithm="SHA256", Metadata={**metadata, _WRITE_META: mark}
            )["UploadId"],
        )
        return upload_id, mark

    def upload_part(
        self, key: str, upload_id: str, number: int, data: bytes, *, sha256: bytes | None = None
    ) -> dict[str, Any]:
        """Send part `number` (from 1) with its SHA-256; returns its entry for `finish_upload`."""
        digest = _base64(sha256 or hashlib.sha256(data).digest())
        etag = self._try(
            f"put part {number} of {key}",
            lambda: self._client().upload_part(
                Bucket=self.name, Key=key, UploadId=upload_id, PartNumber=number, Body=data, ChecksumSHA256=digest
            )["ETag"],
        )
        return {"PartNumber": number, "ETag": etag, "ChecksumSHA256": digest}

    def finish_upload(
        self,
        key: str,
        upload_id: str,
        mark: str,
        parts: list[dict[str, Any]],
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        arguments: dict[str, Any] = {
            "Bucket": self.name,
            "Key": key,
            "UploadId": upload_id,
            "MultipartUpload": {"Parts": parts},
            **_conditions(if_absent, if_match),
        }
        return self._try(
            f"finish upload of {key}",
            lambda: self._client().complete_multipart_upload(**arguments)["ETag"],
            settled=lambda: self._etag_of_mine(key, mark),
        )

    def abort_upload(self, key: str, upload_id: str) -> None:
        self._try(
            f"abort upload of {key}",
            lambda: self._client().abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload_id),
        )

    def open_uploads(self, prefix: str) -> list[tuple[str, str]]:
        """(key, upload id) of every unfinished multipart upload below `prefix`."""
        uploads = self._client().get_paginator(operation_name="list_multipart_uploads")
        pages = self._try(f"list uploads of {prefix}", lambda: list(uploads.paginate(Bucket=self.name, Prefix=prefix)))
        return [(item["Key"], item["UploadId"]) for page in pages for item in page.get("Uploads", [])]

    # ---- the bucket itself ----------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Create the bucket if it does not exist."""
        with suppress(ObjectNotFound):
            self._try(f"head bucket {self.name}", lambda: self._client().head_bucket(Bucket=self.name))
            return
        arguments: dict[str, Any] = {"Bucket": self.name}
        if self.settings.region != "us-east-1":  # AWS requires it, except in this region, where it refuses it
            arguments["CreateBucketConfiguration"] = {"LocationConstraint": self.settings.region}
        try:
            self._try(f"create bucket {self.name}", lambda: self._client().create_bucket(**arguments))
        except StoreAccessDenied as error:
            raise StoreAccessDenied(
                f"bucket {self.name!r} does not exist at {self.settings.endpoint_url}, and these credentials may not "
                "create it: create it, or name another in KITAE_STORE"
            ) from error
        except StoreError as error:
            if "BucketAlreadyOwnedByYou" not in error.message:  # another process created it
                raise

    def set_policy(self, document: str) -> None:
        """Replace the bucket's policy."""
        self._try(
            f"set the policy of {self.name}",
            lambda: self._client().put_bucket_policy(Bucket=self.name, Policy=document),
        )

    # ---- retries --------------------------------------------------------------------------------------------------

    def _try(self, action: str, request: Callable[[], T], *, settled: Callable[[], T | None] | None = None) -> T:
        """Make a request until it succeeds, is refused permanently, or has failed for `patience_s`.

        If the answer to a write is lost, the retry meets that write: `settled` checks for it and returns the result.
        """
        # A process that fails fast counts the first try's silence too.
        first_failure = None if self.breaker is None else time.monotonic()
        retried = False
        delay_s = 0.1
        damaged = 0
        if self.breaker is not None and not self.breaker.admits():
            raise StoreUnreachable(f"{action}: the store does not answer at {self.where}; it is tried every second")
        while True:
            try:
                result = request()
                if self.breaker is not None:
                    self.breaker.answered()
                return result
            except Exception as error:
                fault = classify(error)
                if fault is None:
                    raise
                now = time.monotonic()
                first_failure = first_failure if first_failure is not None else now
                waited_s = now - first_failure
                if retried and settled is not None and fault.kind in (FaultKind.CONFLICT, FaultKind.NO_UPLOAD):
                    written = settled()
                    if written is not None:
                        return written
                retried = True
                damaged += fault.kind is FaultKind.DAMAGED
                again = fault.kind in RETRIED and waited_s < self.settings.patience_s
                again = again or (fault.kind is FaultKind.DAMAGED and damaged < _DAMAGED_TRIES)
                if self.breaker is not None and fault.kind is not FaultKind.NO_ANSWER:
                    self.breaker.answered()
                if not again:
                    if self.breaker is not None and fault.kind is FaultKind.NO_ANSWER:
                        self.breaker.failed()
                    raise as_error(fault, action=action, where=self.where, waited_s=waited_s) from error
            if self.stop.wait(random.uniform(0.5, 1.0) * delay_s):
                raise StoreError(f"{action} was not finished: the transfer was stopped")
            delay_s = min(2 * delay_s, _MAX_DELAY_S)

    def _read(self, action: str, *, max_bytes: int | None = None, **arguments: Any) -> tuple[bytes, str]:
        def request() -> tuple[bytes, str]:
            response = self._client().get_object(Bucket=self.name, **arguments)
            if max_bytes is not None and (size_bytes := response["ContentLength"]) > max_bytes:
                response["Body"].close()
                raise CorruptObject(f"{action}: it has {size_bytes} bytes; such an object has at most {max_bytes}")
            return response["Body"].read(), response["ETag"]

        return self._try(action, request)

    def _etag_of_mine(self, key: str, mark: str) -> str | None:
        found = self.find(key)
        return found.etag if found is not None and found.metadata.get(_WRITE_META) == mark else None

    def _pages(self, prefix: str, **arguments: Any) -> Iterator[ListObjectsV2OutputTypeDef]:
        arguments |= {"Bucket": self.name, "Prefix": prefix}
        while True:
            page = self._try(f"list {prefix}", lambda: self._client().list_objects_v2(**arguments))
            yield page
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def _client(self) -> S3Client:
        # A boto client may be shared by threads, but not used after a fork.
        client = self._clients.get(os.getpid())
        if client is None:
            with self._lock:
                client = self._clients.get(os.getpid())
                if client is None:
                    client = make_client(self.settings)
                    client.meta.events.register("after-call.s3", self._learn_time)
                    self._clients[os.getpid()] = client
        return client

    def _learn_time(self, parsed: Mapping[str, Any], **_: Any) -> None:
        """Called by boto with every parsed answer, errors included."""
        self.clock.learn(parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date"))


def make_client(settings: StoreSettings) -> S3Client:
    import boto3
    from botocore.config import Config

    loopback = urlsplit(settings.endpoint_url).hostname in ("127.0.0.1", "localhost", "::1")
    config = Config(
        # Path style works everywhere; virtual hosts need DNS entries that a self-hosted store seldom has.
        s3={"addressing_style": "path"},
        retries={"total_max_attempts": 1, "mode": "standard"},  # `_try` retries
        connect_timeout=5,
        read_timeout=settings.silence_s,
        max_pool_connections=settings.parallel + 48,  # 40 threads serve the requests of an endpoint; an upper bound
        proxies={} if loopback else None,  # None: the environment's, which cannot reach a store on this machine
        # Requests carry an explicit SHA-256, and reads of whole objects request checksums: stores differ in other
        # checksums (CRC64NVME, trailers) and in checksums of ranges.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client(
        "s3",
        endpoint_url=settings.endpoint_url,
        region_name=settings.region,
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        aws_session_token=settings.session_token,
        config=config,
    )


def _conditions(if_absent: bool, if_match: str | None) -> dict[str, str]:
    assert not (if_absent and if_match is not None), "a key cannot be absent and match an etag"
    if if_absent:
        return {"IfNoneMatch": "*"}
    return {} if if_match is None else {"IfMatch": if_match}


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode("ascii")
