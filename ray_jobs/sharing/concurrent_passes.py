"""Passes that run at the same time in one process, each with its share of the process's compute threads.

For a CPU: two threads on one small pass mostly wait for each other; with a pass each they do not. Does not know what a
pass computes. A pass must not write what another reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


class ConcurrentPasses:
    """A thread for each concurrent pass; with one, passes run in the caller's thread."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, "pass") if threads > 1 else None

    def run(self, passes: Sequence[Callable[[], T]]) -> list[T]:
        """Results in order, when all passes have ended. Raises the first error in their order."""
        import torch

        if self._pool is None or len(passes) < 2:
            return [one() for one in passes]
        whole = torch.get_num_threads()
        each = max(1, whole // min(self.threads, len(passes)))

        def limited(one: Callable[[], T]) -> T:
            # Set before each pass: OpenMP keeps the number by thread, MKL only one for the process.
            torch.set_num_threads(each)
            return one()

        try:
            futures = [self._pool.submit(limited, one) for one in passes]
            wait(futures)
        finally:
            torch.set_num_threads(whole)
        return [future.result() for future in futures]

    def close(self) -> None:
        """Wait for running passes and end the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
