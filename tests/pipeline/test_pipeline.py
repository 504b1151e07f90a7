"""The order of the stages, what a resumed job skips and what a stopped one leaves; the heavy stages are fakes."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date

import pytest

from ray_jobs import jobs, pipeline
from ray_jobs.errors import GateError, JobCancelled, JobError, JobPaused, TrainingError, WorkerLost
from ray_jobs.quota import bookings
from ray_jobs.storage import Workspace
from ray_jobs.tenancy import usage
from tests.pipeline.builders import FakeStages, job_file, stage_keys

ALL = ["dataset", "base", "encode", "train", "evaluate", "parity", "register", "deploy"]


def test_a_checkpoint_is_published_before_the_model_is_deployed(stages: FakeStages, store: Workspace) -> None:
    spec = job_file(store, training={"method": "full", "publish_checkpoints": True})
    result = pipeline.run(store, spec)
    assert stages.ran == [*ALL[:-1], "publish", "deploy"]
    assert [stage.name for stage in result.stages] == stages.ran
    assert stages.aliases == {"champion": "1", "ckpt-step-4": "1"}
    record = jobs.load(store, spec.job_id)
    assert record.result is not None
    assert record.result["checkpoints"] == [
        {"step": 4, "version": "1", "train_loss": 1.0, "valid_loss": 0.25, "valid_mean_token_accuracy": 0.5}
    ]
    assert record.result["trained_tokens"] == 640
    assert store.get(record.result["metrics_csv"]).decode().splitlines()[-1] == "4,1.0,,0.25,0.5"
    assert "checkpoints 4, as greeter@ckpt-step-N" in result.as_text()

    stages.ran.clear()
    again = pipeline.run(store, spec)
    assert stages.ran == ["deploy"]
    assert again.checkpoints == result.checkpoints


def test_no_checkpoint_is_published_by_default(stages: FakeStages, store: Workspace) -> None:
    result = pipeline.run(store, job_file(store))
    assert stages.ran == ALL
    assert "publish" not in [stage.name for stage in result.stages]
    assert stages.aliases == {"champion": "1"}
    assert result.checkpoints == ()
    assert "checkpoints" not in result.as_text()


@pytest.mark.parametrize(
    ("request_stop", "raised", "status"),
    [(jobs.request_pause, JobPaused, "paused"), (jobs.request_cancel, JobCancelled, "cancelled")],
)
def test_a_stopped_job_resumes_at_the_stage_it_stopped_in(
    stages: FakeStages,
    store: Workspace,
    request_stop: Callable[[Workspace, str], object],
    raised: type[JobError],
    status: str,
) -> None:
    spec = job_file(store)
    stages.during["evaluate"] = lambda: request_stop(store, spec.job_id)
    with pytest.raises(raised):
        pipeline.run(store, spec)
    assert stages.ran[-1] == "evaluate"
    record = jobs.load(store, spec.job_id)
    assert (record.status, record.error) == (status, None)
    written = [event for _, event in jobs.events(store, spec.job_id)]
    assert (written[-1].level, status in written[-1].message) == ("warning", True)

    stages.ran.clear()
    stages.during.clear()
    pipeline.run(store, spec)
    assert stages.ran == ["evaluate", "parity", "register", "deploy"]
    assert jobs.load(store, spec.job_id).status == "succeeded"


def test_the_gate_ends_a_job_also_when_its_evaluation_is_recorded(stages: FakeStages, store: Workspace) -> None:
    spec = job_file(store)
    stages.tuned_loss = 3.0
    for ran in (ALL[:5], []):
        stages.ran.clear()
        with pytest.raises(GateError, match=r"test loss 3\.0000 is not below that of the base model, 2\.0000"):
            pipeline.run(store, spec)
        assert stages.ran == ran
    assert jobs.load(store, spec.job_id).status == "failed"


def test_a_search_over_two_bases_registers_the_best_one(stages: FakeStages, store: Workspace) -> None:
    """Base and rows are prepared once a base; `tune` ends after the search, and `run` resumes from there."""
    spec = job_file(store, search={"trials": 2, "space": {"base_model": ["small", "large"]}})
    found = pipeline.tune(store, spec)
    assert stages.ran == ["dataset", "base", "encode", "base", "encode", "search"]
    assert found.params == {"base_model": "large"}
    stages.ran.clear()
    result = pipeline.run(store, spec)
    assert stages.ran == ["evaluate", "parity", "register", "deploy"]
    assert (result.base_name, result.trained_tokens) == ("large", 100)
    record = jobs.load(store, spec.job_id)
    assert record.result is not None
    assert record.result["search"] == {
        "run": "0000-0",
        "params": {"base_model": "large"},
        "trials": 2,
        "page": "page.html",
    }
    assert "search      2 trials; the best has base_model large" in result.as_text()


def test_a_search_that_retrains_counts_the_tokens_of_both(stages: FakeStages, store: Workspace) -> None:
    spec = job_file(store, search={"trials": 2, "space": {"base_model": ["small", "large"]}, "retrain": True})
    assert pipeline.run(store, spec).trained_tokens == 740
    assert stages.ran[-6:] == ["search", "train", "evaluate", "parity", "register", "deploy"]


def test_a_record_that_cannot_be_read_counts_as_none(stages: FakeStages, store: Workspace) -> None:
    """A field that this version needs may be missing in a record of another version."""
    spec = job_file(store)
    pipeline.run(store, spec)
    (key,) = stage_keys(store, spec.job_id, "evaluate")
    document = store.get_json(key)
    del document["outputs"]["candidate_key"]
    store.put_json(key, document)
    stages.ran.clear()
    pipeline.run(store, spec)
    assert stages.ran == ["evaluate", "deploy"]


def test_a_stage_that_loses_a_worker_is_tried_again_with_a_bound(
    stages: FakeStages, store: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.pipeline.pipeline._RETRY_AFTER_S", 0.0)
    spec, left = job_file(store), 2

    def lose() -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise WorkerLost("a worker's machine died")

    stages.during["train"] = lose
    pipeline.run(store, spec)
    assert stages.ran.count("train") == 3
    assert stages.ran.count("encode") == 1
    said = [event.message for _, event in jobs.events(store, spec.job_id) if "tried again" in event.message]
    assert said == [f"stage train: a worker's machine died; it is tried again ({n} of 3)" for n in (2, 3)]

    stages.ran.clear()
    left, other = 99, job_file(store, training={"epochs": 9})
    with pytest.raises(WorkerLost):
        pipeline.run(store, other)
    assert stages.ran.count("train") == 3
    record = jobs.load(store, other.job_id)
    assert (record.status, record.accident) == ("failed", True)


def test_an_error_of_the_jobs_own_is_not_tried_again(stages: FakeStages, store: Workspace) -> None:
    def fail() -> None:
        raise TrainingError("the loss is wrong")

    stages.during["train"] = fail
    with pytest.raises(TrainingError, match="loss is wrong"):
        pipeline.run(store, job_file(store))
    assert stages.ran.count("train") == 1
    assert not jobs.load(store, job_file(store).job_id).accident


def test_the_hours_of_a_run_are_booked_to_its_team(stages: FakeStages, store: Workspace) -> None:
    """However the job is started: `kitae run`, `ray job submit` and Helm walk this way."""
    blue = Workspace(store, "blue")
    spec = job_file(store)
    pipeline.run(blue, spec)
    bookings.book(store, time.time())
    (row,) = usage.read(store.root, None, date(2000, 1, 1), date(2999, 1, 1))
    assert (row.team, row.model, row.kind, row.requests) == ("blue", spec.name, "training", 1)
    assert row.prompt_tokens == 640
    assert row.worker_seconds > 0
