"""Turns: work that one of many processes does once in a while, by the store's clock.

    if take_turn(store, "expired files", every_s=3600.0):
        ...

Owns `turns/{name}.json`. A process that dies after it took a turn leaves the work to the next one, so the work must be
idempotent, and tolerate a second process while it is slow.
"""

from __future__ import annotations

from pydantic import BaseModel

from ray_jobs.errors import ConflictError, CorruptObject
from ray_jobs.storage.documents import Documents
from ray_jobs.storage.store import Store


class _Turn(BaseModel, frozen=True):
    taken_at: float
    """Unix seconds."""


_TURNS = Documents("turns/", _Turn, "a turn")


def take_turn(store: Store, name: str, *, every_s: float) -> bool:
    """True for one caller in `every_s` seconds, whichever processes call."""
    now_s = store.now_s()
    last = _TURNS.find(store, name)
    if last is not None and 0 <= now_s - last.taken_at < every_s:
        return False
    taken = False

    def change(old: _Turn | None) -> _Turn:
        nonlocal taken
        taken = old is None or old == last
        return _Turn(taken_at=now_s) if old is None or taken else old

    try:
        _TURNS.update(store, name, change)
    except ConflictError:
        return False
    except CorruptObject:  # reported; the work is done too often rather than never
        return True
    return taken
