"""The chores that keep the store bounded: each is done by one replica in its turn.

Owns their list, and the deletion of what creates and keys leave behind once nothing reads it any more. Every chore is
idempotent, also in several processes at once.

teams/{team}/creates/   claims of creates, `CLAIMS_KEPT_S` after they were made
places/                 slots of keys that no longer open anything
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial

from ray_jobs.storage import Store
from ray_jobs.storage.turns import take_turn
from ray_jobs.tenancy import api_keys, usage
from serving.files.stored_files import Files
from serving.files.uploads import Uploads
from serving.fine_tuning import records
from serving.stored.answers import StoredAnswers

CLAIMS_KEPT_S = 48 * 3600.0
"""Seconds for which an Idempotency-Key is remembered at least."""
_PLACES_KEPT_S = 24 * 3600.0
_RECENT_DAYS = 8
"""Days whose usage is summed up every hour."""


@dataclass(frozen=True)
class Chore:
    """Work that one replica does once in a while."""

    name: str
    every_s: float
    do: Callable[[float], object]
    """Called with the time in Unix seconds."""

    def in_turn(self, store: Store) -> bool:
        """Do it, unless another replica has begun it within `every_s` seconds. Returns whether it was done."""
        if not take_turn(store, self.name, every_s=self.every_s):
            return False
        self.do(store.now_s())
        return True


def chores(
    store: Store, files: Files, uploads: Uploads, stored: StoredAnswers, in_use: Callable[[str, str], bool]
) -> list[Chore]:
    """Everything that keeps the number of objects bounded."""

    def sum_up(now_s: float, *, days: int | None = None) -> int:
        today = datetime.fromtimestamp(now_s, UTC).date()
        return usage.roll_up_all(store, today, since=date.min if days is None else today - timedelta(days=days))

    return [
        Chore("usage", 3600.0, partial(sum_up, days=_RECENT_DAYS)),
        Chore("expired-files", 6 * 3600.0, partial(files.sweep, in_use=in_use)),
        Chore("expired-uploads", 6 * 3600.0, uploads.sweep),
        Chore("expired-answers", 6 * 3600.0, stored.sweep),
        Chore("late-usage", 24 * 3600.0, sum_up),
        Chore("claims", 24 * 3600.0, partial(sweep_claims, store)),
        Chore("places", 24 * 3600.0, partial(sweep_places, store)),
    ]


def sweep_claims(store: Store, now_s: float) -> int:
    """Delete old claims of creates; returns their number. One listing per 1,000 claims of a team.

    A claim without an Idempotency-Key is renewed by an equal request. One that is renewed in the moment of its deletion
    is lost, which matters only if that request is not answered and repeated.
    """
    done = 0
    for team in store.list_dirs("teams/"):
        old = [info.key for info in store.list(f"teams/{team}/creates/") if info.modified_s < now_s - CLAIMS_KEPT_S]
        store.delete(old)
        done += len(old)
    return done


def sweep_places(store: Store, now_s: float) -> int:
    """Delete the slots of keys that are revoked or expired and have no open job; returns the number of keys.

    Nothing takes a slot of such a key again, so no slot is lost.
    """
    stale = [info for info in store.list("places/") if info.modified_s < now_s - _PLACES_KEPT_S]
    names = [name for info in stale if "/" not in (name := info.key.removeprefix("places/").removesuffix(".json"))]
    if not names:
        return 0
    in_use = {job.key_id for job in records.open_jobs(store)}
    since = datetime.fromtimestamp(now_s - _PLACES_KEPT_S, UTC)
    keys = {name: api_keys.read_or_report(store, name) for name in names if name not in in_use}
    over = [name for name, key in keys.items() if key is not None and _ended(key, since)]
    store.delete([f"places/{name}.json" for name in over])
    return len(over)


def _ended(key: api_keys.ApiKey, since: datetime) -> bool:
    """Whether a key has opened nothing since a time."""
    ends = [at for at in (key.revoked_at, key.expires_at) if at is not None]
    return bool(ends) and min(ends) < since
