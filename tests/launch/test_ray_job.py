"""The launcher of Ray's job API, with a fake dashboard."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ray_jobs.errors import MachineError
from ray_jobs.launch.launcher import Needs, Runner
from ray_jobs.launch.ray_job import RayAddress, RayLauncher

TOKEN = "the-token-of-this-cluster"
NEEDS = Needs("j-1", "0" * 16, "default", 0, 1, 1.0, 0)


class Dashboard(ThreadingHTTPServer):
    """`/api/jobs/` of Ray 2.60."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.fails = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Dashboard

    def do_GET(self) -> None:
        self._answer(200, list(self.server.jobs.values()))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        if self.path == "/api/jobs/":
            identifier = body["submission_id"]
            if identifier in self.server.jobs:
                self._answer(500, f"ValueError: Job with submission_id {identifier} already exists.")
                return
            self.server.jobs[identifier] = {"submission_id": identifier, "status": "PENDING", "message": "", **body}
            self._answer(200, {"submission_id": identifier})
            return
        identifier = self.path.split("/")[3]
        if identifier not in self.server.jobs:
            self._answer(404, f"Job {identifier} does not exist")
            return
        self.server.jobs[identifier]["status"] = "STOPPED"
        self._answer(200, {"stopped": True})

    def do_DELETE(self) -> None:
        found = self.server.jobs.pop(self.path.split("/")[3], None)
        self._answer(200 if found is not None else 404, {})

    def _answer(self, status: int, body: Any) -> None:
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            status, body = 401, "Unauthorized"
        if self.server.fails:
            status, body = 500, "Traceback\nRuntimeError: no room"
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    server = Dashboard()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def launcher(dashboard: Dashboard) -> RayLauncher:
    return RayLauncher(dashboard.url, TOKEN)


def test_a_runner_is_started_once_under_its_id(dashboard: Dashboard, launcher: RayLauncher) -> None:
    for _ in range(2):
        launcher.launch(
            "ftjob-a-1", ["resume", "j-1", "--paused-at", "2026-11-24 12:00"], {"KITAE_STORE": "s3://b"}, NEEDS
        )
    (job,) = dashboard.jobs.values()
    assert job["entrypoint"] == "python -m ray_jobs resume j-1 --paused-at '2026-11-24 12:00'"
    assert job["runtime_env"] == {"env_vars": {"KITAE_STORE": "s3://b"}}
    assert job["entrypoint_num_cpus"] < 1  # its workers reserve what they need


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("PENDING", "pending"),
        ("RUNNING", "running"),
        ("SUCCEEDED", "ended"),
        ("FAILED", "ended"),
        ("STOPPED", "ended"),
        ("SOMETHING_NEW", "unknown"),
    ],
)
def test_ray_statuses_map_to_runner_states(
    dashboard: Dashboard, launcher: RayLauncher, status: str, state: Any
) -> None:
    dashboard.jobs = {
        "ftjob-a-1": {"submission_id": "ftjob-a-1", "status": status, "message": "why"},
        "another-job": {"submission_id": "another-job", "status": "RUNNING", "message": None},
        "a driver": {"submission_id": None, "status": "RUNNING", "message": None},
    }
    assert launcher.runners("ftjob-") == {"ftjob-a-1": Runner(state, "why")}


def test_stopping_an_unknown_runner_is_no_error(dashboard: Dashboard, launcher: RayLauncher) -> None:
    launcher.launch("ftjob-a-1", ["resume", "j-1"], {}, NEEDS)
    launcher.stop("ftjob-a-1")
    launcher.stop("ftjob-b-1")
    assert launcher.runners("ftjob-")["ftjob-a-1"].state == "ended"


def test_a_refusal_has_the_last_line(dashboard: Dashboard, launcher: RayLauncher) -> None:
    dashboard.fails = True
    for call in (lambda: launcher.launch("x", [], {}, NEEDS), lambda: launcher.stop("x"), lambda: launcher.runners("")):
        with pytest.raises(MachineError, match="answered 500: RuntimeError: no room"):
            call()
    with pytest.raises(MachineError, match=r"answered (500|401)"):
        RayLauncher(dashboard.url, "wrong").runners("")


def test_an_unreachable_cluster() -> None:
    with pytest.raises(MachineError, match="does not answer"):
        RayLauncher("http://127.0.0.1:9", TOKEN).runners("")


def test_address_and_token_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    for name in ("RAY_DASHBOARD_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert RayAddress.from_env() == RayAddress("http://head:8265", TOKEN)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert RayAddress.from_env().token is None


def test_jobs_that_ended_a_day_before_the_newest_are_deleted(dashboard: Dashboard) -> None:
    day_ms, launcher = 86_400_000, RayLauncher(dashboard.url, TOKEN)

    def job(name: str, status: str, end_ms: int | None) -> None:
        dashboard.jobs[name] = {"submission_id": name, "status": status, "start_time": 1, "end_time": end_ms}

    for number in range(30):
        job(f"ftjob-old-{number}", "SUCCEEDED", day_ms)
    job("ftjob-recent-1", "FAILED", day_ms + 2)
    job("ftjob-runs-1", "RUNNING", None)
    job("others", "SUCCEEDED", day_ms)
    job("ftjob-newest-1", "STOPPED", 2 * day_ms + 1)
    assert len(launcher.runners("ftjob-")) == 33
    launcher.runners("ftjob-")
    assert sorted(dashboard.jobs) == ["ftjob-newest-1", "ftjob-recent-1", "ftjob-runs-1", "others"]
