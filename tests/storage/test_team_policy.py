"""A store that enforces `policy-team.json`: SeaweedFS with an identity for each team.

The policies are those of `infra/object-store`, as a platform team installs them. SeaweedFS does not know the condition
`s3:if-none-match`, so here the operator claims names.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ray_jobs import jobs, migration, registry
from ray_jobs.deploy import ServeSettings, deploy
from ray_jobs.errors import RegistryError, StoreAccessDenied
from ray_jobs.local import embedded_store, processes
from ray_jobs.storage import Store, Workspace
from ray_jobs.storage.bucket import StoreSettings, make_client
from ray_jobs.storage.workspace import TEAM_KINDS
from tests.builders import make_spec
from tests.repository import ROOT
from tests.serving.api_harness import add_base, register

PREFIX = "company"
POLICY = ROOT / "infra/object-store/policy-team.json"
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
    """Opens the store with the credentials of `operator`, `blue` or `red`."""
    directory = tmp_path_factory.mktemp("policies")
    secret = {name: secrets.token_hex(16) for name in ("operator", "blue", "red")}
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": name, "secretKey": secret[name]}],
            "actions": ["Admin", "Read", "Write", "List"] if name == "operator" else [],
        }
        for name in secret
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
        return Store(f"s3://{embedded_store.BUCKET}/{PREFIX}", settings, cache=directory / "cache" / name)

    try:
        embedded_store.wait_until_ready(process, ports, operator, log)
        migration.require_layout(open_store("operator"))
        install(open_store("operator"), "blue", "red")
        yield open_store
    finally:
        processes.stop([process], mark)
        embedded_store.remove_sockets(ports)


def install(store: Store, *teams: str) -> None:
    """Give the bucket the policy of each team."""
    statements: list[Any] = []
    for team in teams:
        text = POLICY.read_text(encoding="utf-8").replace("PRINCIPAL_OF_THE_TEAM", IDENTITY.format(team=team))
        text = text.replace("BUCKET", embedded_store.BUCKET).replace("PREFIX", PREFIX).replace("TEAM", team)
        found = json.loads(text)["Statement"]
        statements += [statement | {"Sid": f"{statement['Sid']}{team}"} for statement in found]
    document = json.dumps({"Version": "2012-10-17", "Statement": statements})
    make_client(store._bucket.settings).put_bucket_policy(Bucket=embedded_store.BUCKET, Policy=document)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # SeaweedFS's servers read it after a moment
        try:
            Workspace(store, "blue").put("jobs/ready", b"")
            return
        except StoreAccessDenied:
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


def test_a_name_of_another_team_stays_its_owners(open_as: Callable[[str], Store]) -> None:
    registry.claim_name(Workspace(open_as("operator"), "blue"), "shared-name")
    with pytest.raises(RegistryError, match="belongs to team 'blue'"):
        registry.claim_name(Workspace(open_as("red"), "red"), "shared-name")
    with pytest.raises(RegistryError, match="kitae models claim free-name --team red"):
        registry.claim_name(Workspace(open_as("red"), "red"), "free-name")
