"""`kitae tracking`, and the examples of docs/tracking.md."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from ray_jobs import jobs
from ray_jobs.__main__ import cli
from ray_jobs.cli import session
from ray_jobs.spec import parse_spec
from ray_jobs.storage import Workspace
from ray_jobs.tracking import files
from serving.http.openai_types import CreateFineTuningJob
from tests.builders import make_spec
from tests.charts import chart_values, helm
from tests.repository import ROOT

PAGE = (ROOT / "docs/tracking.md").read_text(encoding="utf-8")


@pytest.fixture
def invoke(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setattr(session, "open_store", lambda *, check=True: store)
    return CliRunner()


def test_the_command_downloads_event_files_and_offline_runs(
    store: Workspace, invoke: CliRunner, tmp_path: Path
) -> None:
    job = jobs.create(store, make_spec())
    key = files.key_of(job.id, "tensorboard", files.TRAINING, "events.out.tfevents.1")
    store.put(key, b"events")
    store.put(files.key_of(job.id, "wandb", "training/attempt-1", "offline-run-1/run-1.wandb"), b"run")
    store.put(f"jobs/{job.id}/checkpoints/c", b"no tracking file")
    done = invoke.invoke(cli, ["tracking", job.id, "--dir", str(tmp_path / "runs")])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("2 file(s) in ")
    assert (tmp_path / "runs/tensorboard/training/events.out.tfevents.1").read_bytes() == b"events"
    assert (tmp_path / "runs/wandb/training/attempt-1/offline-run-1/run-1.wandb").read_bytes() == b"run"
    store.put(key, b"events and more")
    assert invoke.invoke(cli, ["tracking", job.id, "--dir", str(tmp_path / "runs")]).exit_code == 0
    assert (tmp_path / "runs/tensorboard/training/events.out.tfevents.1").read_bytes() == b"events and more"


def test_a_job_without_files_and_an_unknown_job_are_errors(store: Workspace, invoke: CliRunner) -> None:
    job = jobs.create(store, make_spec())
    assert "has no tracking files" in str(invoke.invoke(cli, ["tracking", job.id]).exception)
    assert "no job 'nobody'" in str(invoke.invoke(cli, ["tracking", "nobody"]).exception)


def test_no_file_is_written_outside_the_directory(
    store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever keys a store lists; this one refuses to write such a key."""
    key = "jobs/j/tensorboard/training/events.out"
    store.put(key, b"x")
    (found,) = store.list("jobs/j/tensorboard/")
    outside = [replace(found, key=f"jobs/j/tensorboard/{path}") for path in ("../../outside", "/../outside")]
    monkeypatch.setattr(store, "list", lambda prefix: [found, *outside] if "tensorboard" in prefix else [])
    files.download(store, "j", tmp_path / "a" / "b")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"events.out"}


def test_the_job_files_of_the_page_are_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    fields: set[str] = set()
    for document in map(yaml.safe_load, blocks):
        if "networkPolicy" in document:
            assert helm.render("kitae", chart_values.kitae(**document))
            continue
        rest: dict[str, Any] = {"name": "a", "task": "chat", "base_model": "b", "data": {"train": "rows.jsonl"}}
        fields |= set(parse_spec(rest | document).tracking.model_fields_set)
    assert fields == {"tensorboard", "mlflow", "wandb"}


def test_the_request_of_the_page_is_valid() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
    body = CreateFineTuningJob.model_validate({"model": "m", "training_file": "file-1"} | json.loads(block))
    assert body.integrations is not None
    assert body.integrations[0].wandb.project


def test_the_commands_of_the_page_exist() -> None:
    found = re.findall(r"^kitae (\w+)", PAGE, flags=re.MULTILINE)
    assert found
    assert set(found) <= set(cli.commands)
