"""Every error Kitae raises on purpose.

An error's text gives the value, the limit and the fix; several findings are reported in one error, never one a run.

KitaeError
├── SpecError            the job file is wrong (unknown field, impossible combination)
├── DataError            the rows are wrong (malformed, empty split, nothing supervised)
├── ModelError           the base model is missing, or of the wrong architecture for the task
├── StoreError           the object store failed
│   ├── StoreUnreachable     no answer, or the wrong address
│   ├── StoreAccessDenied    wrong or missing credentials
│   ├── StoreLacks           the store does not do what Kitae needs (conditional writes, checksums)
│   ├── ObjectNotFound       no such key
│   ├── ConflictError        a conditional write lost: somebody else wrote first
│   └── CorruptObject        the bytes are not those that were written
├── RegistryError        no such model, version or alias
├── MachineError         this machine cannot do it (no GPU for qlora, port in use, disk full, out of memory)
│   └── ClusterError         the Kubernetes API failed, or does not do what was asked
│       ├── ClusterUnreachable   no answer, no address, or credentials that it does not take
│       ├── Forbidden            the credentials are good, and may not do this
│       ├── NoSuchKind           an operator is not installed, or serves no such version
│       ├── AlreadyExists        an object of this name is there
│       ├── ObjectChanged        somebody else wrote first
│       ├── ObjectRefused        the object is not valid, or a webhook or quota does not admit it
│       ├── RequestTooLarge      more than any quota of the team could ever admit
│       ├── UnknownQueue         a team without a queue, or a queue that is not there
│       └── Expired              a watch or a page goes on from a version that is no longer kept
├── TrainingError        training stopped (a worker was lost too often)
│   └── LossNotFinite        the training or held-out loss is NaN or infinite
├── GateError            the tuned model failed a gate (did not beat its base, served differs from trained)
├── ServingError         the endpoint refused or did not come up
├── ApiKeyError          no such API key, or none that can be made so
└── JobError             the job cannot do that now (unknown, cancelled, paused, superseded by a newer attempt)
    ├── JobCancelled         somebody asked for it to stop
    ├── JobPaused            somebody asked for it to stop for now
    └── JobSuperseded        a newer attempt of the same job runs
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class KitaeError(Exception):
    """Base of every error a user can cause or mend. The command line prints its text and exits with `exit_code`."""

    exit_code: int = 1

    def __init__(self, message: str, *, details: Sequence[str] = ()) -> None:
        """`details` are the single findings (one a bad row, field or file), printed one a line below `message`."""
        super().__init__(message)
        self.message = message
        self.details = tuple(details)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  - {detail}" for detail in self.details)])

    def __reduce__(self) -> tuple[object, ...]:
        # Ray pickles exceptions across processes; the keyword-only field has to survive.
        return (_rebuild, (type(self), self.message, self.details))


def suggestion(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """The end of a message about an unknown name: up to three near names, else `otherwise`, else every known name."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3)
    near = near or [other for other in names if other.startswith(name)][:3]
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return otherwise or f"known: {', '.join(names) or 'none'}"


def _rebuild(cls: type[KitaeError], message: str, details: tuple[str, ...]) -> KitaeError:
    return cls(message, details=details)


class SpecError(KitaeError):
    exit_code = 2


class DataError(KitaeError):
    exit_code = 3


class ModelError(KitaeError):
    exit_code = 4


class StoreError(KitaeError):
    exit_code = 5


class StoreUnreachable(StoreError):
    pass


class StoreAccessDenied(StoreError):
    pass


class StoreLacks(StoreError):
    pass


class ObjectNotFound(StoreError):
    pass


class ConflictError(StoreError):
    pass


class CorruptObject(StoreError):
    pass


class RegistryError(KitaeError):
    exit_code = 6


class MachineError(KitaeError):
    exit_code = 7


class ClusterError(MachineError):
    pass


class ClusterUnreachable(ClusterError):
    pass


class Forbidden(ClusterError):
    pass


class NoSuchKind(ClusterError):
    pass


class AlreadyExists(ClusterError):
    pass


class ObjectChanged(ClusterError):
    pass


class ObjectRefused(ClusterError):
    pass


class RequestTooLarge(ClusterError):
    pass


class UnknownQueue(ClusterError):
    pass


class Expired(ClusterError):
    pass


class TrainingError(KitaeError):
    exit_code = 8


class LossNotFinite(TrainingError):
    pass


class GateError(KitaeError):
    exit_code = 9


class ServingError(KitaeError):
    exit_code = 10


class ApiKeyError(KitaeError):
    exit_code = 15


class JobError(KitaeError):
    exit_code = 11


class JobCancelled(JobError):
    exit_code = 12


class JobSuperseded(JobError):
    exit_code = 13


class JobPaused(JobError):
    exit_code = 14
