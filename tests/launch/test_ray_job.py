"""The launcher of Ray's job API, with a fake dashboard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from ray_jobs.errors import MachineError
from ray_jobs.launch.launcher import Needs, Runner
from ray_jobs.launch.ray_job import RayAddress, RayLauncher
from tests.launch.ray_dashboard import TOKEN, Dashboard, serve_dashboard

NEEDS = Needs("j-1", "0" * 16, "default", 0, 1, 1.0, 0)


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    with serve_dashboard() as server:
        yield server


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
    with pytest.raises(MachineError, match=r"does not answer at http://127\.0\.0\.1:9 .*set RAY_DASHBOARD_ADDRESS"):
        RayLauncher("http://127.0.0.1:9", TOKEN).runners("")


def test_address_and_token_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    for name in ("RAY_DASHBOARD_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert RayAddress.from_env() == RayAddress("http://head:8265", TOKEN)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://ingress:80")  # that of `ray job`
    assert RayAddress.from_env().dashboard_url == "http://ingress:80"
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


def test_a_followed_log_has_each_line_once_although_its_connection_is_lost(
    dashboard: Dashboard, launcher: RayLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = [
        "2026-12-01 08:12:33,876\tINFO job_manager.py:568 -- Runtime env is setting up.\n",
        "Running entrypoint for job j-1-a: python -m ray_jobs\ntrain  1/2",
        " steps\n",
        "train  1/2 steps\n",
        "no end of line",
    ]
    reads: list[str] = []

    class BrokenClient:
        def __init__(self, address: str) -> None:
            assert address == dashboard.url

        async def tail_job_logs(self, runner_id: str) -> AsyncIterator[str]:
            reads.append(runner_id)
            for text in log[: 3 if len(reads) == 1 else None]:
                yield text
            if len(reads) == 1:
                raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
            dashboard.jobs["j-1-a"] |= {"status": "FAILED", "driver_exit_code": 3}

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", BrokenClient)
    monkeypatch.setattr("ray_jobs.launch.ray_job._FOLLOW_AGAIN_S", 0.0)
    launcher.launch("j-1-a", ["resume", "j-1"], {}, NEEDS)
    lines: list[str] = []
    ended = launcher.follow("j-1-a", lines.append)
    assert lines == ["train  1/2 steps", "train  1/2 steps", "no end of line"]
    assert (ended.state, ended.exit_code) == ("ended", 3)
    assert len(reads) == 3  # the last one after the end, for lines that came with it


def test_following_ends_where_ray_does(launcher: RayLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RayLauncher, "_tail", lambda *_: pytest.fail("there is nothing to follow"))
    launcher._http.base_url = "http://127.0.0.1:9"
    with pytest.raises(MachineError, match="does not answer"):
        launcher.follow("j-1-a", print)
