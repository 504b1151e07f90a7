"""The probe: tries every feature that Kitae requires on the store itself.

Owns the list of those features. "S3-compatible" guarantees none of them, and a store that silently ignores a condition
or a checksum loses races or data, so each is tried with a request that must be refused.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from ray_jobs.errors import ConflictError, CorruptObject, StoreAccessDenied, StoreError, StoreLacks, StoreUnreachable
from ray_jobs.storage.bucket import Bucket
from ray_jobs.storage.manifest import ObjectInfo

_WRONG_SHA256 = bytes(32)
_RACERS = 4

Check = Callable[[Bucket, str], bool]
"""Tries one feature under its own key; False, or an error, if the store lacks it."""


def probe(bucket: Bucket, prefix: str) -> None:
    """Try every feature. Raises StoreUnreachable, StoreAccessDenied, or StoreLacks naming every missing feature."""
    bucket.ensure()
    folder = f"{prefix}.probe/{uuid.uuid4().hex}/"
    lacking = []
    try:
        for number, (feature, why, check) in enumerate(CHECKS):
            try:
                found = check(bucket, f"{folder}{number}")
                reason = ""
            except (StoreUnreachable, StoreAccessDenied):
                raise
            except StoreError as error:
                found, reason = False, f" ({error.message})"
            if not found:
                lacking.append(f"{feature}: {why}{reason}")
    finally:
        _clean_up(bucket, folder)
    if lacking:
        raise StoreLacks(
            f"the store {bucket.where} lacks {len(lacking)} of the {len(CHECKS)} features Kitae needs; upgrade it or "
            "use another (AWS S3 and SeaweedFS 4.48 have all of them)",
            details=lacking,
        )


def _clean_up(bucket: Bucket, folder: str) -> None:
    quick = bucket.patient_for(0)
    # Best effort: a few bytes may stay.
    with suppress(StoreError):
        for key, upload_id in quick.open_uploads(folder):
            quick.abort_upload(key, upload_id)
    with suppress(StoreError):
        for info in list(quick.objects(folder)):
            quick.delete(info.key)


def _round_trip(bucket: Bucket, key: str) -> bool:
    etag = bucket.put(key, b"kitae", metadata={"note": "kept"})
    head = bucket.head(key)
    return bucket.get(key) == (b"kitae", etag) and head.size_bytes == 5 and head.metadata.get("note") == "kept"


def _listing(bucket: Bucket, key: str) -> bool:
    etag = bucket.put(f"{key}/a/b", b"kitae")
    listed = list(bucket.objects(f"{key}/")) == [ObjectInfo(f"{key}/a/b", 5, etag)]
    folded = list(bucket.folders(f"{key}/")) == [f"{key}/a/"]
    bucket.delete(f"{key}/a/b")
    return listed and folded and not list(bucket.objects(f"{key}/"))


def _range(bucket: Bucket, key: str) -> bool:
    etag = bucket.put(key, b"0123456789")
    return bucket.get_range(key, 3, 4, etag=etag) == b"3456"


def _checksum(bucket: Bucket, key: str) -> bool:
    return _refused(CorruptObject, lambda: bucket.put(key, b"kitae", sha256=_WRONG_SHA256))


def _if_absent(bucket: Bucket, key: str, write: Callable[..., str] = Bucket.put) -> bool:
    write(bucket, key, b"first", if_absent=True)
    return _refused(ConflictError, lambda: write(bucket, key, b"second", if_absent=True))


def _if_match(bucket: Bucket, key: str, write: Callable[..., str] = Bucket.put) -> bool:
    old = write(bucket, key, b"first")
    write(bucket, key, b"second", if_match=old)
    return _refused(ConflictError, lambda: write(bucket, key, b"third", if_match=old))


def _race(bucket: Bucket, key: str) -> bool:
    start = threading.Barrier(_RACERS)

    def claim(number: int) -> bool:
        start.wait()
        return not _refused(ConflictError, lambda: bucket.put(key, b"%d" % number, if_absent=True))

    with ThreadPoolExecutor(_RACERS) as pool:
        return sum(pool.map(claim, range(_RACERS))) == 1


def _multipart(bucket: Bucket, key: str) -> bool:
    _upload(bucket, key, b"kitae")
    return bucket.get(key)[0] == b"kitae"


def _part_checksum(bucket: Bucket, key: str) -> bool:
    upload_id, _ = bucket.begin_upload(key, metadata={})
    return _refused(CorruptObject, lambda: bucket.upload_part(key, upload_id, 1, b"kitae", sha256=_WRONG_SHA256))


def _upload(bucket: Bucket, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
    upload_id, mark = bucket.begin_upload(key, metadata={})
    part = bucket.upload_part(key, upload_id, 1, data)
    return bucket.finish_upload(key, upload_id, mark, [part], if_absent=if_absent, if_match=if_match)


def _refused(how: type[StoreError], request: Callable[[], object]) -> bool:
    try:
        request()
    except how:
        return True
    return False


_OVERWRITTEN = "a dead job could overwrite a live one"
CHECKS: tuple[tuple[str, str, Check], ...] = (
    ("reading back what was written, with its metadata", "nothing works without it", _round_trip),
    ("listing what was just written, and not what was deleted", "stages would run twice", _listing),
    ("range reads", "large files could not be read in parallel", _range),
    ("checksums (x-amz-checksum-sha256)", "it keeps bytes damaged in transit", _checksum),
    ("conditional writes (If-None-Match: *)", "two jobs could claim the same version", _if_absent),
    ("conditional writes (If-Match)", "one writer's update could undo another's", _if_match),
    ("conditional writes that hold in a race", "two jobs could claim the same version at once", _race),
    ("multipart uploads", "large files could not be written", _multipart),
    ("checksums of parts", "it keeps parts damaged in transit", _part_checksum),
    ("conditional multipart uploads (If-None-Match: *)", _OVERWRITTEN, partial(_if_absent, write=_upload)),
    ("conditional multipart uploads (If-Match)", _OVERWRITTEN, partial(_if_match, write=_upload)),
)
