"""Teams whose answers are not stored, one document per team, `answer-policies/{team}.json`.

Owns that document, which the operator writes. Does not know requests.
"""

from __future__ import annotations

from pydantic import AwareDatetime, BaseModel, ConfigDict

from ray_jobs.errors import SpecError
from ray_jobs.spec import NAME_RULE, is_name
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents


class AnswerPolicy(BaseModel):
    """Whether a team's answers may be stored."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    store: bool = True
    set_at: AwareDatetime | None = None


_POLICIES = Documents("answer-policies/", AnswerPolicy, "a policy of stored answers")

read_all = _POLICIES.read_all


def may_store(store: Store, team: str) -> bool:
    """Whether a team's answers may be stored; a team without a policy stores. Raises CorruptObject, StoreError."""
    found = _POLICIES.read(store, team)
    return found is None or found.store


def set_policy(store: Store, team: str, *, allowed: bool) -> AnswerPolicy:
    """Allow or forbid storing a team's answers. Stored ones stay until they are deleted or expire.

    Raises SpecError for a name that no team can have.
    """
    if not is_name(team):
        raise SpecError(f"{team!r} cannot be a team's name: {NAME_RULE}")
    return _POLICIES.update(store, team, lambda old: AnswerPolicy(store=allowed, set_at=store.now()))
