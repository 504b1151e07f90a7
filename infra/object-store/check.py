"""Check that a store has the features Kitae needs, and that a team's credentials allow no more than its jobs need.

    python infra/object-store/check.py
    python infra/object-store/check.py --team blue
    kubectl -n kitae exec -i POD -c ray -- python - < infra/object-store/check.py

Owns the output. The features are checked by `ray_jobs.storage.probe`, on the store itself, under `.probe/`. KITAE_STORE
and the AWS_ variables name the store. With `--team` the credentials are the team's, and the check tries to read and to
write both what its jobs need and what they must not reach. The names do not exist, and nothing is written: each write
has a wrong checksum.
"""

from __future__ import annotations

import argparse
import sys

from ray_jobs.errors import KitaeError
from ray_jobs.storage import Store
from ray_jobs.storage.access import may_read, may_write
from ray_jobs.storage.workspace import TEAM_KINDS

FORBIDDEN = (
    "audit/",
    "budgets/",
    "keys/",
    "answer-policies/",
    "batches/",
    "evals/",
    "open-batches/",
    "open-evals/",
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


SHARED = ("catalogue/", "catalogue-bases/", "owners/", "files/bases/", "files/data/")
"""Prefixes that every team reads. In `owners/` it may create, and the tried write would also replace."""


def differences(store: Store, team: str) -> list[str]:
    """One finding for each key and action that the credentials are allowed and should not be, or the reverse."""
    own = [f"{kind}/{team}/none" for kind in TEAM_KINDS]
    readable = ["layout.json", *(f"{prefix}none" for prefix in (*SHARED, f"files/{team}/"))]
    hidden = [f"{prefix}none" for prefix in FORBIDDEN]
    hidden += [f"{kind}/not-{team}/none" for kind in ("files", *TEAM_KINDS)]
    found = [f"{store.uri(key)} can be read" for key in hidden if may_read(store, key)]
    found += [f"{store.uri(key)} can be written" for key in (*hidden, *readable) if may_write(store, key)]
    found += [f"{store.uri(key)} cannot be read" for key in (*own, *readable) if not may_read(store, key)]
    found += [f"{store.uri(key)} cannot be written" for key in own if not may_write(store, key)]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Check every feature of the store that Kitae needs.")
    parser.add_argument("--team", help="team that the credentials belong to; also checks what they reach")
    team = parser.parse_args().team
    try:
        store = Store.from_env()
        findings = differences(store, team) if team else []
    except KitaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for finding in findings:
        print(f"wrong: {finding}")
    if findings:
        print("correct the policy: infra/object-store/policies.py")
    else:
        scope = f", and team {team}'s credentials reach what its jobs need and no more" if team else ""
        print(f"{store.uri()} has all features that Kitae needs{scope}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
