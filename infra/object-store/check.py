"""Whether a store does what Kitae needs, and whether a team's credentials may do no more than a job does.

    python infra/object-store/check.py
    python infra/object-store/check.py --team blue
    kubectl -n kitae exec -i POD -c ray -- python - < infra/object-store/check.py

Owns what is printed. What a store must do is `ray_jobs.storage.probe`'s, and is tried on the store itself, under
`.probe/`. The store is named by KITAE_STORE and the AWS_ variables. With `--team` these are the team's: what they must
not reach is asked for, by names that do not exist.
"""

from __future__ import annotations

import argparse
import sys

from ray_jobs.errors import KitaeError, ObjectNotFound, StoreAccessDenied
from ray_jobs.storage import Store

FORBIDDEN = ("keys/", "teams/", "open/", "uploads/", "usage/", "webhooks/", "webhooks-out/", "traffic/", "shares/")
"""What only the endpoint and the operator's command line touch."""


def reached(store: Store, team: str) -> list[str]:
    """A finding for each place that the credentials reach and should not."""
    found = []
    for prefix in (*FORBIDDEN, f"files/not-{team}/"):
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
    parser = argparse.ArgumentParser(description="Try everything that Kitae needs of the store.")
    parser.add_argument("--team", help="the credentials are this team's, and must not reach more")
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
        print(f"{store.uri()} does all that Kitae needs{f', and no more for team {team}' if team else ''}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
