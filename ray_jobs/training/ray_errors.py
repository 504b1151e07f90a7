"""Converts Ray's errors to Kitae's, by the class of the wrapped error. Does not call Ray."""

from __future__ import annotations

from collections.abc import Iterator

from ray_jobs.errors import KitaeError, MachineError, TrainingError
from ray_jobs.training.machine_errors import is_disk_full

_WRAPPED = ("cause", "health_check_failure", "controller_failure")
"""Attributes in which Ray's errors carry the error they wrap."""


def explain(error: Exception, otherwise: str) -> Exception:
    """The KitaeError that an error of Ray's wraps, or one that explains it: for an unknown error, `otherwise`."""
    from ray.exceptions import OutOfMemoryError, RayTaskError

    causes = list(_causes(error))
    for inner in causes:
        # Ray makes its wrapper an instance of the class it wraps, with the remote traceback as its text.
        if isinstance(inner, KitaeError) and not isinstance(inner, RayTaskError):
            return inner
    if any(isinstance(inner, OutOfMemoryError | MemoryError) for inner in causes):
        return MachineError(
            "a worker was killed because its machine ran out of memory: lower training.micro_batch_tokens or "
            "compute.workers, raise compute.zero_stage, or use a machine with more memory"
        )
    if any(is_disk_full(inner) for inner in causes):
        return MachineError("a worker's disk is full: make room there, or set TMPDIR and KITAE_CACHE to a larger disk")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return TrainingError(f"{otherwise}: {lines[-1] if lines else repr(error)}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it wraps: Ray's task errors, Ray Train's errors by worker, and Python's chains."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        at = pending.pop(0)
        if at is None or id(at) in seen:
            continue
        seen.add(id(at))
        yield at
        pending += [at.__cause__, at.__context__]
        pending += [inner for name in _WRAPPED if isinstance(inner := getattr(at, name, None), BaseException)]
        failures = getattr(at, "worker_failures", None)
        pending += list(failures.values()) if isinstance(failures, dict) else []
