"""The command line: start-up time, help, errors and exit codes."""

from __future__ import annotations

import json
import os
import re
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner

from ray_jobs import jobs, pipeline, registry
from ray_jobs.__main__ import cli
from ray_jobs.cli import session
from ray_jobs.errors import DataError, JobCancelled, JobPaused, JobSuperseded, KitaeError
from ray_jobs.jobs import checkpoint_request, runs
from ray_jobs.registry.model import Lineage
from ray_jobs.spec import JobSpec, load_spec
from ray_jobs.storage import Workspace
from tests.builders import make_spec
from tests.repository import ROOT

HEAVY = {"boto3", "deepspeed", "peft", "pydantic", "ray", "torch", "transformers", "vllm"}


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        if not command.hidden:
            yield " ".join((*path, name)), command


ALL = dict(commands())


@pytest.fixture
def invoke(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """A runner whose commands work on the test's own store."""

    def open_store(*, check: bool = True) -> Workspace:
        return store

    monkeypatch.setattr(session, "open_store", open_store)
    return CliRunner()


def kitae(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ray_jobs", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def test_help_starts_quickly() -> None:
    times_s = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert kitae("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time, which other processes do not affect.
        times_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times_s) < 0.5


def test_starting_imports_no_heavy_framework() -> None:
    code = "import sys, ray_jobs.__main__; print(*sorted(name.split('.')[0] for name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert HEAVY & set(loaded.stdout.split()) == set()


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_command_has_help_with_an_example(name: str) -> None:
    shown = CliRunner().invoke(cli, [*name.split(), "--help"], prog_name="kitae")
    assert shown.exit_code == 0
    assert "Example" in shown.output
    assert f"kitae {name}" in shown.output


def test_the_readme_names_every_command_and_no_others() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"kitae ([a-z]+)\b", text))
    assert named == set(cli.commands)


def test_an_unknown_command_suggests_the_nearest() -> None:
    shown = kitae("statsu")
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: No such command 'statsu'. Did you mean 'status'?\n")


def test_a_wrong_job_file_is_reported_in_full_without_a_traceback(tmp_path: Path) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text("name: greeter\ntask: chat\nbase_model: a/b\ndata: {train: x.jsonl}\ntraning: {epochs: 0}\n")
    shown = kitae("run", str(spec))
    assert shown.returncode == 2
    assert shown.stderr.startswith(f"error: {spec}: 1 field(s) are wrong\n  - traning: unknown field; did you mean")
    assert "Traceback" not in shown.stderr
    assert "Traceback" in kitae("--debug", "run", str(spec)).stderr


def test_a_missing_job_file() -> None:
    shown = kitae("plan", "nowhere.yaml")
    assert (shown.returncode, shown.stderr) == (2, "error: no job file at nowhere.yaml\n")


def test_an_error_wrapped_by_ray_is_reported_as_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    class Wrapped(Exception):
        cause = DataError("2 rows are malformed", details=["line 3: no answer", "line 9: not JSON"])

    assert raised_by(Wrapped("a long remote traceback")) == DataError.exit_code
    assert capsys.readouterr().err == "error: 2 rows are malformed\n  - line 3: no answer\n  - line 9: not JSON\n"


def test_an_unexpected_error_is_named_and_asks_for_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert raised_by(ZeroDivisionError("division by zero")) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: unexpected ZeroDivisionError: division by zero\n")
    assert "--debug" in printed


def test_an_interrupt_is_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert raised_by(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def raised_by(error: BaseException) -> int:
    """The exit code of a command that raises this."""

    @click.command()
    def fails() -> None:
        raise error

    arguments, sys.argv = sys.argv, ["kitae"]
    try:
        return session.run(fails, prog_name="kitae")
    finally:
        sys.argv = arguments


def test_every_error_has_its_own_exit_code_or_its_parents() -> None:
    def kinds(cls: type[KitaeError]) -> Iterator[type[KitaeError]]:
        yield cls
        for child in cls.__subclasses__():
            yield from kinds(child)

    families = [cls for cls in kinds(KitaeError) if cls.__base__ is KitaeError]
    assert len({cls.exit_code for cls in families}) == len(families)


def test_status_without_jobs_names_the_command_that_starts_one(invoke: CliRunner) -> None:
    assert "no jobs in s3://" in invoke.invoke(cli, ["status"]).output


def test_status_of_all_and_of_one(invoke: CliRunner, store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    job.event("info", "ingest: 224 rows", {"rows": 224})
    job.finish_stage("ingest", {}, {"dataset": "d"}, 3.2)
    listed = invoke.invoke(cli, ["status"]).output
    assert job.id in listed
    assert "running" in listed
    shown = invoke.invoke(cli, ["status", job.id]).output
    assert "running  attempt 1" in shown
    assert "ingest    3s" in shown
    assert "ingest: 224 rows" in shown
    job.finish("failed", error="NaN loss at step 3\n  - lower the learning rate")
    failed = invoke.invoke(cli, ["status", job.id]).output
    assert "error     NaN loss at step 3\n              - lower" in failed
    watched = invoke.invoke(cli, ["status", "--watch"])
    assert watched.exit_code == 1
    assert "ingest: 224 rows  (rows 224)" in watched.output


@pytest.mark.parametrize(
    "change",
    [
        {"result": {"base": 1}},
        {"result": {"base": {"loss": "x"}, "tuned": {}}},
        {"error": "\x1b[2Jcleared"},
        {"attempt": "many"},
        {"id": "another"},
        {"created_at": "2026-01-01"},
    ],
)
def test_a_record_that_no_job_writes_does_not_stop_the_list(
    invoke: CliRunner, store: Workspace, change: dict[str, Any]
) -> None:
    good, bad = jobs.create(store, make_spec("good")), jobs.create(store, make_spec("bad"))
    key = f"jobs/{bad.id}/job.json"
    store.put_json(key, store.get_json(key) | {"finished_at": "2026-01-01T00:00:00Z"} | change)
    shown = invoke.invoke(cli, ["status"])
    assert shown.exit_code == 0, shown.output
    assert good.id in shown.output
    assert "\x1b" not in shown.output


def test_training_metrics_are_shown_once(invoke: CliRunner, store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    job.event("info", "step 3 of 9: training loss 2.0000", {"step": 3, "train_loss": 2.0}, kind="metrics")
    shown = invoke.invoke(cli, ["status", job.id, "--events"]).output
    assert "#1  step 3 of 9: training loss 2.0000\n" in shown


def test_status_as_json(invoke: CliRunner, store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    job.event("info", "hello")
    (listed,) = json.loads(invoke.invoke(cli, ["status", "--json"]).output)
    assert (listed["id"], listed["status"]) == (job.id, "running")
    shown = json.loads(invoke.invoke(cli, ["status", job.id, "--json", "--events"]).output)
    assert [event["message"] for event in shown["events"]] == ["hello"]


def test_pause_stops_the_job_and_its_watchers(invoke: CliRunner, store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    assert invoke.invoke(cli, ["pause", job.id]).output == f"{job.id}: paused\n"
    assert jobs.load(store, job.id).status == "paused"
    assert f"{job.id}  paused" in invoke.invoke(cli, ["status", job.id, "--watch"]).output
    assert invoke.invoke(cli, ["cancel", job.id]).output == f"{job.id}: cancelled\n"


def test_cancel_ends_the_job_and_an_unknown_one_is_an_error(invoke: CliRunner, store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    assert invoke.invoke(cli, ["cancel", job.id]).output == f"{job.id}: cancelled\n"
    assert jobs.load(store, job.id).status == "cancelled"
    unknown = invoke.invoke(cli, ["cancel", "gre"])
    assert isinstance(unknown.exception, KitaeError)
    assert job.id in str(unknown.exception)


@pytest.mark.parametrize(("arguments", "workers"), [([], 1), (["--workers", "3"], 3)])
def test_resume_uses_the_stored_spec_and_may_change_the_workers(
    invoke: CliRunner, store: Workspace, monkeypatch: pytest.MonkeyPatch, arguments: list[str], workers: int
) -> None:
    ran: list[JobSpec] = []

    def run(store: Workspace, spec: JobSpec, *, job_id: str, launched: jobs.Launched | None) -> None:
        assert (job_id, launched) == (job.id, None)
        ran.append(spec)
        raise DataError("far enough")

    monkeypatch.setattr(pipeline, "run", run)
    job = jobs.start_attempt(store, make_spec())
    invoke.invoke(cli, ["resume", job.id, *arguments])
    (spec,) = ran
    assert spec.compute.workers == workers
    assert (spec.job_id, spec.training) == (job.id, make_spec().training)


def test_a_launched_runner_without_work_exits_with_0(invoke: CliRunner, store: Workspace) -> None:
    """A launcher that retries failures would let it supersede its successor."""
    job = jobs.start_attempt(store, make_spec())
    jobs.request_cancel(store, job.id)
    done = invoke.invoke(cli, ["resume", job.id, "--launched"])
    assert done.exit_code == 0, done.output
    assert f"job {job.id} is over (cancelled)" in done.output
    assert jobs.load(store, job.id).attempt == 1


@pytest.mark.parametrize("stopped", [JobCancelled, JobPaused, JobSuperseded])
def test_a_stopped_launched_run_exits_with_0(
    invoke: CliRunner, monkeypatch: pytest.MonkeyPatch, stopped: type[KitaeError]
) -> None:
    """KubeRay restarts a failed one, and `run` would resume a cancelled job."""

    def run(*_: object, **__: object) -> None:
        raise stopped("the job was stopped")

    monkeypatch.setattr(pipeline, "run", run)
    arguments = ["run", str(ROOT / "examples/faq_chat.yaml")]
    done = invoke.invoke(cli, [*arguments, "--launched"])
    assert (done.exit_code, done.output) == (0, "the job was stopped\n")
    assert isinstance(invoke.invoke(cli, arguments).exception, stopped)


@pytest.mark.parametrize("command", ["run", "resume"])
def test_a_launched_runner_of_a_succeeded_job_exits_with_0_before_it_takes_a_worker(
    invoke: CliRunner, store: Workspace, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """KubeRay starts it when its dashboard did not answer in time at the job's end."""

    def run(*_: object, **__: object) -> None:
        raise AssertionError("the job ran again")

    monkeypatch.setattr(pipeline, "run", run)
    path = ROOT / "examples/faq_chat.yaml"
    job = jobs.start_attempt(store, load_spec(path))
    job.finish("succeeded", result={})
    done = invoke.invoke(cli, [command, str(path) if command == "run" else job.id, "--launched"])
    assert (done.exit_code, done.output) == (0, f"job {job.id} has succeeded already: there is nothing to do\n")
    assert jobs.load(store, job.id).attempt == 1
    with pytest.raises(AssertionError, match="ran again"):  # a user's own command does run it
        invoke.invoke(cli, [command, str(path) if command == "run" else job.id], catch_exceptions=False)


def test_status_shows_a_job_whose_machines_were_taken_away(invoke: CliRunner, store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    job.event("info", "attempt 1 started")
    assert f"{job.id}  running  attempt 1" in invoke.invoke(cli, ["status", job.id]).output
    checkpoint_request.request(store, job.id)
    shown = invoke.invoke(cli, ["status", job.id]).output
    assert f"{job.id}  interrupted  attempt 1" in shown
    assert "it resumes on others" in shown
    assert "interrupted" in invoke.invoke(cli, ["status"]).output
    jobs.start_attempt(store, make_spec())
    assert f"{job.id}  running  attempt 2" in invoke.invoke(cli, ["status", job.id]).output


def test_resume_needs_a_worker_and_a_known_job(invoke: CliRunner, store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    assert "0 is not in the range x>=1" in invoke.invoke(cli, ["resume", job.id, "--workers", "0"]).output
    assert job.id in str(invoke.invoke(cli, ["resume", "gre"]).exception)


def test_schema_prints_the_schema() -> None:
    assert json.loads(CliRunner().invoke(cli, ["schema"]).output)["title"] == "JobSpec"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    assert "_KITAE_COMPLETE" in CliRunner().invoke(cli, ["completion", shell]).output


def complete(*words: str) -> list[str]:
    from click.shell_completion import ShellComplete

    found = ShellComplete(cli, {}, "kitae", "_KITAE_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return [item.value for item in found]


def test_commands_and_job_ids_are_completed(invoke: CliRunner, store: Workspace) -> None:
    job = jobs.create(store, make_spec())
    assert complete("sta") == ["status"]
    assert complete("status", "gre") == [job.id]
    assert complete("cancel", "other") == []


def test_completion_without_a_store_stays_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITAE_STORE", "nonsense")
    assert complete("status", "") == []


@pytest.fixture
def registered(store: Workspace, tmp_path: Path) -> str:
    """A model `greeter` with two versions, the first its champion."""
    for number, loss in enumerate((1.5, 1.25), start=1):
        directory = tmp_path / f"version-{number}"
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        (directory / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
        lineage = Lineage(
            dataset_digest="d" * 16,
            base_digest="b" * 64,
            spec=make_spec(),
            code_version="0.1.0",
            job_id=make_spec().job_id,
            metrics={"loss": loss, "base_loss": 2.0},
        )
        registry.register(store, "greeter", directory, lineage=lineage, lineage_digest=str(number) * 64)
    registry.set_alias(store, "greeter", "champion", "1")
    return "greeter"


def test_models_lists_names_versions_and_details(invoke: CliRunner, registered: str) -> None:
    (row,) = [line for line in invoke.invoke(cli, ["models"]).output.splitlines() if registered in line]
    assert "champion → 1" in row
    shown = invoke.invoke(cli, ["models", registered]).output
    assert "loss 2 → 1.25" in shown
    one = json.loads(invoke.invoke(cli, ["models", f"{registered}@champion"]).output)
    assert (one["version"], one["aliases"], one["lineage"]["job_id"]) == ("1", ["champion"], make_spec().job_id)
    everything = json.loads(invoke.invoke(cli, ["models", "--json"]).output)
    assert [version["version"] for version in everything[registered]] == ["1", "2"]
    unknown = invoke.invoke(cli, ["models", "greter"])
    assert "did you mean 'greeter'" in str(unknown.exception)


def test_models_without_models_names_the_command_that_trains_one(invoke: CliRunner) -> None:
    assert "`kitae run SPEC` trains one" in invoke.invoke(cli, ["models"]).output


def test_aliases_move_and_versions_are_deleted_after_confirmation(invoke: CliRunner, registered: str) -> None:
    assert invoke.invoke(cli, ["models", "alias", registered, "champion", "2"]).exit_code == 0
    assert invoke.invoke(cli, ["models", "delete", f"{registered}@1"], input="n\n").exit_code != 0
    assert invoke.invoke(cli, ["models", "delete", f"{registered}@1"], input="y\n").exit_code == 0
    assert [
        version["version"] for version in json.loads(invoke.invoke(cli, ["models", registered, "--json"]).output)
    ] == ["2"]
    pointed_at = invoke.invoke(cli, ["models", "delete", "--yes", f"{registered}@2"])
    assert "champion" in str(pointed_at.exception)
    assert invoke.invoke(cli, ["models", "delete", registered]).exit_code == 2


def test_model_names_versions_and_aliases_are_completed(invoke: CliRunner, registered: str) -> None:
    assert complete("deploy", "gr") == [registered]
    assert sorted(complete("deploy", "greeter@")) == ["greeter@1", "greeter@2", "greeter@champion"]
    assert complete("models", "gre") == [registered]
    assert complete("models", "al") == ["alias"]


def test_status_shows_a_lost_runner(invoke: CliRunner, store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    silent = datetime.now(UTC) - timedelta(seconds=runs.LOST_AFTER_S + 60)
    run = runs.JobRun(
        job=job.id, attempt=1, model="greeter", workers=1, gpus_per_worker=0, started_at=silent, at=silent
    )
    runs.RUNS.create(store, run.name, run)
    assert "lost" in invoke.invoke(cli, ["status"]).output
    shown = invoke.invoke(cli, ["status", job.id, "--watch"])  # it does not wait forever
    assert shown.exit_code == 1
    assert "gives no sign of life" in shown.output
    assert json.loads(invoke.invoke(cli, ["status", "--json"]).output)[0]["status"] == "lost"


def test_resume_of_a_job_of_the_api_asks_the_endpoint(
    invoke: CliRunner, store: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its id in the API, for its team, so that the API reports what happens."""
    blue, asked = Workspace(store, "blue"), list[httpx.Request]()
    jobs.create(blue, make_spec("ftjob-1", team="blue"))

    def answer(url: str, headers: dict[str, str], timeout: float) -> httpx.Response:
        asked.append(httpx.Request("POST", url, headers=headers))
        return httpx.Response(200, json={"status": "queued"})

    monkeypatch.setattr("httpx.post", answer)
    monkeypatch.setenv("KITAE_ENDPOINT_URL", "https://kitae.example")
    monkeypatch.delenv("KITAE_API_KEY", raising=False)
    assert "KITAE_API_KEY" in str(invoke.invoke(cli, ["resume", "ftjob-1"]).exception)
    monkeypatch.setenv("KITAE_API_KEY", "k")
    assert invoke.invoke(cli, ["resume", "ftjob-1"]).output == "ftjob-1: queued\n"
    (request,) = asked
    assert str(request.url) == "https://kitae.example/v1/fine_tuning/jobs/ftjob-1/resume"
    assert request.headers["openai-project"] == "blue"
