"""Who looks at the rows of a file: a Ray task, away from the process that answers requests.

A file of rows is somebody's own making: whatever it does to the process that reads it, the endpoint goes on.
"""

from __future__ import annotations

from typing import Any

from ray_jobs.data import row_validation
from ray_jobs.data.report import RowReport
from ray_jobs.errors import DataError, KitaeError
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.storage import Store
from serving.files.stored_files import RowCheck

_CPUS = 0.01
_TIMEOUT_S = 600.0


def in_process(store: Store) -> RowCheck:
    """In this process."""

    def check(key: str, filename: str, task: str | None, base: CatalogueEntry | None) -> RowReport:
        return row_validation.check_rows(store, key, filename, task, base)

    return check


def on_ray(store: Store) -> RowCheck:
    """In a worker of the Ray cluster that this process belongs to."""

    def check(key: str, filename: str, task: str | None, base: CatalogueEntry | None) -> RowReport:
        import ray
        from ray.exceptions import GetTimeoutError, RayTaskError, WorkerCrashedError

        remote: Any = ray.remote(row_validation.check_rows)
        answer = remote.options(num_cpus=_CPUS, max_retries=1).remote(store, key, filename, task, base)
        try:
            report: RowReport = ray.get(answer, timeout=_TIMEOUT_S)
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, KitaeError) else error from error
        except (WorkerCrashedError, GetTimeoutError) as error:
            raise DataError(f"{filename} could not be read: looking at it took too much memory or time") from error
        return report

    return check
