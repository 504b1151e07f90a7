"""The train stage and its trackers: every reported step arrives, and the last loss is the training's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import jobs
from ray_jobs.data.dataset import Dataset
from ray_jobs.errors import TrainingError
from ray_jobs.pipeline import stage_work
from ray_jobs.pipeline.outputs import BaseCopy, EncodedRows, Flow
from ray_jobs.pipeline.stage_work import StageContext
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.tracking import files
from ray_jobs.tracking.job_run import track
from ray_jobs.training import ray_train, ray_workers
from ray_jobs.training.inputs import TrainHooks, TrainInputs, TrainOutcome
from tests.builders import make_spec
from tests.models import tiny_models
from tests.tracking import readers
from tests.training import harness


def outcome_of(loss: float, **fields: Any) -> TrainOutcome:
    return TrainOutcome(
        **{
            "stopped": "finished", "step": 3, "best_step": 3, "best_loss": 0.5, "checkpoint": "c/step-3",
            "final_train_loss": loss, "tokens": 5, "seconds": 1.0, "tokens_per_s": 2.0, "checkpoint_stall_s": 0.0,
            "peak_memory_bytes": 1, "resumed_from_step": 0, "workers": 1,
        } | fields
    )  # fmt: skip


def flow_of(spec: JobSpec) -> Flow:
    flow = Flow(spec).with_output(
        Dataset, "", Dataset(digest="d", task=spec.task, train_rows=9, validation_rows=1, test_rows=1)
    )
    flow = flow.with_output(BaseCopy, spec.base_model, BaseCopy(digest="b", name="b", key="bases/b"))
    return flow.with_output(EncodedRows, spec.base_model, EncodedRows(test_kept=(0,), key="e", labels=()))


def test_the_stage_gives_its_trackers_every_reported_step(
    store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = iter([True, False])

    def train_on_workers(*_: Any, report: ray_workers.ReportProgress, **__: Any) -> TrainOutcome:
        fails, began = next(attempts), 0.0
        for step in (1, 2) if fails else (2, 3):
            began = 0.0 if fails else 1.0
            report(step, 3, "steps", {"loss": 1.0 / step, "tokens_per_s": 5.0, "began_at_step": began})
        if fails:
            raise TrainingError("workers were lost")
        return outcome_of(1 / 3)

    monkeypatch.setattr(ray_workers, "connect", lambda: None)
    monkeypatch.setattr(ray_train, "train_on_workers", train_on_workers)
    flow = flow_of(make_spec())
    with pytest.raises(TrainingError):
        stage_work.train(flow, StageContext(jobs.start_attempt(store, flow.job_spec), lambda *_, **__: None))
    job = jobs.start_attempt(store, flow.job_spec)
    outcome = stage_work.train(flow, StageContext(job, lambda *_, **__: None))
    files.download(store, job.id, tmp_path)
    events = readers.events(tmp_path / "tensorboard")
    assert events["loss"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(outcome.final_train_loss))]
    assert events["tokens_per_s"] == [(1, 5.0), (2, 5.0), (3, 5.0)]


@dataclass(frozen=True)
class Case:
    """A tracked training; `stop_after`: steps of its first attempt."""

    store: Workspace
    inputs: TrainInputs
    stop_after: int


def run_case(case: Case) -> TrainOutcome:
    """Train in two attempts of one job, with its trackers, in the training process."""
    from ray_jobs.training.trainer import train

    spec, calls = case.inputs.spec, iter(range(10_000))

    def attempt(*, stops: bool) -> TrainOutcome:
        job = jobs.start_attempt(case.store, spec)
        with track(job, spec, spec.tracking, "d") as record:
            hooks = TrainHooks(
                on_progress=lambda progress: record(progress.step, progress.metrics),
                should_stop=lambda: stops and next(calls) + 1 >= case.stop_after,
            )
            return train(case.inputs, case.store, hooks)

    attempt(stops=True)
    return attempt(stops=False)


@pytest.mark.heavy
@pytest.mark.usefixtures("store_environment")
def test_a_real_training_leaves_its_losses_in_every_tracker(store: Workspace, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = {"mlflow": {"tracking_uri": uri}, "wandb": {"project": "p", "mode": "offline"}}
    spec = harness.make_spec(tracking=tracking, compute={"workers": 1})
    base = tiny_models.save_causal(tmp_path / "base")
    rows, held_out = tiny_models.chat_rows(30), tiny_models.chat_rows(40)[30:]
    inputs = harness.publish(store, spec, base, rows, held_out, checkpoints=f"jobs/{spec.job_id}/checkpoints/c")
    (outcome,) = harness.on_workers(1, run_case, [Case(store, inputs, stop_after=3)])
    files.download(store, spec.job_id, tmp_path / "fetched")
    events = readers.events(tmp_path / "fetched/tensorboard")
    offline = readers.offline_runs(tmp_path / "fetched/wandb")[f"{spec.job_id}-training-d"]
    _, metrics = readers.mlflow_runs(uri, spec.name)[spec.job_id]
    for series in (events, offline, metrics):
        assert [step for step, _ in series["loss"]] == list(range(1, outcome.step + 1))
        assert series["loss"][-1][1] == pytest.approx(outcome.final_train_loss, rel=1e-6)
        assert min(loss for _, loss in series["held_out_loss"]) == pytest.approx(outcome.best_loss, rel=1e-6)
