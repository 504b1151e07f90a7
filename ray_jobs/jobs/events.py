"""Events of a job: `jobs/{id}/events/{sequence}.json`, written once, numbered without gaps over all attempts.

Owns the numbering, and the messages about a waiting job. Does not know who writes an event.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, Field

from ray_jobs.errors import ConflictError, CorruptObject
from ray_jobs.jobs.record import load
from ray_jobs.storage import Workspace
from ray_jobs.storage.documents import Documents
from ray_jobs.storage.newest import newest_first

Level = Literal["info", "warning", "error"]
EventKind = Literal["message", "metrics"]

_NAME = re.compile(r"[0-9A-Za-z._-]{1,64}")
_DIGITS = 8
_FIRST_WINDOW = 1000
_TRIES = 1000
"""Numbers tried for a new event; each lost try is another writer's event."""


class Event(BaseModel, frozen=True):
    """One message about a job."""

    attempt: int = Field(ge=0)
    """The attempt that wrote it, or that was the newest when it was written from outside."""
    sequence: int
    """From 1, over all attempts, in the order in which events were written; none is missing."""
    at: AwareDatetime
    level: Level
    message: str
    kind: EventKind = "message"
    """`metrics`: training metrics, in `data`."""
    data: dict[str, Any] = {}


class _Waiting(BaseModel, frozen=True):
    """`waiting.json`: the reason for waiting that was reported last."""

    message: str | None = None
    at: float = 0.0
    """Unix seconds."""


_WAITING = Documents("jobs/", _Waiting, "a reason for waiting")


def note(store: Workspace, job_id: str, level: Level, message: str, data: Mapping[str, Any] | None = None) -> Event:
    """Write an event from outside the job's runner. Raises JobError if the job is unknown."""
    attempt, sequence = load(store, job_id).attempt, last_sequence(store, job_id) + 1
    event = Event(
        attempt=attempt, sequence=sequence, at=store.now(), level=level, message=message, data=dict(data or {})
    )
    return append_event(store, job_id, event)


def note_changed(store: Workspace, job_id: str, message: str, *, every_s: float, now_s: float) -> None:
    """Write an event about why the job waits: once per message, and at most one in `every_s` seconds, however many
    processes report it. Raises JobError if the job is unknown."""
    claimed = False

    def change(old: _Waiting | None) -> _Waiting:
        nonlocal claimed
        last = old or _Waiting()
        claimed = last.message != message and now_s - last.at >= every_s
        return _Waiting(message=message, at=now_s) if claimed else last

    try:
        _WAITING.update(store, f"{job_id}/waiting", change)
    except CorruptObject:  # not written by Kitae: then without events about waiting
        return
    if claimed:
        note(store, job_id, "info", message)


def note_created(store: Workspace, job_id: str, message: str) -> None:
    """Write the first event of a job, once however often it is called.

    Call it before `create`: another process may write events as soon as the record exists.
    """
    event = Event(attempt=0, sequence=1, at=store.now(), level="info", message=message)
    with contextlib.suppress(ConflictError):
        _events(job_id).create(store, _name(1), event)


def events(store: Workspace, job_id: str, *, after: str = "") -> Iterator[tuple[str, Event]]:
    """(name, event) of the readable events in order; `after` is the name of the last one already read."""
    for name in event_names(store, job_id):
        if name > after and (found := event(store, job_id, name)) is not None:
            yield name, found


def event_names(store: Workspace, job_id: str) -> list[str]:
    """Names of a job's events, in order, for `event`."""
    return [name for name in _events(job_id).names(store) if _NAME.fullmatch(name)]


def event(store: Workspace, job_id: str, name: str) -> Event | None:
    """One event; None if it does not exist or cannot be read."""
    return _events(job_id).find(store, name)


def append_event(store: Workspace, job_id: str, event: Event) -> Event:
    """Write an event under the first free number from its own, which follows that of an existing event.

    Numbers have no gaps, so the event comes after every event that a reader can have seen, whichever processes write
    at the same time.
    """
    for _ in range(_TRIES):
        try:
            _events(job_id).create(store, _name(event.sequence), event)
            return event
        except ConflictError:  # another process took the number
            event = event.model_copy(update={"sequence": event.sequence + 1, "at": store.now()})
    raise ConflictError(f"no event of job {job_id} could be written in {_TRIES} tries")


def last_sequence(store: Workspace, job_id: str) -> int:
    """Number of the newest event; 0 without one."""
    return int(next(newest_names(store, job_id), "0"))


def newest_names(store: Workspace, job_id: str, *, before: str | None = None) -> Iterator[str]:
    """Names of the events from the newest, listed as they are consumed; `before`: only older ones."""
    prefix = _events(job_id).prefix

    def list_after(name: str) -> Iterator[str]:
        for info in store.list(prefix, after=f"{prefix}{name}.json" if name else ""):
            yield info.key.removeprefix(prefix).removesuffix(".json")

    def number_of(name: str) -> int | None:  # old stores have other names too
        return int(name) if name.isdecimal() and len(name) == _DIGITS else None

    return newest_first(list_after, number_of, _name, top=10**_DIGITS, width=_FIRST_WINDOW, before=before)


def _events(job_id: str) -> Documents[Event]:
    return Documents(f"jobs/{job_id}/events/", Event, "a job event")


def _name(sequence: int) -> str:
    return f"{sequence:0{_DIGITS}d}"
