"""Shares: the teams that may use a model besides its own, one document per model, `shares/{name}.json`.

Owns that document and its changes. Does not know the caller (`serving`), nor the owner of a version (`api_names`).
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ray_jobs import registry
from ray_jobs.errors import RegistryError
from ray_jobs.registry.gated import newest, require_gated
from ray_jobs.registry.model import ModelVersion
from ray_jobs.spec import NAME_RULE, Name, is_name
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents


class Share(BaseModel):
    """Teams that a model is shared with."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    teams: tuple[Name, ...] = ()
    """Sorted."""
    everyone: bool = False
    ungated: bool = False
    """Whether versions that did not pass the gate are shared too."""
    added_at: dict[str, AwareDatetime] = Field(default_factory=dict)
    """Team, or `*` for everyone, → when it was added; an earlier version recorded no times."""

    def includes(self, team: str) -> bool:
        return self.everyone or team in self.teams

    def allows(self, version: ModelVersion) -> bool:
        """Whether it shares this version."""
        return self.ungated or version.lineage.gated


NOT_SHARED = Share()
_EVERYONE = "*"
_SHARES = Documents("shares/", Share, "the record of the shares of a model")


def share(
    store: Store, name: str, *, teams: Iterable[str] = (), everyone: bool = False, ungated: bool = False
) -> Share:
    """Let teams, or everyone, use every version of a model that passed the gate; with `ungated` the others too.

    Raises RegistryError for an unknown model, or if no version passed.
    """
    added = _checked(teams)
    if not added and not everyone:
        raise RegistryError(f"nothing to share {name!r} with: name a team, or everyone")
    home = registry.workspace_of(store, name)
    meant = newest(registry.versions(home, name)) or registry.get(home, name)  # RegistryError, naming the nearest
    require_gated(meant, "be shared", ungated=ungated)

    now = store.now()

    def change(old: Share | None) -> Share:
        old = old or NOT_SHARED
        shared = tuple(sorted({*old.teams, *added}))
        new = (added - {*old.teams}) | ({_EVERYONE} if everyone and not old.everyone else set())
        return Share(
            teams=shared,
            everyone=old.everyone or everyone,
            ungated=old.ungated or ungated,
            added_at=old.added_at | dict.fromkeys(sorted(new), now),
        )

    return _SHARES.update(store, name, change)


def unshare(store: Store, name: str, *, teams: Iterable[str] = (), everyone: bool = False) -> Share:
    """Revoke shares, or with neither argument all of them. Raises RegistryError for a share that does not exist.

    A model shared with everyone stays so when one team's share is revoked.
    """
    revoked = _checked(teams)
    all_of_it = not revoked and not everyone

    def change(old: Share | None) -> Share:
        old = old or NOT_SHARED
        missing = sorted(revoked - {*old.teams})
        if missing or (everyone and not old.everyone) or (all_of_it and old == NOT_SHARED):
            whom = f"with {', '.join(missing)}" if missing else "with everyone" if everyone else "with any team"
            raise RegistryError(f"{name!r} is not shared {whom}; it is shared with {describe(old)}")
        if all_of_it:
            return NOT_SHARED
        left = tuple(sorted({*old.teams} - revoked))
        everyone_still = old.everyone and not everyone
        kept = {*left, *([_EVERYONE] if everyone_still else [])}
        return Share(
            teams=left,
            everyone=everyone_still,
            ungated=old.ungated and bool(left or everyone_still),
            added_at={team: at for team, at in old.added_at.items() if team in kept},
        )

    return _SHARES.update(store, name, change)


def read_all(store: Store) -> dict[str, Share]:
    """The shares of every shared model."""
    return {name: share for name, share in _SHARES.read_all(store).items() if share != NOT_SHARED}


def read(store: Store, name: str) -> Share:
    """The shares of a model."""
    return _SHARES.read(store, name) or NOT_SHARED


def describe(share: Share) -> str:
    """The shares as text."""
    return ", ".join([*(["everyone"] if share.everyone else []), *share.teams]) or "no other team"


def _checked(teams: Iterable[str]) -> set[str]:
    for team in (checked := set(teams)):
        if not is_name(team):
            raise RegistryError(f"{team!r} cannot be a team: {NAME_RULE}")
    return checked
