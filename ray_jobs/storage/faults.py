"""What a failed request means: from boto's many exceptions to one fault, and from a fault to our error.

Pure: no request is made here. botocore is imported only once a request has failed, so that importing this is quick.
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
    StoreLacks,
    StoreUnreachable,
)


class Kind(Enum):
    NO_ANSWER = "nothing answers; it may later"
    FAILING = "the store answers that it cannot now; it may later"
    FULL = "the store has no room"
    DAMAGED = "the bytes changed on the way"
    NOT_FOUND = "no such key"
    NO_BUCKET = "no such bucket"
    NO_UPLOAD = "no such multipart upload"
    CONFLICT = "the condition did not hold"
    DENIED = "credentials refused"
    UNSUPPORTED = "the store does not do this"
    WRONG_ADDRESS = "what answers is not this store"
    REFUSED = "refused for another reason"


@dataclass(frozen=True)
class Fault:
    kind: Kind
    text: str
    """What the store or the network said, without credentials."""


_BY_CODE = {
    "NoSuchBucket": Kind.NO_BUCKET,
    "NoSuchUpload": Kind.NO_UPLOAD,
    "NoSuchKey": Kind.NOT_FOUND,
    "PreconditionFailed": Kind.CONFLICT,
    # AWS: another conditional write to the key is under way; it asks for a retry, which then answers 412 or succeeds.
    "ConditionalRequestConflict": Kind.FAILING,
    "OperationAborted": Kind.FAILING,
    "RequestTimeout": Kind.FAILING,
    "SlowDown": Kind.FAILING,
    "BadDigest": Kind.DAMAGED,
    "XAmzContentSHA256Mismatch": Kind.DAMAGED,
    "XAmzContentChecksumMismatch": Kind.DAMAGED,
    "IncompleteBody": Kind.FAILING,
    "InsufficientStorage": Kind.FULL,
    "QuotaExceeded": Kind.FULL,
    "XMinioStorageFull": Kind.FULL,
    "NotImplemented": Kind.UNSUPPORTED,
    "XNotImplemented": Kind.UNSUPPORTED,
    "MethodNotAllowed": Kind.UNSUPPORTED,
    "PermanentRedirect": Kind.WRONG_ADDRESS,
    "AuthorizationHeaderMalformed": Kind.WRONG_ADDRESS,
    "IllegalLocationConstraintException": Kind.WRONG_ADDRESS,
    "ExpiredToken": Kind.DENIED,
    "InvalidToken": Kind.DENIED,
}
_BY_STATUS = {
    301: Kind.WRONG_ADDRESS,
    307: Kind.WRONG_ADDRESS,
    401: Kind.DENIED,
    403: Kind.DENIED,
    404: Kind.NOT_FOUND,
    405: Kind.UNSUPPORTED,
    408: Kind.FAILING,
    412: Kind.CONFLICT,
    429: Kind.FAILING,
    501: Kind.UNSUPPORTED,
    507: Kind.FULL,
}
AGAIN = frozenset({Kind.NO_ANSWER, Kind.FAILING})
"""Worth another try."""


def classify(error: Exception) -> Fault | None:
    """The fault behind an exception of a request; None where it is not the store's (a mistake of ours)."""
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    if isinstance(error, boto.ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = str(error.response.get("Error", {}).get("Code", ""))
        said = str(error.response.get("Error", {}).get("Message", "")).strip()[:300]
        kind = _BY_CODE.get(code) or _BY_STATUS.get(status) or (Kind.FAILING if status >= 500 else Kind.REFUSED)
        return Fault(kind, f"{status} {code}: {said}" if code != str(status) else f"{status} {said}")
    if isinstance(error, boto.SSLError):
        return Fault(Kind.WRONG_ADDRESS, f"TLS failed ({error.kwargs.get('error')})")
    if isinstance(error, boto.FlexibleChecksumError):
        return Fault(Kind.DAMAGED, "the checksum sent along does not match the bytes that arrived")
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return Fault(Kind.DENIED, "no credentials found")
    if isinstance(error, boto.ProfileNotFound):
        return Fault(Kind.DENIED, _first_line(error))
    if isinstance(error, ResponseParserError):
        return Fault(Kind.WRONG_ADDRESS, "the answer is not S3's XML")
    # Refused, reset, timed out, or cut off in the middle of a body.
    if isinstance(error, boto.ConnectionError | boto.HTTPClientError | boto.IncompleteReadError):
        return Fault(Kind.NO_ANSWER, _first_line(error))
    if isinstance(error, ConnectionError | TimeoutError):
        return Fault(Kind.NO_ANSWER, _first_line(error))
    if type(error).__module__.startswith("urllib3."):
        return Fault(Kind.NO_ANSWER, _first_line(error))
    return None


def as_error(fault: Fault, *, action: str, where: str, waited_s: float) -> StoreError:
    """Our error for a fault. `action` is such as "put models/a/1/manifest.json", `where` names bucket and endpoint."""
    failed = f"{action} failed at {where}: {fault.text}"
    match fault.kind:
        case Kind.NO_ANSWER:
            return StoreUnreachable(
                f"{failed}; tried for {waited_s:.0f} s. Check that the store runs and that AWS_ENDPOINT_URL is its "
                "address; KITAE_STORE_PATIENCE_S sets how many seconds a job waits for it"
            )
        case Kind.FAILING:
            return StoreUnreachable(
                f"{failed}; tried for {waited_s:.0f} s. The store runs and keeps failing: its disk may be full, which "
                "few stores say; its log does (the embedded one's is .kitae/logs/store.log)"
            )
        case Kind.FULL:
            return StoreError(f"{failed}. The store has no room: delete versions that are not needed, or give it more")
        case Kind.WRONG_ADDRESS:
            return StoreUnreachable(
                f"{failed}. AWS_ENDPOINT_URL or AWS_REGION is not this store's (a private certificate authority goes "
                "into AWS_CA_BUNDLE)"
            )
        case Kind.DENIED:
            return StoreAccessDenied(
                f"{failed}. Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, what they may do with the bucket, and "
                "this machine's clock"
            )
        case Kind.NO_BUCKET:
            return StoreError(f"{failed}. Create the bucket, or name another in KITAE_STORE")
        case Kind.NOT_FOUND:
            return ObjectNotFound(f"{failed}. No such key")
        case Kind.CONFLICT:
            return ConflictError(f"{failed}. Somebody else wrote it first")
        case Kind.DAMAGED:
            return CorruptObject(f"{failed}. The bytes were damaged on the way, several times; check network and disk")
        case Kind.UNSUPPORTED:
            return StoreLacks(f"{failed}. This store does not do that")
        case Kind.NO_UPLOAD | Kind.REFUSED:
            return StoreError(failed)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
