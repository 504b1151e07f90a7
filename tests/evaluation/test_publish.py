"""A job's remaining checkpoints as versions of its model: a real training of a tiny model, and its versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs import jobs, models, registry
from ray_jobs.data.dataset import Dataset
from ray_jobs.errors import ModelError
from ray_jobs.evaluation import publish
from ray_jobs.evaluation.evaluate import Evaluation
from ray_jobs.evaluation.publish import build_candidate
from ray_jobs.jobs import Job
from ray_jobs.pipeline import stage_work
from ray_jobs.pipeline.outputs import BaseCopy, EncodedRows, Flow, PublishedCheckpoint, Registered, candidate_key
from ray_jobs.pipeline.stage_work import StageContext
from ray_jobs.storage import Workspace
from ray_jobs.training import checkpoint, ray_workers
from ray_jobs.training.checkpoint import Checkpoint, Position
from ray_jobs.training.inputs import TrainInputs, TrainOutcome
from ray_jobs.training.trainer import train
from tests.models import tiny_models
from tests.training import harness


def at(step: int, key: str) -> Checkpoint:
    return Checkpoint(key, 1, Position(step=step))


def test_every_checkpoint_but_the_registered_one_is_published_once_a_step() -> None:
    found = [at(2, "a"), at(4, "best"), at(4, "again"), at(6, "first"), at(6, "second")]
    assert [one.key for one in publish.others(found, "best")] == ["a", "second"]
    assert [one.key for one in publish.others(found[:1], "gone")] == ["a"]


def test_a_version_has_only_the_metrics_that_were_measured() -> None:
    spec = harness.make_spec()
    whole = Checkpoint("k", 1, Position(step=3, losses=(2.0, 1.0, 0.5)).measured(0.7, 0.9))
    assert publish.lineage_metrics(whole, spec) == {"step": 3, "train_loss": 0.5, "loss": 0.7, "token_accuracy": 0.9}
    assert publish.lineage_metrics(at(3, "k"), spec) == {"step": 3.0}


@pytest.mark.parametrize(
    ("task", "method", "can"),
    [("chat", "lora", True), ("chat", "qlora", True), ("chat", "full", False), ("text_classification", "lora", False)],
)
def test_only_adapters_of_a_generative_model_are_published(task: str, method: str, can: bool) -> None:
    assert publish.has_adapters(harness.make_spec(task, training={"method": method})) is can


@dataclass(frozen=True)
class TrainedJob:
    """A job of a tiny chat model whose best checkpoint is registered."""

    job: Job
    flow: Flow
    inputs: TrainInputs
    outcome: TrainOutcome
    base: Path

    def publish(self) -> tuple[PublishedCheckpoint, ...]:
        return stage_work.publish_checkpoints(self.flow, StageContext(self.job, lambda *_, **__: None)).checkpoints


def train_one(case: tuple[TrainInputs, Workspace]) -> TrainOutcome:
    return train(*case)


@pytest.fixture
def trained(store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], TrainedJob]:
    """Six steps, measured after every second step: three checkpoints."""

    def here(function: Callable[..., Any], *arguments: object, **_: object) -> Any:
        return function(*arguments, lambda _: None)

    monkeypatch.setattr(ray_workers, "connect", lambda: None)
    monkeypatch.setattr(ray_workers, "call_on_worker", here)

    def make(method: str) -> TrainedJob:
        sections: dict[str, Any] = {
            "method": method,
            "max_steps": 6,
            "eval_every_steps": 2,
            "checkpoints_to_keep": 3,
            "learning_rate": 1e-2,
            "publish_checkpoints": True,
        }
        spec = harness.make_spec(training=sections, compute={"workers": 1})
        base = tiny_models.save_causal(tmp_path / "causal")
        rows = tiny_models.chat_rows(48)
        copy = BaseCopy(digest="base", name="base", key=f"bases/{base.name}")
        flow = Flow(spec).with_output(BaseCopy, spec.base_model, copy)
        flow = flow.with_output(
            Dataset, "", Dataset(digest="rows", task=spec.task, train_rows=40, validation_rows=8, test_rows=8)
        )
        encoded = EncodedRows(test_kept=(), key=f"encoded/{spec.task}", labels=())
        flow = flow.with_output(EncodedRows, spec.base_model, encoded)
        prefix = flow.train_inputs.checkpoints
        inputs = harness.publish(store, spec, base, rows[:40], rows[40:], checkpoints=prefix)
        (outcome,) = harness.on_workers(1, train_one, [(inputs, store)])
        job = jobs.start_attempt(store, spec)
        key = candidate_key(job.id, outcome.checkpoint)
        tokenizer = models.load_processor(base, spec.task)
        build_candidate(inputs, outcome.checkpoint, store, base, tokenizer, tmp_path / "tree")
        store.commit(key, store.upload_tree(tmp_path / "tree", key), {})
        evaluation = Evaluation(
            candidate_key=key,
            is_adapter=method == "lora",
            lora_rank=16,
            dtype="fp32",
            base={"loss": 9.0},
            tuned={"loss": outcome.best_loss},
            base_is="the base model",
            test_rows=8,
            parity_prompts=(),
        )
        flow = flow.with_output(TrainOutcome, "", outcome).with_output(Evaluation, "", evaluation)
        registered = stage_work.register(flow, StageContext(job, lambda *_, **__: None))
        return TrainedJob(job, flow.with_output(Registered, "", registered), inputs, outcome, base)

    return make


@pytest.mark.heavy
@pytest.mark.usefixtures("store_environment")
def test_each_checkpoint_is_a_version_that_loads_and_differs(
    trained: Callable[[str], TrainedJob], store: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trained("lora")
    rows = one.publish()
    kept = {found.position.step: found for found in checkpoint.committed(store, one.inputs.checkpoints)}
    assert list(kept) == [2, 4, 6] == [row.step for row in rows]
    assert len({row.version for row in rows}) == 3

    best = one.outcome.best_step
    pointed = registry.aliases(store, "tiny")
    assert pointed == {"champion": "1"} | {f"ckpt-step-{row.step}": row.version for row in rows}
    assert pointed[f"ckpt-step-{best}"] == "1"
    assert registry.get(store, "tiny").version == "1"

    ids = torch.arange(3, 19)[None]
    answers = {}
    for row in rows:
        position = kept[row.step].position
        assert row.train_loss == position.losses[row.step - 1]
        assert (row.valid_loss, row.valid_mean_token_accuracy) == (
            position.held_out_loss,
            position.held_out_accuracy,
        )
        version = registry.get(store, f"tiny@ckpt-step-{row.step}")
        assert (version.kind, version.lineage.job_id) == ("adapter", one.job.id)
        model = models.load_published(store.fetch(version.key), one.base, "chat", (), torch.float32)
        state = checkpoint.load_state(store, kept[row.step])
        weights = {name.replace(".default", ""): value for name, value in model.state_dict().items()}
        for name, parts in state.items():
            assert torch.equal(weights[name.replace(".default", "")], parts["weight"]), name
        with torch.no_grad():
            answers[row.step] = model(input_ids=ids).logits
        if row.step != best:
            assert version.metrics == publish.lineage_metrics(kept[row.step], one.inputs.spec)
            assert version.metrics["loss"] == position.held_out_loss
    assert not torch.allclose(answers[2], answers[4], atol=1e-3)
    assert not torch.allclose(answers[4], answers[6], atol=1e-4)

    gone = publish.AdapterInputs(train=one.inputs, trees={f"{one.inputs.checkpoints}/step-00000099-x": "jobs/j/tree"})
    with pytest.raises(ModelError, match="step-00000099-x is gone"):
        publish.build_adapters(gone, store, lambda _: None)

    # As after a kill before the stage's record: nothing is built, and no version is added.
    monkeypatch.setattr(models, "load_base", None)
    assert one.publish() == rows
    assert len(registry.versions(store, "tiny")) == 3


@pytest.mark.heavy
@pytest.mark.usefixtures("store_environment")
def test_a_full_fine_tune_publishes_only_its_registered_checkpoint(
    trained: Callable[[str], TrainedJob], store: Workspace
) -> None:
    one = trained("full")
    (row,) = one.publish()
    assert (row.step, row.version) == (one.outcome.best_step, "1")
    assert registry.aliases(store, "tiny") == {"champion": "1", f"ckpt-step-{row.step}": "1"}
    assert len(registry.versions(store, "tiny")) == 1
