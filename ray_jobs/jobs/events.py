"""Events of a job: `jobs/{id}/events/{sequence}.json`, written once, numbered without gaps over all attempts.

Owns the numbering, and the messages about a waiting job. Does not know who writes an event.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from ray_jobs.errors import ConflictError
from ray_jobs.jobs.record import load
from ray_jobs.storage import Store

Level = Literal["info", "warning", "error"]
EventKind = Literal["message", "metrics"]


class Event(BaseModel, frozen=True):
    """One message about a job."""

    attempt: int
    """The attempt that wrote it, or that was the newest when it was written from outside."""
    sequence: int
    """From 1, over all attempts, in the order in which events were written; none is missing."""
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    level: Level
    message: str
    kind: EventKind = "message"
    """`metrics`: training metrics, in `data`."""
    data: dict[str, Any] = {}


def note(store: Store, job_id: str, level: Level, message: str, data: Mapping[str, Any] | None = None) -> Event:
    """Write an event from outside the job's runner. Raises JobError if the job is unknown."""
    attempt, sequence = load(store, job_id).attempt, last_sequence(store, job_id) + 1
    event = Event(attempt=attempt, sequence=sequence, level=level, message=message, data=dict(data or {}))
    return append_event(store, job_id, event)


def note_changed(store: Store, job_id: str, message: str, *, every_s: float, now_s: float) -> None:
    """Write an event about why the job waits: once per message, and at most one in `every_s` seconds, however many
    processes report it. Raises JobError if the job is unknown."""
    claimed = False

    def change(old: dict[str, Any] | None) -> dict[str, Any]:
        nonlocal claimed
        last = old or {"message": None, "at": 0.0}
        claimed = last["message"] != message and now_s - last["at"] >= every_s
        return {"message": message, "at": now_s} if claimed else last

    store.update_json(f"jobs/{job_id}/waiting.json", change)
    if claimed:
        note(store, job_id, "info", message)


def note_created(store: Store, job_id: str, message: str) -> None:
    """Write the first event of a job, once however often it is called.

    Call it before `create`: another process may write events as soon as the record exists.
    """
    event = Event(attempt=0, sequence=1, level="info", message=message)
    with contextlib.suppress(ConflictError):
        store.put_json(_event_key(job_id, 1), event.model_dump(mode="json"), if_absent=True)


def events(store: Store, job_id: str, *, after: str = "") -> Iterator[tuple[str, Event]]:
    """(key, event) in order; `after` is the key of the last one already read."""
    for found in store.list(_events_prefix(job_id)):
        if found.key > after:
            yield found.key, Event.model_validate(store.get_json(found.key))


def event_names(store: Store, job_id: str) -> list[str]:
    """Names of a job's events, in order, for `event`."""
    return [info.key.rpartition("/")[2].removesuffix(".json") for info in store.list(_events_prefix(job_id))]


def event(store: Store, job_id: str, name: str) -> Event:
    """One event."""
    return Event.model_validate(store.get_json(f"{_events_prefix(job_id)}{name}.json"))


def append_event(store: Store, job_id: str, event: Event) -> Event:
    """Write an event under the first free number from its own, which follows that of an existing event.

    Numbers have no gaps, so the event comes after every event that a reader can have seen, whichever processes write
    at the same time.
    """
    while True:
        try:
            store.put_json(_event_key(job_id, event.sequence), event.model_dump(mode="json"), if_absent=True)
            return event
        except ConflictError:  # another process took the number
            event = event.model_copy(update={"sequence": event.sequence + 1, "at": datetime.now(UTC)})


def last_sequence(store: Store, job_id: str) -> int:
    """Number of the newest event; 0 without one."""
    numbers = [int(name) for name in event_names(store, job_id) if name.isdecimal()]  # old stores have other names too
    return numbers[-1] if numbers else 0


def _events_prefix(job_id: str) -> str:
    return f"jobs/{job_id}/events/"


def _event_key(job_id: str, sequence: int) -> str:
    return f"{_events_prefix(job_id)}{sequence:08d}.json"
