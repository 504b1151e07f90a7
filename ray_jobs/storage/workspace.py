"""Workspace: a team's part of the store, through which all of the team's work is read and written.

Owns the place of the team in a key. Code below names `jobs/{id}` or `models/{name}/{version}`; the objects are at
`jobs/{team}/{id}` and `models/{team}/{name}/{version}`, so that a bucket policy can hold a team to its own. Every other
key is the whole store's.

    workspace = Workspace(store, "blue")
    workspace.get("models/greeter/1/manifest.json")  # models/blue/greeter/1/manifest.json
    workspace.get("catalogue/smollm.json")           # catalogue/smollm.json
"""

from __future__ import annotations

import os

from ray_jobs.errors import StoreError
from ray_jobs.spec import DEFAULT_TEAM, NAME_RULE, is_name
from ray_jobs.storage.store import Store

TEAM_KINDS = ("jobs", "datasets", "dataset-versions", "bases", "models", "aliases", "deployments", "runs")
"""First parts of the keys that belong to a team."""


class Workspace(Store):
    """A store in which the keys of `TEAM_KINDS` are those of one team."""

    def __init__(self, store: Store, team: str) -> None:
        """Raises StoreError for a team that cannot be part of a key."""
        if not is_name(team):
            raise StoreError(f"{team!r} cannot be a team: {NAME_RULE}")
        self._root = store.root
        vars(self).update(vars(self._root))
        self.team = team

    @staticmethod
    def from_env(*, check: bool = True) -> Workspace:
        """The workspace of the team in KITAE_TEAM (default: `default`). Raises StoreError as `Store.from_env`."""
        return Workspace(Store.from_env(check=check), os.environ.get("KITAE_TEAM") or DEFAULT_TEAM)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Workspace) and other._root is self._root and other.team == self.team

    def __hash__(self) -> int:
        return hash((id(self._root), self.team))

    def __repr__(self) -> str:
        return f"Workspace({super().uri()!r}, {self.team!r})"

    def __reduce__(self) -> tuple[object, ...]:
        reopen, arguments = super().__reduce__()[:2]
        return (_reopen, (reopen, arguments, self.team))

    @property
    def root(self) -> Store:
        """The whole store."""
        return self._root

    def path(self, key: str) -> str:
        kind, slash, rest = key.partition("/")
        return f"{kind}/{self.team}{slash}{rest}" if kind in TEAM_KINDS else key

    def key_at(self, path: str) -> str:
        kind, _, rest = path.partition("/")
        return f"{kind}/{rest.removeprefix(f'{self.team}/')}" if kind in TEAM_KINDS else path


def teams(store: Store) -> list[str]:
    """Teams with a job or a model."""
    return sorted({team for kind in ("jobs", "models") for team in store.root.list_dirs(kind)})


def _reopen(reopen: object, arguments: tuple[str, ...], team: str) -> Workspace:
    assert callable(reopen)
    return Workspace(reopen(*arguments), team)
