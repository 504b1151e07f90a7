"""infra/object-store/policies.py: the policy of several teams, composed from the files of that directory."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ray_jobs.errors import StoreError
from tests.repository import ROOT

SCRIPT = ROOT / "infra/object-store/policies.py"
ROLE = "arn:aws:iam::123456789012:role/kitae"
compose: Callable[..., dict[str, Any]] = runpy.run_path(str(SCRIPT))["compose"]


def resources(statements: list[dict[str, Any]]) -> set[str]:
    found = (each["Resource"] for each in statements)
    return {place for each in found for place in (each if isinstance(each, list) else [each])}


def test_each_team_has_the_statements_of_the_file_for_its_own_keys() -> None:
    statements = compose("s3://models/kitae", ["red", "blue"], principal=f"{ROLE}-{{team}}")["Statement"]
    template = json.loads((SCRIPT.parent / "policy-team.json").read_text(encoding="utf-8"))["Statement"]
    assert len({each["Sid"] for each in statements}) == len(statements) == 2 * len(template)
    for team, other in (("blue", "red"), ("red", "blue")):
        own = [each for each in statements if each["Principal"] == {"AWS": f"{ROLE}-{team}"}]
        assert [each["Action"] for each in own] == [each["Action"] for each in template]
        assert [each.get("Condition") for each in own] == [each.get("Condition") for each in template]
        assert f"arn:aws:s3:::models/kitae/jobs/{team}/*" in resources(own)
        assert not [place for place in resources(own) if f"/{other}/" in place]
    assert not [word for word in ("BUCKET", "PREFIX", "TEAM", "PRINCIPAL") if word in json.dumps(statements)]


def test_a_prefix_is_optional_and_may_contain_a_placeholder() -> None:
    bare = resources(compose("s3://models", ["blue"], principal=ROLE)["Statement"])
    assert {"arn:aws:s3:::models", "arn:aws:s3:::models/jobs/blue/*", "arn:aws:s3:::models/layout.json"} <= bare
    odd = resources(compose("s3://models/TEAM/x/", ["blue"], principal=ROLE)["Statement"])
    assert {"arn:aws:s3:::models/TEAM/x/jobs/blue/*", "arn:aws:s3:::models/TEAM/x/owners/*"} <= odd


def test_the_endpoint_keeps_its_rights() -> None:
    statements = compose("s3://models/kitae", ["blue"], principal=f"{ROLE}-blue", endpoint=ROLE)["Statement"]
    own = [each for each in statements if each["Principal"] == {"AWS": ROLE}]
    assert resources(own) == {"arn:aws:s3:::models", "arn:aws:s3:::models/kitae/*"}
    assert {"s3:PutObject", "s3:DeleteObject"} <= {action for each in own for action in each["Action"]}


@pytest.mark.parametrize(
    ("teams", "problem"), [(["blue", "red"], "is the same for 2 teams"), (["*"], "'*' cannot be a team")]
)
def test_what_would_give_one_team_the_rights_of_another_is_refused(teams: list[str], problem: str) -> None:
    with pytest.raises(StoreError) as raised:
        compose("s3://models/kitae", teams, principal=ROLE)
    assert problem in str(raised.value)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


def test_the_command_prints_the_policy_and_warns_of_what_aws_refuses() -> None:
    principal = ("--principal", f"{ROLE}-{{team}}")
    done = command("blue", *principal, KITAE_STORE="s3://models/kitae")
    assert json.loads(done.stdout) == compose("s3://models/kitae", ["blue"], principal=f"{ROLE}-blue")
    assert (done.returncode, done.stderr) == (0, "")
    done = command(*(f"team-{number}" for number in range(20)), *principal, KITAE_STORE="s3://models/kitae")
    assert "AWS accepts 20480" in done.stderr
    done = command("blue", *principal)
    assert (done.returncode, done.stdout) == (StoreError.exit_code, "")
    assert "KITAE_STORE is not set" in done.stderr
