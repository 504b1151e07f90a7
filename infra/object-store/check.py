"""Check that a store has the features Kitae needs, and that a team's credentials allow no more than its jobs need.

    python infra/object-store/check.py
    python infra/object-store/check.py --team blue
    kubectl -n kitae exec -i POD -c ray -- python - < infra/object-store/check.py

Owns the output. The features are checked by `ray_jobs.storage.probe`, on the store itself, under `.probe/`. KITAE_STORE
and the AWS_ variables name the store. With `--team` the credentials are the team's, and the check reads keys that they
must not reach, by names that do not exist.
"""

from __future__ import annotations

import argparse
import sys

from ray_jobs.errors import KitaeError, ObjectNotFound, StoreAccessDenied
from ray_jobs.storage import Store
from ray_jobs.storage.workspace import TEAM_KINDS

FORBIDDEN = (
    "audit/",
    "budgets/",
    "keys/",
    "places/",
    "teams/",
    "open/",
    "uploads/",
    "usage/",
    "webhooks/",
    "webhooks-out/",
    "traffic/",
    "shares/",
    "spent/",
    "turns/",
)
"""Prefixes for the endpoint and the operator's command line only."""


def reached(store: Store, team: str) -> list[str]:
    """One finding for each prefix that the credentials can read and should not."""
    found = []
    others = [f"{kind}/not-{team}/" for kind in ("files", *TEAM_KINDS)]
    for prefix in (*FORBIDDEN, *others):
        try:
            store.get(f"{prefix}none")
        except StoreAccessDenied:
            continue
        except ObjectNotFound:
            found.append(
                f"{store.uri(prefix)} can be read: leave it out of the policy (infra/object-store/policy-team.json)"
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Check every feature of the store that Kitae needs.")
    parser.add_argument("--team", help="team that the credentials belong to; also checks that they reach no more")
    team = parser.parse_args().team
    try:
        store = Store.from_env()
        findings = reached(store, team) if team else []
    except KitaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for finding in findings:
        print(f"wrong: {finding}")
    if not findings:
        scope = f", and team {team}'s credentials reach no more than they may" if team else ""
        print(f"{store.uri()} has all features that Kitae needs{scope}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
