"""Owners: the team that a model's name belongs to, claimed once in `owners/{name}.json`.

Owns the claims. A claim is a conditional write and is never changed: it outlives the name's versions, so that clients
of a deleted model are not answered by another team's. Does not know versions (`registry.owner` covers names that were
registered before there were claims).
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache

from pydantic import AwareDatetime, BaseModel, Field

from ray_jobs.errors import ConflictError
from ray_jobs.spec import Name, is_name
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents


class Claim(BaseModel, frozen=True):
    """The team that a name belongs to."""

    team: Name
    claimed_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))


_TRIES, _WAIT_S = 20, 0.1
_CLAIMS = Documents("owners/", Claim, "a claim of a model's name")


def claimed_by(store: Store, name: str) -> str | None:
    """The team that has claimed a name. None: no claim can be read, or it is no model's name."""
    if not is_name(name):
        return None
    try:
        return _team(store, name)
    except LookupError:
        return None


def claim(store: Store, name: str, team: str) -> str:
    """Claim a name for a team, unless it is claimed. Returns the team that has it.

    Raises ConflictError if another claim is under way or cannot be read.
    """
    for _ in range(_TRIES):
        with suppress(ConflictError):
            _CLAIMS.create(store, name, Claim(team=team))
            return team
        # A store may refuse a concurrent write before the other one can be read.
        if (found := claimed_by(store, name)) is not None:
            return found
        time.sleep(_WAIT_S)
    raise ConflictError(f"the claim of the model name {name!r} cannot be read: {store.uri(_CLAIMS.key(name))}")


@lru_cache(maxsize=8192)  # a claim never changes, and the endpoint reads it every few seconds
def _team(store: Store, name: str) -> str:
    found = _CLAIMS.find(store, name)
    if found is None:
        raise LookupError(name)  # not cached: it may be claimed next
    return found.team
