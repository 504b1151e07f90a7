"""Compose the bucket's policy from policy-endpoint.json and, for each team, policy-team.json; print or install it.

    python infra/object-store/policies.py blue red --principal 'arn:aws:iam::123456789012:role/kitae-{team}' \
        --endpoint arn:aws:iam::123456789012:role/kitae > policy.json
    python infra/object-store/policies.py blue red --principal 'arn:aws:iam::000000000000:user/{team}' --apply

Owns the placeholders of these files. KITAE_STORE names the bucket and the prefix; `--apply` also needs the AWS_
variables, of credentials that may set the policy.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from ray_jobs.errors import KitaeError, StoreError
from ray_jobs.spec import NAME_RULE, is_name
from ray_jobs.storage import Store
from ray_jobs.storage.access import set_policy
from ray_jobs.storage.store import split_uri

HERE = Path(__file__).parent
AWS_LIMIT_BYTES = 20_480
"""Size of the largest bucket policy on AWS."""


def statements(name: str, *, principal: str, bucket: str, prefix: str, team: str = "") -> list[dict[str, Any]]:
    """The statements of a policy of this directory. `prefix` is empty or ends in a slash."""
    # The longer ones first: PRINCIPAL_OF_THE_TEAM contains TEAM.
    values = {
        "PRINCIPAL_OF_THE_ENDPOINT": principal,
        "PRINCIPAL_OF_THE_TEAM": principal,
        "BUCKET/PREFIX/": f"{bucket}/{prefix}",
        "BUCKET": bucket,
        "TEAM": team,
    }

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner) for inner in value]
        return re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], value)

    found: list[dict[str, Any]] = filled(json.loads((HERE / name).read_text(encoding="utf-8"))["Statement"])
    return found


def compose(uri: str, teams: list[str], *, principal: str, endpoint: str | None = None) -> dict[str, Any]:
    """The policy of the bucket of `uri`. `{team}` in `principal` is replaced by each team's name. Raises StoreError."""
    bucket, prefix = split_uri(uri)
    problems = [f"{team!r} cannot be a team: {NAME_RULE}" for team in teams if not is_name(team)]
    if "{team}" not in principal and len(teams) > 1:
        problems.append(f"--principal {principal} is the same for {len(teams)} teams: write {{team}} into it")
    if problems:
        raise StoreError("no policy can be composed", details=problems)
    found = []
    if endpoint is not None:
        found += statements("policy-endpoint.json", principal=endpoint, bucket=bucket, prefix=prefix)
    for team in sorted(set(teams)):
        own = statements(
            "policy-team.json",
            principal=principal.replace("{team}", team),
            bucket=bucket,
            prefix=prefix,
            team=team,
        )
        found += [statement | {"Sid": f"{statement['Sid']}-{team}"} for statement in own]
    return {"Version": "2012-10-17", "Statement": found}


def main() -> int:
    parser = argparse.ArgumentParser(description="Compose the bucket's policy, which names every team.")
    parser.add_argument("teams", nargs="+", metavar="TEAM")
    parser.add_argument("--principal", required=True, help="a team's identity in the store; {team} is the team's name")
    parser.add_argument("--endpoint", metavar="PRINCIPAL", help="the endpoint's identity; without it, no statement")
    parser.add_argument("--apply", action="store_true", help="replace the bucket's policy instead of printing it")
    given = parser.parse_args()
    try:
        uri = os.environ.get("KITAE_STORE")
        if not uri:
            raise StoreError("KITAE_STORE is not set: name the bucket and the prefix, such as s3://bucket/kitae")
        policy = compose(uri, given.teams, principal=given.principal, endpoint=given.endpoint)
        compact = json.dumps(policy, separators=(",", ":"))
        if not given.apply:
            print(json.dumps(policy, indent=2))
        else:
            set_policy(Store.from_env(), compact)
            print(f"the policy of {uri} allows what the jobs of {', '.join(sorted(set(given.teams)))} need")
    except KitaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if len(compact) > AWS_LIMIT_BYTES:
        print(
            f"warning: it has {len(compact)} bytes, and AWS accepts {AWS_LIMIT_BYTES}: there, attach each team's "
            "statements to its role instead",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
