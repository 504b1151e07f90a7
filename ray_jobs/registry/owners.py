"""Owners: the team that a model's name belongs to, claimed once in `owners/{name}.json`.

Owns the claims. A claim is a conditional write and is never changed: it outlives the name's versions, so that clients
of a deleted model are not answered by another team's. Does not know versions.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

from pydantic import AwareDatetime, BaseModel, Field

from ray_jobs.errors import ConflictError, RegistryError, StoreAccessDenied
from ray_jobs.spec import Name, is_name
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents


class Claim(BaseModel, frozen=True):
    """The team that a name belongs to."""

    team: Name
    of: Literal["model", "base"] = "model"
    """`base`: a base model that the team brought itself, and that is served beside its adapters."""
    claimed_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))


_TRIES, _WAIT_S = 20, 0.1
_CLAIMS = Documents("owners/", Claim, "a claim of a model's name")


def claimed_by(store: Store, name: str) -> str | None:
    """The team that has claimed a name. None: no claim can be read, or it is no model's name."""
    found = find(store, name)
    return None if found is None else found.team


def find(store: Store, name: str) -> Claim | None:
    """The claim of a name. None: no claim can be read, or it is no model's name."""
    try:
        return _claim(store.root, name) if is_name(name) else None
    except LookupError:
        return None


def claim(store: Store, name: str, wanted: Claim) -> Claim:
    """Claim a name, unless it is claimed. Returns the claim that holds.

    Raises ConflictError if another claim is under way or cannot be read.
    """
    for _ in range(_TRIES):
        try:
            _CLAIMS.create(store, name, wanted)
            return wanted
        except ConflictError:
            pass
        except StoreAccessDenied as error:
            if (found := find(store, name)) is not None:
                return found
            raise RegistryError(
                f"the name {name!r} is free, and these credentials may not claim it: let the platform team run "
                f"`kitae models claim {name} --team {wanted.team}`"
            ) from error
        # A store may refuse a concurrent write before the other one can be read.
        if (found := find(store, name)) is not None:
            return found
        time.sleep(_WAIT_S)
    raise ConflictError(f"the claim of the model name {name!r} cannot be read: {store.uri(_CLAIMS.key(name))}")


@lru_cache(maxsize=8192)  # a claim never changes, and the endpoint reads it every few seconds
def _claim(store: Store, name: str) -> Claim:
    found = _CLAIMS.find(store, name)
    if found is None:
        raise LookupError(name)  # not cached: it may be claimed next
    return found
