"""Classes of failed requests: from boto's exceptions to a fault, and from a fault to Kitae's error.

Pure: makes no request. Imports botocore only once a request has failed, so that importing this module is quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ray_jobs.errors import (
    ConflictError,
    CorruptObject,
    ObjectNotFound,
    StoreAccessDenied,
    StoreError,
    StoreFull,
    StoreLacks,
    StoreUnreachable,
)


class FaultKind(Enum):
    """Class of a failed request: Kitae's error, and the end of its message."""

    NO_ANSWER = (
        StoreUnreachable,
        "; tried for {waited_s:.0f} s. Check that the store runs and that AWS_ENDPOINT_URL is its address; "
        "KITAE_STORE_PATIENCE_S sets how many seconds a job waits for it",
    )
    FAILING = (
        StoreUnreachable,
        "; tried for {waited_s:.0f} s. The store runs and keeps failing: its disk may be full, which few stores "
        "report; see its log (the embedded store's is .kitae/logs/store.log)",
    )
    FULL = (StoreFull, ". The store has no room: delete versions that are not needed, or give it more")
    DAMAGED = (CorruptObject, ". The bytes were damaged in transit several times; check network and disk")
    NOT_FOUND = (ObjectNotFound, ". No such key")
    NO_BUCKET = (StoreError, ". Create the bucket, or name another in KITAE_STORE")
    NO_UPLOAD = (StoreError, ". No such multipart upload")
    CONFLICT = (ConflictError, ". Another process wrote it first")
    DENIED = (
        StoreAccessDenied,
        ". Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, their permissions on the bucket, and this machine's "
        "clock",
    )
    UNSUPPORTED = (StoreLacks, ". The store does not support this")
    WRONG_ADDRESS = (
        StoreUnreachable,
        ". AWS_ENDPOINT_URL or AWS_REGION is not this store's (a private certificate authority goes into "
        "AWS_CA_BUNDLE)",
    )
    REFUSED = (StoreError, "")


@dataclass(frozen=True)
class Fault:
    kind: FaultKind
    text: str
    """Message of the store or the network, without credentials."""


_BY_CODE = {
    "NoSuchBucket": FaultKind.NO_BUCKET,
    "NoSuchUpload": FaultKind.NO_UPLOAD,
    "NoSuchKey": FaultKind.NOT_FOUND,
    "PreconditionFailed": FaultKind.CONFLICT,
    # AWS: another conditional write to the key is in progress; a retry answers 412 or succeeds.
    "ConditionalRequestConflict": FaultKind.FAILING,
    "OperationAborted": FaultKind.FAILING,
    "RequestTimeout": FaultKind.FAILING,
    "SlowDown": FaultKind.FAILING,
    "BadDigest": FaultKind.DAMAGED,
    "XAmzContentSHA256Mismatch": FaultKind.DAMAGED,
    "XAmzContentChecksumMismatch": FaultKind.DAMAGED,
    "IncompleteBody": FaultKind.FAILING,
    "InsufficientStorage": FaultKind.FULL,
    "QuotaExceeded": FaultKind.FULL,
    "XMinioStorageFull": FaultKind.FULL,
    "NotImplemented": FaultKind.UNSUPPORTED,
    "XNotImplemented": FaultKind.UNSUPPORTED,
    "MethodNotAllowed": FaultKind.UNSUPPORTED,
    "PermanentRedirect": FaultKind.WRONG_ADDRESS,
    "AuthorizationHeaderMalformed": FaultKind.WRONG_ADDRESS,
    "IllegalLocationConstraintException": FaultKind.WRONG_ADDRESS,
    "ExpiredToken": FaultKind.DENIED,
    "InvalidToken": FaultKind.DENIED,
}
_BY_STATUS = {
    301: FaultKind.WRONG_ADDRESS,
    307: FaultKind.WRONG_ADDRESS,
    401: FaultKind.DENIED,
    403: FaultKind.DENIED,
    404: FaultKind.NOT_FOUND,
    405: FaultKind.UNSUPPORTED,
    408: FaultKind.FAILING,
    412: FaultKind.CONFLICT,
    429: FaultKind.FAILING,
    501: FaultKind.UNSUPPORTED,
    507: FaultKind.FULL,
}
RETRIED = frozenset({FaultKind.NO_ANSWER, FaultKind.FAILING})
"""Faults after which a request is retried."""


def classify(error: Exception) -> Fault | None:
    """The fault of an exception raised by a request; None for one that is not the store's (a bug)."""
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    if isinstance(error, boto.ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = str(error.response.get("Error", {}).get("Code", ""))
        text = str(error.response.get("Error", {}).get("Message", "")).strip()[:300]
        kind = (
            _BY_CODE.get(code) or _BY_STATUS.get(status) or (FaultKind.FAILING if status >= 500 else FaultKind.REFUSED)
        )
        return Fault(kind, f"{status} {code}: {text}" if code != str(status) else f"{status} {text}")
    if isinstance(error, boto.SSLError):
        return Fault(FaultKind.WRONG_ADDRESS, f"TLS failed ({error.kwargs.get('error')})")
    if isinstance(error, boto.FlexibleChecksumError):
        return Fault(FaultKind.DAMAGED, "the checksum does not match the received bytes")
    credentials = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)
    if isinstance(error, (*credentials, boto.ProfileNotFound)):
        return Fault(FaultKind.DENIED, _first_line(error))
    if isinstance(error, ResponseParserError):
        return Fault(FaultKind.WRONG_ADDRESS, "the answer is not S3's XML")
    # Refused, reset, timed out, or interrupted within a body.
    lost = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, ConnectionError, TimeoutError)
    if isinstance(error, lost) or type(error).__module__.startswith("urllib3."):
        return Fault(FaultKind.NO_ANSWER, _first_line(error))
    return None


def as_error(fault: Fault, *, action: str, where: str, waited_s: float) -> StoreError:
    """Kitae's error for a fault. `action` is, for example, "put models/a/1/manifest.json"; `where` names bucket and
    endpoint."""
    kind: type[StoreError]
    kind, ending = fault.kind.value
    return kind(f"{action} failed at {where}: {fault.text}{ending.format(waited_s=waited_s)}")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
