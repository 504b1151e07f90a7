"""SIGTERM of a runner: its training writes a checkpoint before it ends.

Owns SIGTERM while an attempt runs. Ray sends it to a stopped job (`ray job stop`; KubeRay does so when a RayJob is
deleted) and kills the process after RAY_JOB_STOP_WAIT_TIME_S, 3 by default. Where that is less than `SHORTEST_WAIT_S`
plus a margin, or at a second SIGTERM, the runner ends at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from ray_jobs.errors import KitaeError
from ray_jobs.jobs import Job, checkpoint_request

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
SHORTEST_WAIT_S = 15.0
"""In less time a checkpoint cannot be relied on to be written."""
_MARGIN_S = 10.0
"""Time for the work after the checkpoint is committed."""


@contextlib.contextmanager
def checkpoint_on_sigterm(job: Job, *, pauses: bool) -> Iterator[None]:
    """Within this block, SIGTERM writes a checkpoint of the job's training and an event, then ends the process.

    `pauses`: the job is then paused, since no launcher will restart it.
    """
    wait_s = _stop_wait_s() - _MARGIN_S
    if wait_s < SHORTEST_WAIT_S or threading.current_thread() is not threading.main_thread():
        yield
        return
    received, left = threading.Event(), threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if received.is_set():
            sys.exit(128 + number)
        received.set()

    def end() -> None:
        received.wait()
        if left.is_set():
            return
        with contextlib.suppress(KitaeError):  # the process ends in any case; committed checkpoints stay
            _save(job, wait_s, pauses=pauses)
        if not left.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, handle)
    threading.Thread(target=end, daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        left.set()
        received.set()


def _save(job: Job, wait_s: float, *, pauses: bool) -> None:
    job.check(fresh=True)  # an attempt that must stop anyway has nothing to save
    request = checkpoint_request.request(job.store, job.id)
    answer, step = checkpoint_request.wait(job.store, job.id, request.number, wait_s)
    outcome = checkpoint_request.describe(answer, step, wait_s)
    job.event("warning", f"SIGTERM: {outcome}; `kitae resume {job.id}` resumes the job")
    if pauses:
        job.pause()


def _stop_wait_s() -> float:
    try:
        return float(os.environ.get(STOP_WAIT, "3"))
    except ValueError:
        return 0.0
