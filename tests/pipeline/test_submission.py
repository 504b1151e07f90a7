"""A submitted job: what its runner, which may be on another machine, finds in the store instead of local files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import jobs, pipeline
from ray_jobs.errors import DataError, JobCancelled, ModelError, RegistryError
from ray_jobs.jobs import Launched
from ray_jobs.pipeline.outputs import BaseCopy, Flow
from ray_jobs.pipeline.stage_work import StageContext
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from tests.models import tiny_models
from tests.pipeline.builders import FakeStages, job_file, stage_keys

BY_SUBMIT = Launched(submitted=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's directory, with rows and a base model."""
    directory = tmp_path / "here"
    tiny_models.save_causal(directory / "models" / "llama")
    write_local_rows(directory, 40)
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The runner's directory."""
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    return directory


def write_local_rows(directory: Path, count: int) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in tiny_models.chat_rows(count)]
    (directory / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")


def local_job(store: Workspace, **fields: Any) -> JobSpec:
    return job_file(store, **{"base_model": "models/llama", "data": {"train": "rows.jsonl"}} | fields)


def test_a_runner_elsewhere_trains_on_the_submitted_rows_and_base(
    stages: FakeStages, store: Workspace, here: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = local_job(store)
    record = pipeline.prepare(store, spec)
    assert (record.id, record.status, record.attempt) == (spec.job_id, "queued", 0)
    assert set(record.submitted) == {"rows.jsonl", "models/llama"}
    assert stages.ran == ["dataset", "base"]
    planned = {stage.name: stage.action for stage in pipeline.plan(store, spec).stages}
    assert planned["dataset"].endswith("by `kitae submit`")

    monkeypatch.chdir(elsewhere)
    write_local_rows(elsewhere, 8)  # another file of the same name is not the submitted one
    stages.ran.clear()
    pipeline.run(store, spec, launched=BY_SUBMIT)
    assert stages.ran == ["encode", "train", "evaluate", "parity", "register", "deploy"]

    (elsewhere / "rows.jsonl").unlink()
    stages.ran.clear()
    pipeline.run(store, spec)  # `kitae resume` on a machine without the files
    assert stages.ran == ["deploy"]
    assert [stage.action for stage in pipeline.plan(store, spec).stages if "will run" in stage.action] == ["will run"]


def test_a_run_where_the_files_are_reads_them_anew(
    stages: FakeStages, store: Workspace, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = local_job(store)
    pipeline.prepare(store, spec)
    write_local_rows(here, 30)
    stages.ran.clear()
    pipeline.run(store, spec)
    assert stages.ran[:2] == ["dataset", "encode"]


def test_submitting_again_sends_only_what_changed(stages: FakeStages, store: Workspace, here: Path) -> None:
    spec = local_job(store)
    before = pipeline.prepare(store, spec).submitted
    write_local_rows(here, 30)
    stages.ran.clear()
    after = pipeline.prepare(store, spec).submitted
    assert stages.ran == ["dataset"]
    assert {path for path in after if after[path] != before[path]} == {"rows.jsonl"}


def test_sources_in_the_store_are_left_to_the_runner(stages: FakeStages, store: Workspace) -> None:
    assert pipeline.prepare(store, job_file(store)).submitted == {}
    assert stages.ran == []


@pytest.mark.parametrize("both", [True, False])
def test_held_out_rows_are_submitted_with_the_training_rows(
    stages: FakeStages, store: Workspace, here: Path, both: bool
) -> None:
    train = "rows.jsonl" if both else store.uri("files/rows.jsonl")
    (here / "held_out.jsonl").write_text((here / "rows.jsonl").read_text(encoding="utf-8").splitlines()[0])
    record = pipeline.prepare(store, local_job(store, data={"train": train, "held_out": "held_out.jsonl"}))
    assert set(record.submitted) == {"models/llama", "held_out.jsonl"} | ({"rows.jsonl"} if both else set())
    assert stages.ran == ["dataset", "base"]


def test_what_plan_refuses_and_what_cannot_be_read_is_refused_before_a_record_is_written(
    stages: FakeStages, store: Workspace, here: Path
) -> None:
    (here / "broken.jsonl").write_text('{"messages": 1}\n')
    (here / "models" / "empty").mkdir()
    for error, fields in (
        (DataError, {"data": {"train": "broken.jsonl"}}),
        (DataError, {"data": {"train": "missing.jsonl"}}),
        (ModelError, {"base_model": "models/empty"}),
    ):
        spec = local_job(store, **fields)
        with pytest.raises(error):
            pipeline.prepare(store, spec)
        assert not jobs.exists(store, spec.job_id)
    pipeline.prepare(store, local_job(store))  # claims the name
    with pytest.raises(RegistryError):
        pipeline.prepare(Workspace(store, "blue"), local_job(store))


def test_a_job_that_runs_continues_until_the_submitted_runner_takes_over(
    stages: FakeStages, store: Workspace, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = local_job(store)
    old = jobs.start_attempt(store, spec)
    record = pipeline.prepare(store, spec)
    assert (record.status, record.attempt) == ("running", 1)
    old.check(fresh=True)
    assert "note:" not in capsys.readouterr().out
    pipeline.run(store, spec, launched=BY_SUBMIT)
    assert f"note: job {spec.job_id} already runs: attempt 1 by {old.record.owner}" in capsys.readouterr().out
    pipeline.run(store, spec)
    assert "note:" not in capsys.readouterr().out  # it had ended


@pytest.mark.parametrize("status", ["failed", "succeeded", "cancelled"])
def test_a_job_that_is_over_is_queued_again_and_can_be_cancelled_before_it_runs(
    stages: FakeStages, store: Workspace, status: Any
) -> None:
    spec = job_file(store)
    job = jobs.start_attempt(store, spec)
    job.finish(status, error="it broke" if status == "failed" else None)
    record = pipeline.prepare(store, spec)
    assert (record.status, record.error, record.attempt) == ("queued", None, 1)
    jobs.request_cancel(store, spec.job_id)
    with pytest.raises(JobCancelled):
        pipeline.run(store, spec, launched=BY_SUBMIT)
    assert stages.ran == []


def test_a_base_of_two_in_a_search_is_submitted_too(
    stages: FakeStages, store: Workspace, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []

    def copy(flow: Flow, context: StageContext, base_model: str) -> BaseCopy:
        copied.append(base_model)
        return BaseCopy(digest=base_model, name="x", key="bases/x")

    monkeypatch.setattr("ray_jobs.pipeline.stage_work.copy_base", copy)
    space = {"base_model": ["small", "models/llama"]}
    spec = local_job(store, base_model="small", search={"trials": 2, "space": space})
    assert set(pipeline.prepare(store, spec).submitted) == {"rows.jsonl", "models/llama"}
    assert copied == ["models/llama"]  # the other one is the catalogue's
    assert len(stage_keys(store, spec.job_id, "base")) == 1
