"""infra/local/up.sh gives each team an identity in the trial store: the script against a real SeaweedFS.

Other parts of the cluster are fakes (`fake_kubectl.py`).
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ray_jobs.errors import StoreAccessDenied
from ray_jobs.local import embedded_store
from ray_jobs.storage import Store, Workspace
from ray_jobs.storage.bucket import StoreSettings
from tests.infra.fake_kubectl import FakeCluster
from tests.repository import ROOT

NAMESPACES = ("kitae", "kitae-blue", "kitae-green")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    """A cluster after `up.sh`."""
    found = FakeCluster(tmp_path_factory.mktemp("cluster"))
    kubectl = found.directory / "bin/kubectl"
    kubectl.parent.mkdir()
    fake = shlex.join([sys.executable, str(ROOT / "tests/infra/fake_kubectl.py")])
    kubectl.write_text(f'#!/bin/bash\nexec {fake} "$@"\n', encoding="utf-8")
    (kubectl.parent / "helm").write_text("#!/bin/bash\n", encoding="utf-8")
    for tool in kubectl.parent.iterdir():
        tool.chmod(0o755)
    try:
        up(found)
        yield found
    finally:
        found.stop()


def bash(cluster: FakeCluster, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in the checkout, before the fake cluster."""
    environment = {
        "PATH": f"{cluster.directory}/bin:/usr/bin:/bin",
        "HOME": str(cluster.directory),
        "PYTHONPATH": str(ROOT),
        "KITAE_FAKE_CLUSTER": str(cluster.directory),
        "KITAE_LOCAL_CLUSTER": "existing",
        "KITAE_LOCAL_OPERATORS": "present",
        "KITAE_LOCAL_STATE": str(cluster.directory / "state"),
    }
    return subprocess.run(["/bin/bash", "-c", command], env=environment, cwd=ROOT, capture_output=True, text=True)


def up(cluster: FakeCluster) -> None:
    done = bash(cluster, "infra/local/up.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "== ready" in done.stdout


def check(cluster: FakeCluster, namespace: str) -> subprocess.CompletedProcess[str]:
    """`check.py --team blue` with a namespace's credentials, as `tries.sh` runs it."""
    run = f"source infra/local/settings.sh; in_store {namespace} kitae-store check.py --team blue"
    return bash(cluster, run)


def open_with(cluster: FakeCluster, namespace: str) -> Store:
    """The store with the credentials in a namespace's Secret."""
    found = cluster.values(namespace, "kitae-store")
    settings = StoreSettings(
        endpoint_url=embedded_store.endpoint_url(cluster.ports),
        access_key_id=found["AWS_ACCESS_KEY_ID"],
        secret_access_key=found["AWS_SECRET_ACCESS_KEY"],
    )
    return Store("s3://kitae", settings)


def test_each_team_has_credentials_of_its_own(cluster: FakeCluster) -> None:
    keys = {cluster.values(namespace, "kitae-store")["AWS_SECRET_ACCESS_KEY"] for namespace in NAMESPACES}
    assert len(keys) == 3
    identities = json.loads(cluster.values("kitae-store", "seaweedfs-identities")["s3.json"])["identities"]
    assert {each["name"]: each["actions"] for each in identities} == {"blue": [], "green": [], "pretend": []}
    assert cluster.values("kitae-store", "seaweedfs")["AWS_ACCESS_KEY_ID"] not in str(identities)


@pytest.mark.parametrize(
    ("namespace", "finding"),
    [
        ("kitae-blue", None),
        ("kitae-green", "wrong: s3://kitae/jobs/blue/none cannot be written"),
        ("kitae", "wrong: s3://kitae/keys/none can be read"),
    ],
)
def test_the_store_gives_a_team_the_rights_of_its_policy(
    cluster: FakeCluster, namespace: str, finding: str | None
) -> None:
    """The check of team blue, with the credentials of a namespace."""
    done = check(cluster, namespace)
    assert done.returncode == (0 if finding is None else 1), done.stdout + done.stderr
    assert finding is None or finding in done.stdout
    assert finding is not None or "team blue's credentials reach what its jobs need and no more" in done.stdout


def test_a_second_run_adds_what_is_missing_and_keeps_the_rest(cluster: FakeCluster) -> None:
    first, identities = cluster.pod, cluster.secret("kitae-store", "seaweedfs-identities")
    blue = cluster.values("kitae-blue", "kitae-store")
    Workspace(open_with(cluster, "kitae-blue"), "blue").put("jobs/x", b"{}")

    up(cluster)
    assert cluster.pod == first, "nothing has changed: the store is not restarted"
    assert cluster.secret("kitae-store", "seaweedfs-identities") == identities

    # As after an earlier version, which gave each team the operator's key.
    (cluster.directory / "secrets/kitae-store/team-green.json").unlink()
    operators = cluster.secret("kitae", "kitae-store")
    assert operators is not None
    operators["metadata"]["namespace"] = "kitae-green"
    cluster.write_secret(operators)
    up(cluster)
    assert cluster.pod != first, "SeaweedFS has read the new identity"
    assert cluster.values("kitae-blue", "kitae-store") == blue
    assert Workspace(open_with(cluster, "kitae-blue"), "blue").get("jobs/x") == b"{}"
    green = open_with(cluster, "kitae-green")
    Workspace(green, "green").put("jobs/x", b"{}")
    with pytest.raises(StoreAccessDenied):
        Workspace(green, "blue").get("jobs/x")
