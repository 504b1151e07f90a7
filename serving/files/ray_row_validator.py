"""Validates rows in a Ray task, outside the process that answers requests.

Row files are untrusted: a file that exhausts the memory of the validating process must not stop the endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_jobs.data import row_validation
from ray_jobs.data.report import RowReport
from ray_jobs.errors import DataError, KitaeError
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.storage import Store


def check_rows_in_ray(
    store: Store,
    key: str,
    filename: str,
    task: str | None,
    base: CatalogueEntry | None,
    columns: Mapping[str, str] | None,
) -> RowReport:
    """Validate rows in a worker of this process's Ray cluster; see `row_validation.check_rows`."""
    import ray
    from ray.exceptions import GetTimeoutError, RayTaskError, WorkerCrashedError

    remote: Any = ray.remote(row_validation.check_rows)
    answer = remote.options(num_cpus=0.01, max_retries=1).remote(store, key, filename, task, base, columns)
    try:
        report: RowReport = ray.get(answer, timeout=600.0)
    except RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, KitaeError | OSError) else error from error
    except (WorkerCrashedError, GetTimeoutError) as error:
        raise DataError(f"{filename} could not be validated: it needs too much memory or time") from error
    return report
