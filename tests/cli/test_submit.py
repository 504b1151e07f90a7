"""`kitae submit`: what reaches Ray, and how the command ends. The store is real; Ray's job API is a fake."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from ray_jobs import jobs
from ray_jobs.__main__ import cli
from ray_jobs.errors import JobCancelled, JobPaused, KitaeError, MachineError
from ray_jobs.launch.launcher import Runner
from ray_jobs.launch.ray_job import RayLauncher
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from tests.launch.ray_dashboard import TOKEN, Dashboard, serve_dashboard
from tests.pipeline.builders import add_base, job_file, write_rows


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch, store_environment: dict[str, str]) -> Iterator[Dashboard]:
    with serve_dashboard() as server:
        monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", server.url)
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("KITAE_TEAM", "blue")
        yield server


@pytest.fixture
def blue(store: Workspace) -> Workspace:
    add_base(store, "small")
    write_rows(store)
    return Workspace(store, "blue")


@pytest.fixture
def spec(blue: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobSpec:
    """A job on rows in the store, with its file in a directory of its own."""
    made = job_file(blue)
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "mine.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json")))
    monkeypatch.chdir(tmp_path / "user")
    return made


def submit(*options: str) -> Result:
    return CliRunner().invoke(cli, ["submit", "mine.yaml", *options])


def ends(
    monkeypatch: pytest.MonkeyPatch, blue: Workspace, spec: JobSpec, runner: Runner, end: Callable[[jobs.Job], object]
) -> None:
    """The runner claims the job's attempt, ends it in this way, and is then in this state."""

    def follow(_: RayLauncher, runner_id: str, write: Callable[[str], object]) -> Runner:
        assert runner_id.startswith(spec.job_id)
        write("train  1/2 steps")
        end(jobs.start_attempt(blue, spec, launched=jobs.Launched(submitted=True)))
        return runner

    monkeypatch.setattr(RayLauncher, "follow", follow)


def test_ray_gets_a_command_and_no_file_however_much_lies_beside_the_job_file(
    dashboard: Dashboard, blue: Workspace, spec: JobSpec
) -> None:
    with Path("model.safetensors").open("wb") as file:
        file.truncate(10**9)
    shown = submit("--no-wait")
    assert shown.exit_code == 0, shown.output
    assert f"submitted {spec.job_id} to Ray at {dashboard.url}\n" in shown.output
    (job,) = dashboard.jobs.values()
    assert job["entrypoint"] == f"python -m ray_jobs resume {spec.job_id} --submitted"
    assert job["runtime_env"] == {"env_vars": {"KITAE_STORE": blue.uri(), "KITAE_TEAM": "blue"}}
    assert 100 < dashboard.received_bytes < 2000
    assert jobs.load(blue, spec.job_id).status == "queued"


def test_local_rows_of_any_size_go_to_the_store_and_not_to_ray(
    dashboard: Dashboard, blue: Workspace, spec: JobSpec
) -> None:
    text = "a word " * 200_000
    rows = [{"prompt": str(number), "completion": text} for number in range(3)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    document = spec.model_dump(mode="json") | {"data": {"train": "rows.jsonl"}}
    Path("mine.yaml").write_text(yaml.safe_dump(document))
    shown = submit("--no-wait")
    assert shown.exit_code == 0, shown.output
    assert dashboard.received_bytes < 2000
    assert sum(info.size_bytes for info in blue.list("datasets/")) > 3 * len(text)


def test_the_log_is_shown_and_the_exit_code_is_the_jobs(
    dashboard: Dashboard, blue: Workspace, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends(monkeypatch, blue, spec, Runner("ended", exit_code=0), lambda job: job.finish("succeeded", result={}))
    shown = submit()
    assert shown.exit_code == 0, shown.output
    assert shown.output.endswith("train  1/2 steps\n")
    ends(monkeypatch, blue, spec, Runner("ended", exit_code=9), lambda job: job.finish("failed", error="gate"))
    assert submit().exit_code == 9
    assert len(dashboard.jobs) == 2


@pytest.mark.parametrize(
    ("stop", "kind", "status"),
    [
        (lambda job: job.pause(), JobPaused, "paused"),
        (lambda job: job.finish("cancelled"), JobCancelled, "cancelled"),
        (lambda job: None, MachineError, "running"),
    ],
)
def test_a_runner_that_was_stopped_from_outside_is_an_error_that_says_how_to_resume(
    dashboard: Dashboard, blue: Workspace, spec: JobSpec, monkeypatch: pytest.MonkeyPatch,
    stop: Callable[[jobs.Job], object], kind: type[KitaeError], status: str,
) -> None:  # fmt: skip
    ends(monkeypatch, blue, spec, Runner("ended", "Job was stopped.\nlog", exit_code=-9), stop)
    shown = submit()
    assert isinstance(shown.exception, kind)
    assert f"the job is {status}: the same `kitae submit` resumes it" in str(shown.exception)
    assert shown.exception.details == ("Job was stopped.",)


def test_a_runner_that_could_not_begin_fails_the_job_with_what_the_cluster_needs(
    dashboard: Dashboard, blue: Workspace, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RayLauncher, "follow", lambda *_: Runner("ended", exit_code=1))
    shown = submit()
    assert isinstance(shown.exception, MachineError)
    assert "exit code 1" in str(shown.exception)
    assert "needs Kitae installed" in str(shown.exception)
    record = jobs.load(blue, spec.job_id)
    assert (record.status, record.error) == ("failed", str(shown.exception))


def test_an_interrupt_ends_the_log_and_says_how_to_end_the_job(
    dashboard: Dashboard, blue: Workspace, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Runner:
        raise KeyboardInterrupt

    monkeypatch.setattr(RayLauncher, "follow", interrupted)
    shown = submit()
    assert shown.exit_code == 130
    assert shown.output.endswith(f"the job continues: `kitae cancel {spec.job_id}` ends it\n")
    assert jobs.load(blue, spec.job_id).status == "queued"


def test_a_cluster_that_does_not_answer_is_an_error_before_anything_is_written(
    dashboard: Dashboard, blue: Workspace, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:9")
    shown = submit()
    assert isinstance(shown.exception, MachineError)
    assert "set RAY_DASHBOARD_ADDRESS" in str(shown.exception)
    assert {info.key.partition("/")[0] for info in blue.root.list()} == {"catalogue", "files", "layout.json"}


def test_a_refused_submission_fails_a_queued_job_and_leaves_a_running_one(
    dashboard: Dashboard, blue: Workspace, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MachineError("Ray answered 500")

    monkeypatch.setattr(RayLauncher, "launch", refuse)
    assert isinstance(submit().exception, MachineError)
    assert jobs.load(blue, spec.job_id).error == "Ray answered 500"
    jobs.start_attempt(blue, spec)
    shown = submit()
    assert shown.output.startswith(f"note: job {spec.job_id} already runs: attempt 1 by ")
    assert jobs.load(blue, spec.job_id).status == "running"


def test_a_connection_that_stays_lost_leaves_the_job(
    dashboard: Dashboard, blue: Workspace, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> Runner:
        raise MachineError("Ray does not answer")

    monkeypatch.setattr(RayLauncher, "follow", lost)
    shown = submit()
    assert f"the job may run: `kitae status {spec.job_id}` shows it" in str(shown.exception)
    assert jobs.load(blue, spec.job_id).status == "queued"
