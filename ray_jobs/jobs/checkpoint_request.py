"""A checkpoint request: a job's machines are about to be taken away, and its training writes a checkpoint.

Owns `jobs/{id}/notice.json`. A pod's preStop hook requests a checkpoint and waits; the training sees the request within
seconds, writes a checkpoint after its current step, answers once that is committed, and continues until it is ended.
Does not know who requests, nor how a checkpoint is written. Several pods of one job ask at about the same time: they
share one request and one checkpoint.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import BaseModel

from ray_jobs import jobs
from ray_jobs.storage import Workspace
from ray_jobs.storage.documents import Documents

ACKNOWLEDGED_WITHIN_S = 15.0
"""A training acknowledges a request within seconds; without an answer after this time no training runs."""
STILL_GOOD_S = 10.0
"""A requested checkpoint that is no older than this serves the next request too."""
COUNTS_S = 900.0
"""A failure within this time after a request is put down to the loss of the machines."""
GRACE_S = 130.0
"""After a request, an attempt whose machines go may still write events for this long; a later event shows that it
runs."""
_POLL_S = 0.5

RequestAnswer = Literal["committed", "not running", "not training", "too late"]


class CheckpointRequest(BaseModel, frozen=True):
    """`notice.json`. Times are Unix seconds."""

    number: int
    """From 1, over all attempts."""
    attempt: int
    """The attempt that is to write a checkpoint."""
    at: float
    """When it was requested."""
    heard_at: float | None = None
    """When the training acknowledged it."""
    step: int | None = None
    """Step of the checkpoint that was committed for it."""
    committed_at: float | None = None


_REQUESTS = Documents("jobs/", CheckpointRequest, "a checkpoint request")


def current(store: Workspace, job_id: str) -> CheckpointRequest | None:
    """The newest request. None: there never was one."""
    return _REQUESTS.read(store, f"{job_id}/notice")


def request(store: Workspace, job_id: str) -> CheckpointRequest:
    """Request a checkpoint, or join a request that is still open. Raises JobError if the job is unknown."""
    attempt = jobs.load(store, job_id).attempt
    now = store.now_s()

    def change(last: CheckpointRequest | None) -> CheckpointRequest:
        if last is not None and last.attempt == attempt and _covers(last, now):
            return last
        return CheckpointRequest(number=1 if last is None else last.number + 1, attempt=attempt, at=now)

    return _REQUESTS.update(store, f"{job_id}/notice", change)


def acknowledge(store: Workspace, job_id: str, number: int) -> None:
    """Record that the training has seen the request and is about to write."""
    _change(store, job_id, number, heard_at=store.now_s())


def answer(store: Workspace, job_id: str, number: int, step: int) -> None:
    """Record that the checkpoint of this step is committed."""
    _change(store, job_id, number, step=step, committed_at=store.now_s())


def wait(store: Workspace, job_id: str, number: int, wait_s: float) -> tuple[RequestAnswer, int | None]:
    """Wait until the request is answered or cannot be: the outcome, and the step of the checkpoint."""
    began = time.monotonic()
    while True:
        found = current(store, job_id)
        if found is not None and found.number >= number and found.step is not None:
            return "committed", found.step
        if jobs.load(store, job_id).status != "running":
            return "not running", None
        waited_s = time.monotonic() - began
        if waited_s >= wait_s:
            return "too late", None
        if waited_s >= ACKNOWLEDGED_WITHIN_S and (found is None or found.heard_at is None):
            return "not training", None
        time.sleep(min(_POLL_S, wait_s - waited_s))


def describe(answer: RequestAnswer, step: int | None, wait_s: float) -> str:
    """The outcome of a request as text. Pure."""
    texts = {"committed": f"checkpoint of step {step} committed", "too late": f"no checkpoint within {wait_s:g} s"}
    return texts.get(answer, answer)


def was_requested(store: Workspace, job_id: str, attempt: int) -> bool:
    """True if a checkpoint of this attempt was requested within the last `COUNTS_S` seconds."""
    found = current(store, job_id)
    return found is not None and found.attempt == attempt and store.now_s() - found.at <= COUNTS_S


def is_interrupted(found: CheckpointRequest | None, attempt: int, last_event_at: float) -> bool:
    """True if the machines of the attempt are going or gone, e.g. after a preemption. Pure. `last_event_at`: Unix
    seconds of the job's newest event."""
    return found is not None and found.attempt == attempt and last_event_at <= found.at + GRACE_S


def _covers(last: CheckpointRequest, now_s: float) -> bool:
    """True if the checkpoint for this request also serves another one made now. Pure."""
    if last.committed_at is not None:
        return now_s - last.committed_at <= STILL_GOOD_S
    return now_s - last.at <= COUNTS_S


def _change(store: Workspace, job_id: str, number: int, **facts: Any) -> None:
    def change(old: CheckpointRequest) -> CheckpointRequest:
        return old.model_copy(update=facts) if old.number == number else old  # a later request has its own answer

    _REQUESTS.change(store, f"{job_id}/notice", change)
