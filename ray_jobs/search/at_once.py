"""Jobs that run at the same time in one process, each with its share of the process's compute threads.

For a CPU: two threads that work on one small pass mostly wait for each other; with a pass each they do not. Does not
know what is computed. A job must not write what another reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


class AtOnce:
    """As many threads as jobs can run at the same time; with one, they run in the caller's."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, "at-once") if threads > 1 else None

    def run(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """What each job answers, when all have ended. Raises the error of the first, in their order, that has one."""
        import torch

        if self._pool is None or len(jobs) < 2:
            return [job() for job in jobs]
        whole = torch.get_num_threads()
        each = max(1, whole // min(self.threads, len(jobs)))

        def one(job: Callable[[], T]) -> T:
            # In front of each job: OpenMP keeps the number a thread, MKL only one for the process.
            torch.set_num_threads(each)
            return job()

        try:
            futures = [self._pool.submit(one, job) for job in jobs]
            wait(futures)
        finally:
            torch.set_num_threads(whole)
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the threads, when what they do has ended."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
