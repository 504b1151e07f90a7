"""A notice that a job's machines are about to be taken away, and what its training answers.

Owns `jobs/{id}/notice.json`. Whoever takes the machines away (a pod's preStop hook) gives a notice and waits; the
training hears it within seconds, writes a checkpoint after the step it is at, answers once that is committed, and goes
on until it is ended. Does not know who gives it, nor how a checkpoint is written.

Several pods of one job are told at about the same time: they share one notice, and one checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ray_jobs import jobs
from ray_jobs.errors import ObjectNotFound
from ray_jobs.storage import Store

HEARD_WITHIN_S = 15.0
"""A training hears a notice within seconds; without a word after so long there is none."""
STILL_GOOD_S = 10.0
"""A checkpoint that was asked for and is no older is good enough for the next who ask."""
COUNTS_S = 900.0
"""What fails within so long after a notice has failed because its machines went."""
_POLL_S = 0.5

Answer = Literal["committed", "not running", "not training", "too late"]


class Notice(BaseModel):
    """See the module."""

    model_config = ConfigDict(frozen=True)

    number: int
    """From 1, over all attempts."""
    attempt: int
    """That is to write a checkpoint."""
    at: float
    """When it was given. Unix seconds, as all here."""
    heard_at: float | None = None
    """When the training heard of it."""
    step: int | None = None
    """Of the checkpoint that was committed for it."""
    committed_at: float | None = None


def current(store: Store, job_id: str) -> Notice | None:
    """The newest. None: there never was one."""
    try:
        return Notice.model_validate(store.get_json(_key(job_id)))
    except ObjectNotFound:
        return None


def give(store: Store, job_id: str, *, now_s: float | None = None) -> Notice:
    """Ask for a checkpoint now, or join whoever asks already. Raises JobError if the job is unknown."""
    attempt = jobs.load(store, job_id).attempt
    now = time.time() if now_s is None else now_s

    def change(old: dict[str, Any] | None) -> dict[str, Any]:
        last = None if old is None else Notice.model_validate(old)
        if last is not None and last.attempt == attempt and _covers(last, now):
            return last.model_dump(mode="json")
        new = Notice(number=1 if last is None else last.number + 1, attempt=attempt, at=now)
        return new.model_dump(mode="json")

    return Notice.model_validate(store.update_json(_key(job_id), change))


def hear(store: Store, job_id: str, number: int) -> None:
    """The training has heard of a notice, and is about to write."""
    _change(store, job_id, number, heard_at=time.time())


def answer(store: Store, job_id: str, number: int, step: int) -> None:
    """The checkpoint of this step is committed."""
    _change(store, job_id, number, step=step, committed_at=time.time())


def wait(
    store: Store,
    job_id: str,
    number: int,
    wait_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Answer, int | None]:
    """Until the notice is answered, or nobody will: what became of it, and the step of the checkpoint."""
    began = clock()
    while True:
        found = current(store, job_id)
        if found is not None and found.number >= number and found.step is not None:
            return "committed", found.step
        if jobs.load(store, job_id).status != "running":
            return "not running", None
        waited_s = clock() - began
        if waited_s >= wait_s:
            return "too late", None
        if waited_s >= HEARD_WITHIN_S and (found is None or found.heard_at is None):
            return "not training", None
        sleep(min(_POLL_S, wait_s - waited_s))


def in_words(answer: Answer, step: int | None, wait_s: float) -> str:
    """What became of a notice, for people. Pure."""
    told = {"committed": f"the checkpoint of step {step} is there", "too late": f"no checkpoint within {wait_s:g} s"}
    return told.get(answer, answer)


def is_given(store: Store, job_id: str, attempt: int, *, now_s: float | None = None) -> bool:
    """Whether this attempt was told, a short while ago, that its machines go."""
    found = current(store, job_id)
    now = time.time() if now_s is None else now_s
    return found is not None and found.attempt == attempt and now - found.at <= COUNTS_S


def _covers(notice: Notice, now_s: float) -> bool:
    """Whether a checkpoint for this notice does for another one given now. Pure."""
    if notice.committed_at is not None:
        return now_s - notice.committed_at <= STILL_GOOD_S
    return now_s - notice.at <= COUNTS_S


def _change(store: Store, job_id: str, number: int, **facts: Any) -> None:
    def change(old: dict[str, Any] | None) -> dict[str, Any]:
        assert old is not None
        same = old["number"] == number  # a later notice has its own
        return {**old, **facts} if same else old

    store.update_json(_key(job_id), change)


def _key(job_id: str) -> str:
    return f"jobs/{job_id}/notice.json"
