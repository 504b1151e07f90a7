"""The launcher behind a Unix socket: it does what the launcher in process does, and no more than the endpoint needs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_jobs.cluster.kinds import RAY_JOB
from ray_jobs.errors import ClusterUnreachable, MachineError, RequestTooLarge, SpecError, UnknownQueue
from ray_jobs.launch import sidecar
from ray_jobs.launch.remote import RemoteLauncher
from ray_jobs.launch.sidecar import MAX_BODY_BYTES, LauncherServer
from serving.app import launcher_from_environment
from tests.launch.two_teams import ARGUMENTS, BLUE, ENVIRONMENT, ID, NEEDS, Place, two_teams

STORE = "s3://kitae/prod"


@contextmanager
def serving(place: Place, path: Path) -> Iterator[RemoteLauncher]:
    with LauncherServer(path, place.launcher, STORE) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield RemoteLauncher(path)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def place() -> Iterator[Place]:
    with two_teams() as found:
        yield found


@pytest.fixture
def remote(place: Place, tmp_path: Path) -> Iterator[RemoteLauncher]:
    with serving(place, tmp_path / "launcher.sock") as found:
        yield found


def test_a_runner_is_launched_listed_and_stopped(place: Place, remote: RemoteLauncher) -> None:
    remote.check(NEEDS)
    for _ in range(2):  # the second finds the first one's
        remote.launch(ID, ARGUMENTS, ENVIRONMENT, NEEDS)
    made = place.server.objects.get(RAY_JOB, ID, BLUE)
    assert made["spec"]["entrypoint"] == "python -m ray_jobs resume tiny-0123456789 --launched"
    place.start()
    assert remote.runners("ftjob-") == remote.runners("ftjob-", fresh=True) == place.launcher.runners("ftjob-")
    assert remote.runners("ftjob-")[ID].state == "running"
    assert remote.runners("other-") == {}
    remote.stop(ID)
    place.server.objects.collect()
    assert place.names() == []


def test_errors_keep_their_kind_and_their_findings(place: Place, remote: RemoteLauncher) -> None:
    with pytest.raises(RequestTooLarge, match=r"lower compute\.workers") as caught:
        remote.check(replace(NEEDS, workers=99))
    assert "99 workers with 1 each request 99" in str(caught.value.details)
    with pytest.raises(UnknownQueue, match="team 'green' has no queue"):
        remote.check(replace(NEEDS, team="green"))
    place.server.down = True
    with pytest.raises(ClusterUnreachable):
        remote.runners("ftjob-")


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": ["resume", "tiny-0123456789"]},
        {"arguments": ["run", "/tmp/job.yaml", "--launched"]},
        {"arguments": ["resume", "--help", "--launched"]},
        {"arguments": ["resume", "tiny-0123456789", "--launched", "--paused-at", "x; id"]},
        {"arguments": ["resume", "tiny-0123456789", "--launched", "--workers", "9"]},
        {"arguments": "resume tiny-0123456789 --launched"},
        {"environment": {**ENVIRONMENT, "LD_PRELOAD": "/tmp/a.so"}},
        {"runner_id": "faq-1f0c2a9b"},
        {"runner_id": "ftjob-1/../../secrets"},
        {"runner_id": None},
        {"needs": {**asdict(NEEDS), "job_id": "other-0123456789"}},
        {"needs": {**asdict(NEEDS), "team": "kube-system"}},
        {"needs": {"team": "blue"}},
        {"needs": None},
    ],
    ids=str,
)
def test_it_launches_nothing_but_a_recorded_job(
    change: dict[str, Any], place: Place, remote: RemoteLauncher, tmp_path: Path
) -> None:
    body = {"runner_id": ID, "arguments": ARGUMENTS, "environment": ENVIRONMENT, "needs": asdict(NEEDS)}
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(tmp_path / "launcher.sock"))) as http:
        refused = http.post("http://launcher/launch", json={**body, **change})
        assert refused.status_code == 422, refused.text
        assert place.names() == []
        assert http.post("http://launcher/launch", json=body).status_code == 200
    assert place.names() == [ID]


def test_a_runner_uses_the_clusters_store_and_its_own_team(place: Place, remote: RemoteLauncher) -> None:
    remote.launch(ID, ARGUMENTS, {"KITAE_STORE": "s3://elsewhere", "KITAE_TEAM": "red"}, NEEDS)
    made = place.server.objects.get(RAY_JOB, ID, BLUE)
    (worker,) = made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    found = {each["name"]: each.get("value") for each in worker["env"]}
    assert (found["KITAE_STORE"], found["KITAE_TEAM"]) == (STORE, "blue")


def test_it_stops_no_release_and_has_no_other_route(remote: RemoteLauncher, tmp_path: Path, place: Place) -> None:
    with pytest.raises(MachineError, match="not the id of a runner of the endpoint"):
        remote.stop("faq-1f0c2a9b")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(tmp_path / "launcher.sock"))) as http:
        for path, content in (("/secrets", b"{}"), ("/launch", b"not JSON"), ("/launch", b"[" * 99), ("/stop", b"[1]")):
            assert http.post(f"http://launcher{path}", content=content).status_code == 422
        assert http.post("http://launcher/check", content=b" " * (MAX_BODY_BYTES + 1)).status_code == 422
    assert place.server.requests == []


def test_a_launcher_that_is_not_there(tmp_path: Path) -> None:
    launcher = launcher_from_environment(
        {"KITAE_LAUNCHER": str(tmp_path / "none.sock"), "KITAE_CLUSTER": "/none"}, lambda: 0.0
    )
    with pytest.raises(MachineError, match="container `launcher`"):
        launcher.runners("ftjob-")


def test_it_starts_where_a_former_process_left_its_socket(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "launcher.sock"
    with socket.socket(socket.AF_UNIX) as former:
        former.bind(str(path))
    with serving(place, path) as remote:
        assert remote.runners("ftjob-") == {}


def test_it_needs_the_clusters_settings(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="KITAE_CLUSTER is not set"):
        sidecar.main(str(tmp_path / "a.sock"), {})
