"""The audit log: who changed what and when, for keys, names, shares, deletions, quotas and budgets.

    audit/{YYYY-MM-DD}/{HHMMSSffffff}-{random}.json         an entry (UTC), written before its action
    audit/{YYYY-MM-DD}/{HHMMSSffffff}-{random}.failed.json  why the action was not done

Owns these documents. Append-only: each is created once by a conditional write, and nothing changes or deletes one. An
action without an entry does not happen, since the entry is first. Does not know the actions.

    with audit.recorded(store, Actor(name="alice@laptop", via="cli"), "alias.set", "faq@champion", team="blue"):
        registry.set_alias(…)
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date, datetime
from typing import Literal, get_args

from pydantic import AwareDatetime, BaseModel, Field

from ray_jobs.errors import ConflictError, SpecError, StoreError, suggestion
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents

Action = Literal[
    "alias.set",
    "base.add",
    "base.engine",
    "base.remove",
    "batch.cancel",
    "batch.create",
    "budget.clear",
    "budget.set",
    "checkpoint.delete",
    "completions.policy",
    "dataset.delete",
    "file.delete",
    "key.create",
    "key.revoke",
    "model.delete",
    "model.deploy",
    "model.register",
    "model.undeploy",
    "name.claim",
    "quota.set",
    "share.add",
    "share.remove",
    "traffic.canary",
    "traffic.promote",
    "traffic.rollback",
    "traffic.shadow",
    "webhook.add",
    "webhook.remove",
]
"""What was done: a subject and a verb."""

ACTIONS: tuple[Action, ...] = get_args(Action)
Value = str | int | float | bool | None | list[str]
_PREFIX = "audit/"
_FAILED = ".failed"
_MAX_TEXT = 500
_MAX_LISTED = 100


class Actor(BaseModel, frozen=True):
    """Who acts."""

    name: str = Field(max_length=200)
    """An API key's id, `operator`, `endpoint`, or a command line's user and host, which it states itself."""
    via: Literal["api", "cli", "endpoint"]


class Entry(BaseModel, frozen=True):
    """One action."""

    at: AwareDatetime
    actor: Actor
    action: str
    """An `Action`; another one of a newer version."""
    target: str
    """What it was done to: a name, an id, `name@alias`."""
    team: str | None = None
    """The team that the target belongs to. None: no team's."""
    details: dict[str, Value] = {}
    failed: str | None = None
    """Why the action was not done. None: it was done, or its process ended in between."""


class _Failure(BaseModel, frozen=True):
    reason: str


_ENTRIES = Documents(_PREFIX, Entry, "an entry of the audit log")
_FAILURES = Documents(_PREFIX, _Failure, "a failure in the audit log")


@contextmanager
def recorded(
    store: Store,
    actor: Actor,
    action: Action,
    target: str,
    *,
    team: str | None = None,
    details: Mapping[str, Value] | None = None,
) -> Iterator[None]:
    """Record an action, then do it in the block; an exception of the block is recorded as its failure.

    Raises StoreError, without running the block, if the entry cannot be written.
    """
    at = store.now()
    name = f"{at:%Y-%m-%d}/{at:%H%M%S%f}-{secrets.token_hex(4)}"
    _ENTRIES.create(store, name, _entry(at, actor, action, target, team, details))
    try:
        yield
    except BaseException as error:
        with suppress(StoreError):
            reason = str(getattr(error, "message", type(error).__name__))  # of our errors, not of foreign ones
            _FAILURES.create(store, name + _FAILED, _Failure(reason=reason[:_MAX_TEXT]))
        raise


def record_once(
    store: Store,
    actor: Actor,
    action: Action,
    target: str,
    *,
    at: datetime,
    mark: str,
    team: str | None = None,
    details: Mapping[str, Value] | None = None,
) -> None:
    """Record an action that several processes may do: one entry for each `at` and `mark`."""
    with suppress(ConflictError):
        name = f"{at:%Y-%m-%d}/{at:%H%M%S%f}-{mark}"
        _ENTRIES.create(store, name, _entry(at, actor, action, target, team, details))


def read(store: Store, since: date, until: date, *, team: str | None = None, action: str | None = None) -> list[Entry]:
    """The readable entries from `since` to `until` (UTC days, both included), oldest first.

    `action`: an action, or the subject of several, such as `key`. Raises SpecError for an unknown one.
    """
    if action is not None and action not in (*ACTIONS, *(known.partition(".")[0] for known in ACTIONS)):
        raise SpecError(f"no action {action!r} in the audit log; {suggestion(action, ACTIONS)}")
    found = []
    for day in store.list_dirs(_PREFIX):
        if not since.isoformat() <= day <= until.isoformat():
            continue
        keys = (info.key.removeprefix(_PREFIX) for info in store.list(f"{_PREFIX}{day}"))
        names = [key.removesuffix(".json") for key in keys if key.endswith(".json")]
        entries = _ENTRIES.read_some(store, [name for name in names if not name.endswith(_FAILED)])
        failures = _FAILURES.read_some(store, [name for name in names if name.endswith(_FAILED)])
        for name, entry in entries.items():
            failure = failures.get(name + _FAILED)
            found.append(entry if failure is None else entry.model_copy(update={"failed": failure.reason}))
    return [
        entry
        for entry in found
        if team in (None, entry.team) and (action is None or action in (entry.action, entry.action.partition(".")[0]))
    ]


def _entry(
    at: datetime, actor: Actor, action: Action, target: str, team: str | None, details: Mapping[str, Value] | None
) -> Entry:
    bounded = {name: _bounded(value) for name, value in (details or {}).items()}
    return Entry(at=at, actor=actor, action=action, target=target[:_MAX_TEXT], team=team, details=bounded)


def _bounded(value: Value) -> Value:
    if isinstance(value, list):
        more = [f"and {len(value) - _MAX_LISTED} more"] if len(value) > _MAX_LISTED else []
        return [text[:_MAX_TEXT] for text in value[:_MAX_LISTED]] + more
    return value[:_MAX_TEXT] if isinstance(value, str) else value
