"""A store that enforces `policy-team.json`: SeaweedFS with an identity for each team.

`infra/object-store/policies.py` installs the policies, as a platform team does. SeaweedFS does not know the condition
`s3:if-none-match`, so here the operator claims names.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from ray_jobs import jobs, migration, pipeline, registry
from ray_jobs.deploy import ServeSettings, deploy
from ray_jobs.errors import RegistryError, StoreAccessDenied
from ray_jobs.local import embedded_store, processes
from ray_jobs.storage import Store, Workspace
from ray_jobs.storage.access import may_write
from ray_jobs.storage.bucket import StoreSettings
from ray_jobs.storage.workspace import TEAM_KINDS
from tests.builders import make_spec
from tests.pipeline.builders import ROWS_KEY, FakeStages, job_file, write_rows
from tests.pipeline.builders import add_base as add_small_base
from tests.repository import ROOT
from tests.serving.api_harness import add_base, register

URI = f"s3://{embedded_store.BUCKET}/company"
SCRIPTS = ROOT / "infra/object-store"
IDENTITY = "arn:aws:iam::000000000000:user/{team}"
OTHERS = (
    "keys/k.json",
    "usage/blue/2026-12-01/x.json",
    "teams/blue/jobs/j.json",
    "webhooks/blue/w.json",
    "audit/2026-12-01/000000000000-0.json",
    "budgets/blue.json",
    "spent/blue/2026-12.json",
)
"""Keys of the endpoint, also where they concern the team."""


@pytest.fixture(scope="module")
def open_as(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Store]]:
    """Opens the store with the credentials of `operator`, `blue` or `red`. The operator's are SeaweedFS's own."""
    directory = tmp_path_factory.mktemp("policies")
    secret = {name: secrets.token_hex(16) for name in ("operator", "blue", "red")}
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": name, "secretKey": secret[name]}],
            "actions": [],
        }
        for name in ("blue", "red")
    ]
    (directory / "s3.json").write_text(json.dumps({"identities": identities}))
    ports = embedded_store.choose_ports()
    operator = embedded_store.Credentials("operator", secret["operator"])
    log = directory / "weed.log"
    mark, options = secrets.token_hex(16), (f"-s3.config={directory / 's3.json'}",)
    environment = {**os.environ, processes.MARK: mark}
    process = embedded_store.start(directory / "data", log, ports, operator, environment=environment, options=options)

    def open_store(name: str) -> Store:
        settings = StoreSettings(
            endpoint_url=embedded_store.endpoint_url(ports), access_key_id=name, secret_access_key=secret[name]
        )
        return Store(URI, settings, cache=directory / "cache" / name)

    try:
        embedded_store.wait_until_ready(process, ports, operator, log)
        migration.require_layout(open_store("operator"))
        done = run_script(open_store("operator"), "policies.py", "blue", "red", "--principal", IDENTITY, "--apply")
        assert done.returncode == 0, done.stderr
        wait_until_enforced(Workspace(open_store("blue"), "blue"))
        yield open_store
    finally:
        processes.stop([process], mark)
        embedded_store.remove_sockets(ports)


def run_script(store: Store, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of infra/object-store with the store's credentials."""
    settings = store._bucket.settings
    environment = {
        "PATH": os.environ["PATH"],
        "KITAE_STORE": store.uri(),
        "AWS_ENDPOINT_URL": settings.endpoint_url,
        "AWS_ACCESS_KEY_ID": settings.access_key_id or "",
        "AWS_SECRET_ACCESS_KEY": settings.secret_access_key or "",
    }
    return subprocess.run(
        [sys.executable, str(SCRIPTS / name), *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )


def wait_until_enforced(blue: Workspace) -> None:
    """SeaweedFS's servers read a policy after a moment."""
    deadline = time.monotonic() + 30
    while not may_write(blue, "jobs/ready"):
        assert time.monotonic() < deadline, "the policy is not enforced"
        time.sleep(0.1)


def test_a_team_reaches_its_own_and_nothing_else(open_as: Callable[[str], Store]) -> None:
    operator, blue = open_as("operator"), Workspace(open_as("blue"), "blue")
    red = Workspace(blue, "red")  # red's keys with blue's credentials
    for key in OTHERS:
        operator.put(key, b"{}")
    for kind in TEAM_KINDS:
        Workspace(operator, "red").put(f"{kind}/x/secret.json", b"{}")
        blue.put(f"{kind}/x/own.json", b"{}")
        assert blue.get(f"{kind}/x/own.json") == b"{}"
        for refused in (
            lambda kind=kind: red.get(f"{kind}/x/secret.json"),
            lambda kind=kind: red.put(f"{kind}/x/secret.json", b"forged"),
            lambda kind=kind: red.delete(f"{kind}/x/secret.json"),
            lambda kind=kind: blue.root.copy(red.path(f"{kind}/x/secret.json"), blue.path(f"{kind}/x/stolen.bin")),
        ):
            with pytest.raises(StoreAccessDenied):
                refused()
    for key in OTHERS:
        for refused in (lambda key=key: blue.get(key), lambda key=key: blue.put(key, b"forged")):
            with pytest.raises(StoreAccessDenied):
                refused()
    for shared in ("catalogue/x.json", "catalogue-bases/d/manifest.json", "owners/x.json", "layout.json"):
        with pytest.raises(StoreAccessDenied):
            blue.put(shared, b"forged")


def test_a_job_needs_no_more_than_the_policy_allows(open_as: Callable[[str], Store]) -> None:
    """With the team's credentials: the start-up check, a job's record, a model, its alias and its deployment."""
    operator, blue = open_as("operator"), Workspace(open_as("blue"), "blue")
    add_base(Workspace(operator, "blue"), "base")
    registry.claim_name(Workspace(operator, "blue"), "greeter")
    blue.probe()
    migration.require_layout(blue)
    job = jobs.start_attempt(blue, make_spec())
    job.event("info", "begun")
    job.finish("succeeded")
    assert register(blue, make_spec(), "1") == "1"
    registry.set_alias(blue, "greeter", "champion", "1")
    deploy(blue, "greeter", ServeSettings("", None, endpoint_url="http://elsewhere"))
    assert [record.id for record in jobs.list_jobs(Workspace(operator, "blue"))] == [job.id]


def test_every_stage_runs_with_the_teams_credentials(
    open_as: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All stages on a base of the catalogue, as in infra/local's demo; the heavy stages are fakes."""
    operator, red = Workspace(open_as("operator"), "red"), Workspace(open_as("red"), "red")
    write_rows(operator)
    operator.put("files/data/rows.jsonl", operator.get(ROWS_KEY))
    add_small_base(operator, "small")
    registry.claim_name(operator, "caller")
    stages = FakeStages()
    stages.install(monkeypatch)
    spec = job_file(red, name="caller", team="red", data={"train": red.uri("files/data/rows.jsonl")})
    pipeline.run(red, spec)
    assert stages.ran == ["dataset", "base", "encode", "train", "evaluate", "parity", "register", "deploy"]
    assert jobs.load(operator, spec.job_id).status == "succeeded"
    assert list(operator.list("runs")), "its heartbeat, without which its hours are not booked"


def test_the_check_of_a_team_finds_what_its_credentials_reach(open_as: Callable[[str], Store]) -> None:
    operator = open_as("operator")
    done = run_script(open_as("blue"), "check.py", "--team", "blue")
    assert done.returncode == 0, done.stdout
    before = {info.key for info in operator.list()}
    done = run_script(operator, "check.py", "--team", "blue")
    assert done.returncode == 1
    findings = done.stdout
    for key in ("keys/none", "usage/none", "jobs/not-blue/none", "files/not-blue/none"):
        assert f"{URI}/{key} can be read" in findings
        assert f"{URI}/{key} can be written" in findings
    for key in ("layout.json", "owners/none", "catalogue/none", "files/blue/none"):
        assert f"{URI}/{key} can be written" in findings
        assert f"{URI}/{key} can be read" not in findings
    assert {info.key for info in operator.list()} == before, "the check writes nothing"
    done = run_script(open_as("red"), "check.py", "--team", "blue")
    assert f"{URI}/jobs/blue/none cannot be written" in done.stdout
    assert f"{URI}/files/blue/none cannot be read" in done.stdout
    assert done.returncode == 1


def test_a_team_cannot_change_the_policy(open_as: Callable[[str], Store]) -> None:
    done = run_script(open_as("blue"), "policies.py", "blue", "--principal", IDENTITY, "--apply")
    assert done.returncode == StoreAccessDenied.exit_code
    assert "error:" in done.stderr


def test_a_name_of_another_team_stays_its_owners(open_as: Callable[[str], Store]) -> None:
    registry.claim_name(Workspace(open_as("operator"), "blue"), "shared-name")
    with pytest.raises(RegistryError, match="belongs to team 'blue'"):
        registry.claim_name(Workspace(open_as("red"), "red"), "shared-name")
    with pytest.raises(RegistryError, match="kitae models claim free-name --team red"):
        registry.claim_name(Workspace(open_as("red"), "red"), "free-name")
