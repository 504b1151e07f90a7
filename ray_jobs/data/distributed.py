"""Work over batches of rows from files, in this process or on a Ray cluster: the same batches in the same order.

On Ray Data each file is read by one task, and its batches are spread over the cluster's CPUs; blocks in flight are
bounded. Knows no row.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ray_jobs.errors import KitaeError

if TYPE_CHECKING:
    import pyarrow as pa

F = TypeVar("F")
B = TypeVar("B")
T = TypeVar("T")

SMALL_BYTES = 16 * 2**20
"""Files with no more bytes together stay in the process: the start of Ray Data's tasks takes longer than the work."""
_READ_CPUS, _WORK_CPUS = 0.25, 0.75
"""CPUs of a task. Reading waits for the work on its batches most of the time; two different requests also keep Ray Data
from fusing both into one task a file, which would leave the batches of a large file to one process."""
_BLOCK_BYTES = 2 * 2**20
_IN_FLIGHT_BYTES = 384 * 2**20
"""Most memory of the blocks between tasks."""
_MOST_READ_TASKS = 200


def is_worthwhile(size_bytes: int, *, local: bool) -> bool:
    """Whether files of this size together are worked on by Ray Data. `local`: some are on this machine alone."""
    ray = sys.modules.get("ray")
    if size_bytes <= SMALL_BYTES or ray is None or not ray.is_initialized():
        return False
    return not local or sum(node["Alive"] for node in ray.nodes()) == 1


def batches_of(
    files: Sequence[F], read: Callable[[F], Iterator[B]], work: Callable[[B], T], *, distributed: bool
) -> Iterator[T]:
    """`work` of each batch that `read` yields for each file, in order.

    `distributed`: on the Ray cluster that this process has joined; `files`, `read` and `work` are pickled. Raises what
    they raise.
    """
    if distributed:
        yield from _on_ray(files, read, work)
    else:
        for file in files:
            yield from map(work, read(file))


@dataclass(frozen=True)
class _Failed:
    """An error of a task, which Ray would wrap."""

    error: KitaeError


def _on_ray(files: Sequence[F], read: Callable[[F], Iterator[B]], work: Callable[[B], T]) -> Iterator[T]:
    import ray

    def read_file(table: pa.Table) -> Iterator[pa.Table]:
        for file in _values(table):
            try:
                for batch in read(file):
                    yield _table(batch)
            except KitaeError as error:
                yield _table(_Failed(error))

    def worked(table: pa.Table) -> Iterator[pa.Table]:
        for batch in _values(table):
            try:
                yield _table(batch if isinstance(batch, _Failed) else work(batch))
            except KitaeError as error:
                yield _table(_Failed(error))

    named = ray.data.from_items(
        [{"value": pickle.dumps(file)} for file in files], override_num_blocks=min(len(files), _MOST_READ_TASKS)
    )
    context = named.context
    context.enable_progress_bars = False
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        object_store_memory=_IN_FLIGHT_BYTES
    )
    done = named.map_batches(read_file, batch_size=1, batch_format="pyarrow", num_cpus=_READ_CPUS).map_batches(
        worked, batch_size=1, batch_format="pyarrow", num_cpus=_WORK_CPUS
    )
    for table in done.iter_batches(batch_size=None, batch_format="pyarrow"):
        for found in _values(table):
            if isinstance(found, _Failed):
                raise found.error
            yield found


def _table(value: object) -> pa.Table:
    import pyarrow as pa

    return pa.table({"value": pa.array([pickle.dumps(value, pickle.HIGHEST_PROTOCOL)], pa.large_binary())})


def _values(table: pa.Table) -> Iterator[Any]:
    """The objects of a table, from processes of this job alone."""
    for value in table.column("value"):
        yield pickle.loads(value.as_buffer())
