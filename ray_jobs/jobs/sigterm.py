"""A runner that is told to end: its training writes a checkpoint first.

Owns SIGTERM while an attempt runs. Ray sends it to a job that is stopped (`ray job stop`; KubeRay does so when a RayJob
is deleted) and kills what is still there after RAY_JOB_STOP_WAIT_TIME_S, 3 by default: that is the time there is, and
where it is as short as that a runner ends at once. A second SIGTERM ends it at once, too.
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
"""In less nothing can be counted on to be written."""
_MARGIN_S = 10.0
"""For what is done once the checkpoint is there."""


@contextlib.contextmanager
def saves_first(job: Job, *, pauses: bool) -> Iterator[None]:
    """What runs in here is ended by SIGTERM with a checkpoint of its training, and an event.

    `pauses`: its job is then paused, for want of anybody who would start it again.
    """
    wait_s = _stop_wait_s() - _MARGIN_S
    if wait_s < SHORTEST_WAIT_S or threading.current_thread() is not threading.main_thread():
        yield
        return
    told, over = threading.Event(), threading.Event()

    def heed(number: int, frame: FrameType | None) -> None:
        if told.is_set():
            sys.exit(128 + number)
        told.set()

    def end() -> None:
        told.wait()
        if over.is_set():
            return
        with contextlib.suppress(KitaeError):  # it ends all the same; what is committed is there
            _save(job, wait_s, pauses=pauses)
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, heed)
    threading.Thread(target=end, daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        over.set()
        told.set()


def _save(job: Job, wait_s: float, *, pauses: bool) -> None:
    job.check(fresh=True)  # one that must stop anyway has nothing to save
    given = checkpoint_request.give(job.store, job.id)
    answer, step = checkpoint_request.wait(job.store, job.id, given.number, wait_s)
    saved = checkpoint_request.in_words(answer, step, wait_s)
    job.event("warning", f"its runner was told to end: {saved}; `kitae resume {job.id}` goes on with it")
    if pauses:
        job.pause()


def _stop_wait_s() -> float:
    try:
        return float(os.environ.get(STOP_WAIT, "3"))
    except ValueError:
        return 0.0
