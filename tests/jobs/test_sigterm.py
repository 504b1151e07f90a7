"""A runner that receives SIGTERM: its training writes a checkpoint first, where there is time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ray_jobs import jobs
from ray_jobs.jobs import checkpoint_request
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from tests.builders import make_spec

RUNNER = """
import sys, time
from pathlib import Path
from ray_jobs import jobs
from ray_jobs.jobs import sigterm
from ray_jobs.spec import load_spec
from ray_jobs.storage import Workspace

job = jobs.start_attempt(Workspace.from_env(), load_spec(Path(sys.argv[1])))
with sigterm.checkpoint_on_sigterm(job, pauses=sys.argv[2] == "pauses"):
    print("runs", flush=True)
    time.sleep(120)
"""
ENDED_AT_ONCE, ENDED_AFTER_SAVING = -signal.SIGTERM, 128 + signal.SIGTERM


@pytest.fixture
def spec() -> JobSpec:
    return make_spec()


@pytest.fixture
def start(store_environment: None, tmp_path: Path, spec: JobSpec) -> Callable[..., subprocess.Popen[str]]:
    """Starts a runner whose Ray waits `wait_s` before it kills."""
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")), encoding="utf-8")

    def run(how: str = "pauses", wait_s: str | None = "100") -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_JOB_STOP_WAIT_TIME_S"}
        if wait_s is not None:
            environment["RAY_JOB_STOP_WAIT_TIME_S"] = wait_s
        command = [sys.executable, "-c", RUNNER, str(tmp_path / "job.yaml"), how]
        runner = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert runner.stdout is not None
        assert runner.stdout.readline() == "runs\n"
        return runner

    return run


def save(store: Workspace, job_id: str, step: int) -> None:
    """Answer the checkpoint request as a training does."""
    deadline = time.monotonic() + 30
    while (given := checkpoint_request.current(store, job_id)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    checkpoint_request.answer(store, job_id, given.number, step=step)


def messages(store: Workspace, job_id: str) -> list[str]:
    return [event.message for _, event in jobs.events(store, job_id)]


@pytest.mark.parametrize(("how", "status"), [("pauses", "paused"), ("keeps running", "running")])
def test_it_ends_once_a_checkpoint_is_committed(
    store: Workspace, spec: JobSpec, start: Callable[..., subprocess.Popen[str]], how: str, status: str
) -> None:
    runner = start(how)
    runner.send_signal(signal.SIGTERM)
    save(store, spec.job_id, step=7)
    assert runner.wait(30) == ENDED_AFTER_SAVING
    assert jobs.load(store, spec.job_id).status == status
    assert messages(store, spec.job_id) == [
        f"SIGTERM: checkpoint of step 7 committed; `kitae resume {spec.job_id}` resumes the job"
    ]


@pytest.mark.parametrize("wait_s", [None, "3", "soon"])
def test_it_ends_at_once_where_there_is_no_time(
    store: Workspace, spec: JobSpec, start: Callable[..., subprocess.Popen[str]], wait_s: str | None
) -> None:
    runner = start(wait_s=wait_s)
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(30) == ENDED_AT_ONCE
    assert checkpoint_request.current(store, spec.job_id) is None
    assert jobs.load(store, spec.job_id).status == "running"


def test_a_second_signal_ends_it_at_once(
    store: Workspace, spec: JobSpec, start: Callable[..., subprocess.Popen[str]]
) -> None:
    runner = start()
    runner.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 30
    while checkpoint_request.current(store, spec.job_id) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(5) == ENDED_AFTER_SAVING
    assert jobs.load(store, spec.job_id).status == "running"


def test_a_superseded_runner_saves_nothing(
    store: Workspace, spec: JobSpec, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """It does not touch the record of its successor."""
    runner = start()
    jobs.start_attempt(store, spec)
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(60) == ENDED_AFTER_SAVING
    assert checkpoint_request.current(store, spec.job_id) is None
    record = jobs.load(store, spec.job_id)
    assert (record.attempt, record.status) == (2, "running")
