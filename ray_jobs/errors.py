"""Every error that Kitae raises, the hint about an unknown name, and text of others in a message.

A message gives the value, the limit and the fix. Several findings are reported in one error, not one per run.

KitaeError
├── SpecError            the job file is wrong (unknown field, impossible combination)
├── DataError            the rows are wrong (malformed, empty split, nothing supervised)
├── ModelError           the base model is missing, or of the wrong architecture for the task
├── StoreError           the object store failed
│   ├── StoreUnreachable     no answer, or the wrong address
│   ├── StoreAccessDenied    wrong or missing credentials
│   ├── StoreFull            the store has no room
│   ├── StoreLacks           the store lacks a required feature (conditional writes, checksums)
│   ├── ObjectNotFound       no such key
│   ├── ConflictError        a conditional write lost to another writer
│   └── CorruptObject        the bytes differ from those written
├── RegistryError        no such model, version or alias
├── MachineError         this machine cannot do it (no GPU for qlora, port in use, out of memory)
│   ├── DiskFull             a disk of this machine has no room
│   └── ClusterError         the Kubernetes API failed or refused a request
│       ├── ClusterUnreachable   no answer, no address, or rejected credentials
│       ├── Forbidden            the credentials lack the permission
│       ├── NoSuchKind           an operator is not installed, or lacks this API version
│       ├── AlreadyExists        an object with this name exists
│       ├── ObjectChanged        another client changed the object
│       ├── ObjectRefused        the object is invalid, or refused by a webhook or quota
│       ├── RequestTooLarge      larger than every quota of the team
│       ├── UnknownQueue         the team has no queue, or the queue does not exist
│       ├── PriorityTooHigh      above the highest priority that the team may use
│       └── Expired              a watch or a page continues from an expired resource version
├── TrainingError        training stopped
│   ├── WorkerLost           by accident: a worker could not start, or its process or machine died
│   └── LossNotFinite        the training or held-out loss is NaN or infinite
├── GateError            the tuned model failed a gate (did not beat its base, served differs from trained)
├── ServingError         the endpoint refused or did not start
├── RemoteError          an address that an import reads from or writes to does not answer, or refuses
├── GradingError         a grader cannot judge an answer (a value is too long)
│   ├── UnknownVariable      a template names a value that does not exist
│   ├── SampleNotJson        a template names a part of an answer that is not JSON
│   ├── FormulaError         calculate_output is not a formula, or has no value
│   ├── ModelGraderFailed    the grader's model did not answer
│   ├── ModelGraderRefused   the grader's model refused
│   └── ModelGraderUnclear   the grader's model answered with no label or score of the grader
├── BudgetError          the team's monthly budget does not cover the job, or cannot be checked
├── ApiKeyError          no such API key, or an invalid request for one
└── JobError             the job cannot do this now (unknown, cancelled, paused, superseded by a newer attempt)
    ├── JobCancelled         the job was cancelled
    ├── JobPaused            the job was paused
    └── JobSuperseded        a newer attempt of the same job runs
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Sequence


class KitaeError(Exception):
    """Base of every error that a user can cause or fix. The command line prints its text and exits with `exit_code`."""

    exit_code: int = 1

    def __init__(self, message: str, *, details: Sequence[str] = ()) -> None:
        """`details` are single findings (a bad row, field or file), printed one per line below `message`."""
        super().__init__(message)
        self.message = message
        self.details = tuple(details)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  - {detail}" for detail in self.details)])

    def __reduce__(self) -> tuple[object, ...]:
        # Ray pickles exceptions across processes; the keyword-only argument has to be kept.
        return functools.partial(type(self), details=self.details), (self.message,)


def one_line(text: str) -> str:
    """Text of others on one line of a message, without what a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in text)


def suggestion(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """The end of a message about an unknown name: up to three near names, else `otherwise`, else every known name."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3)
    near = near or [other for other in names if other.startswith(name)][:3]
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return otherwise or f"known: {', '.join(names) or 'none'}"


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


class StoreFull(StoreError):
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


class DiskFull(MachineError):
    pass


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


class PriorityTooHigh(ClusterError):
    pass


class Expired(ClusterError):
    pass


class TrainingError(KitaeError):
    exit_code = 8


class WorkerLost(TrainingError):
    pass


class LossNotFinite(TrainingError):
    pass


class GateError(KitaeError):
    exit_code = 9


class ServingError(KitaeError):
    exit_code = 10


class ApiKeyError(KitaeError):
    exit_code = 15


class BudgetError(KitaeError):
    exit_code = 16


class RemoteError(KitaeError):
    exit_code = 17

    status: int | None = None
    """HTTP status of the answer. None: there was none, or it could not be understood."""
    code: str | None = None
    """`code` of the error in the answer."""
    findings: Sequence[dict[str, object]] = ()
    """Single findings of the answer, such as each invalid row."""
    unanswered: bool = False
    """Whether the request may have been carried out without an answer."""


class GradingError(KitaeError):
    exit_code = 18


class UnknownVariable(GradingError):
    pass


class SampleNotJson(GradingError):
    pass


class FormulaError(GradingError):
    pass


class ModelGraderFailed(GradingError):
    pass


class ModelGraderRefused(GradingError):
    pass


class ModelGraderUnclear(GradingError):
    pass


class JobError(KitaeError):
    exit_code = 11


class JobCancelled(JobError):
    exit_code = 12


class JobSuperseded(JobError):
    exit_code = 13


class JobPaused(JobError):
    exit_code = 14
