"""A new task is a file and a line: two toy tasks go through the whole pipeline, from rows to a deployment record.

The stages, the store, the trainer with its DeepSpeed engine and the registry are real; only Ray is left out, and the
work that would run on its workers runs here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ray_jobs import jobs, pipeline, registry
from ray_jobs.data.row_validation import check_rows
from ray_jobs.deploy import ServeSettings, records
from ray_jobs.deploy.serve_api import serve_config
from ray_jobs.errors import GateError, RegistryError, SpecError
from ray_jobs.models import load_published
from ray_jobs.sharing.shared_trainer import ensure_process_group, mode_of
from ray_jobs.spec import JobSpec, parse_spec
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import Row
from ray_jobs.training import ray_train, ray_workers
from ray_jobs.training.inputs import TrainInputs, TrainOutcome
from ray_jobs.training.trainer import train
from tests.tasks.toy_task import FEATURES, ToyPopularity, ToyPreference

WANTED = np.array([1.0, -2.0, 0.5])
"""The direction that the preferences follow."""


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that a new task adds to `TASKS`."""
    for task in (ToyPreference(), ToyPopularity()):
        monkeypatch.setitem(TASKS, task.name, task)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers of Ray become this process, with a process group of one."""

    def train_here(inputs: TrainInputs, store: Workspace, **_: Any) -> TrainOutcome:
        return train(inputs, store)

    def call_here(function: Any, *arguments: Any, report: Any, **_: Any) -> Any:
        return function(*arguments, lambda progress: report(*progress))

    monkeypatch.setattr(ray_workers, "connect", lambda: None)
    monkeypatch.setattr(ray_train, "train_on_workers", train_here)
    monkeypatch.setattr(ray_workers, "call_on_worker", call_here)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("KITAE_ENDPOINT_URL", "https://kitae.example")  # deploying only writes the record
    ensure_process_group(torch.device("cpu"))
    yield
    dist.destroy_process_group()


def preferences(count: int = 240) -> list[Row]:
    random = np.random.default_rng(0)
    pairs = random.normal(size=(count, 2, FEATURES))
    ordered = [sorted(pair.tolist(), key=lambda vector: float(np.dot(vector, WANTED))) for pair in pairs]
    return [{"chosen": better, "rejected": worse} for worse, better in ordered]


def choices(count: int = 80) -> list[Row]:
    return [{"user": str(i), "item": "tea" if i % 4 else "cake"} for i in range(count)]


def job_file(store: Workspace, task: str, rows: list[Row], **fields: Any) -> JobSpec:
    key = f"files/{task}.jsonl"
    store.put(key, "\n".join(json.dumps(row) for row in rows).encode())
    document = {
        "name": task.replace("_", "-"),
        "task": task,
        "data": {"train": store.uri(key)},
        "training": {"method": "full", "epochs": 12, "learning_rate": 0.05, "precision": "fp32"},
    }
    return parse_spec(document | fields)


def test_a_task_with_its_own_loss_and_a_reference_runs_through_the_pipeline(store: Workspace, workers: None) -> None:
    spec = job_file(store, "toy_preference", preferences())
    result = pipeline.run(store, spec)
    assert [stage.name for stage in result.stages] == ["dataset", "encode", "train", "evaluate", "register", "deploy"]
    # The reference is the model before training, so the loss begins at log 2 and falls.
    assert result.base_is == "an untrained model"
    assert result.base["loss"] == pytest.approx(np.log(2))
    assert result.tuned["loss"] < 0.5
    assert result.tuned["preference_accuracy"] > 0.9
    assert set(result.tuned) == {"loss", *ToyPreference.measures}

    version = registry.get(store, spec.name)
    assert (version.kind, version.base_name, version.base_digest) == ("predictor", "", "")
    served = load_published(store.fetch(version.key), None, spec.task, version.labels, torch.float32)
    untrained: Any = TASKS[spec.task].new_model((), spec.training.seed)
    learnt = (served.linear.weight - untrained.linear.weight)[0].detach().numpy()
    assert np.dot(learnt, WANTED) / np.linalg.norm(learnt) / np.linalg.norm(WANTED) > 0.9
    card = (store.fetch(version.key) / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: reinforcement-learning" in card
    assert "Trained from scratch for toy preference" in card
    assert "base_model:" not in card.split("---")[1]

    again = pipeline.run(store, spec)
    assert [stage.name for stage in again.stages if not stage.skipped] == ["deploy"]


def test_a_task_that_is_fitted_in_closed_form_runs_through_the_pipeline(store: Workspace, workers: None) -> None:
    spec = job_file(store, "toy_popularity", choices())
    assert ("base", "will run") not in [(stage.name, stage.action) for stage in pipeline.plan(store, spec).stages]
    result = pipeline.run(store, spec)
    assert [stage.name for stage in result.stages] == ["dataset", "encode", "train", "evaluate", "register", "deploy"]
    assert result.tuned["loss"] < result.base["loss"] == pytest.approx(np.log(2))
    assert result.tuned["surprise"] == pytest.approx(result.tuned["loss"] / np.log(2))
    version = registry.get(store, spec.name)
    assert version.labels == ("cake", "tea")
    served = load_published(store.fetch(version.key), None, spec.task, version.labels, torch.float32)
    assert float(served().detach().exp().sum()) == pytest.approx(1.0)
    assert served().argmax() == version.labels.index("tea")


@pytest.mark.parametrize(("rows", "judged"), [(80, False), (1200, True)])
def test_a_model_of_few_test_rows_is_registered_unjudged_and_is_no_champion(
    store: Workspace, workers: None, rows: int, judged: bool
) -> None:
    spec = job_file(store, "toy_popularity", choices(rows))
    result = pipeline.run(store, spec)
    version = registry.get(store, spec.name)
    assert version.lineage.gated is judged
    assert registry.aliases(store, spec.name) == ({"champion": "1"} if judged else {})
    card = (store.fetch(version.key) / "README.md").read_text(encoding="utf-8")
    said = [result.as_text(), card, *(event.message for _, event in jobs.events(store, spec.job_id))]
    assert [("the test side has 8 rows, and a comparison needs 20" in text) for text in said[:2]] == [not judged] * 2
    assert any("is not judged: the test side has 8 rows" in text for text in said[2:]) is not judged
    if not judged:
        with pytest.raises(RegistryError, match="the test side has 8 rows"):
            registry.set_alias(store, spec.name, "champion", "1")


def test_the_champion_moves_only_to_a_version_that_is_better_by_more_than_chance(
    store: Workspace, workers: None
) -> None:
    """The second version learnt from nearly the same rows, the third from those of another time, as it is tested on."""
    first = job_file(store, "toy_popularity", choices(1200))
    worse = pipeline.run(store, first)
    assert registry.aliases(store, first.name) == {"champion": "1"}
    assert worse.champion_stays == ""

    same = job_file(store, "toy_popularity", choices(1204))
    result = pipeline.run(store, same)
    assert registry.aliases(store, same.name) == {"champion": "1"}
    assert registry.get(store, f"{same.name}@2").lineage.gated
    assert "is not better than version 1 by more than chance" in result.champion_stays
    assert f"the champion stays: {result.champion_stays}" in result.as_text()
    warnings = [event.message for _, event in jobs.events(store, same.job_id) if event.level == "warning"]
    assert any("toy-popularity@1 stays the champion" in text for text in warnings)
    assert any("kitae models alias toy-popularity champion 2" in text for text in warnings)

    shifted = [{**row, "item": "cake" if row["item"] == "tea" else "tea"} for row in choices(1200)]
    better = pipeline.run(store, job_file(store, "toy_popularity", shifted))
    assert registry.aliases(store, first.name) == {"champion": "3"}
    assert better.champion_stays == ""


def test_the_gate_compares_a_task_without_a_base_with_its_baseline(store: Workspace, workers: None) -> None:
    even = [{"user": str(i), "item": "tea" if i % 2 else "cake"} for i in range(400)]
    with pytest.raises(GateError, match="is not below that of a uniform choice"):
        pipeline.run(store, job_file(store, "toy_popularity", even))


def test_a_deployment_names_the_predictor_of_the_task(store: Workspace, workers: None) -> None:
    spec = job_file(store, "toy_popularity", choices())
    pipeline.run(store, spec)
    config = serve_config(records.read_all(store).values(), ServeSettings("http://dashboard", None))
    (application,) = [one for one in config["applications"] if one["name"] == f"kitae-{spec.name}"]
    module, _, builder = application["import_path"].partition(":")
    assert getattr(import_module(module), builder)(application["args"])["task"] == "toy_popularity"


def test_rows_name_their_task_by_their_columns(store: Workspace) -> None:
    job_file(store, "toy_preference", preferences())
    assert check_rows(store, "files/toy_preference.jsonl", "rows.jsonl").task == "toy_preference"


def test_a_job_file_says_what_a_task_without_a_base_takes(store: Workspace) -> None:
    fields = {"base_model": "org/base", "training": {"method": "lora"}}
    with pytest.raises(SpecError) as caught:
        job_file(store, "toy_preference", preferences(), **fields)
    assert list(caught.value.details) == ["base_model: this task trains from scratch; leave base_model out"]
    with pytest.raises(SpecError) as caught:
        job_file(store, "toy_preference", preferences(), training={"method": "lora"})
    assert list(caught.value.details) == ["task: toy_preference has no base model to adapt; set training.method: full"]
    with pytest.raises(SpecError) as caught:
        parse_spec({"name": "greeter", "task": "chat", "data": {"train": "rows.jsonl"}})
    assert list(caught.value.details) == ["base_model: required, and missing"]
    with pytest.raises(SpecError, match="1 field") as caught:
        parse_spec({"name": "greeter", "task": "poetry", "base_model": "org/base", "data": {"train": "rows.jsonl"}})
    assert caught.value.details[0].startswith("task: is 'poetry'; it must be 'chat', 'text_classification'")


def test_trials_of_a_task_with_its_own_loss_do_not_share_passes(store: Workspace) -> None:
    spec = job_file(store, "toy_preference", preferences())
    frozen = spec.model_copy(update={"training": spec.training.model_copy(update={"method": "frozen"})})
    assert mode_of(frozen) == ("alone", "task: toy_preference computes its loss for a whole batch")


def test_the_facts_of_the_tasks_are_read_without_a_framework() -> None:
    code = (
        "import sys, ray_jobs.tasks; "
        "print([name for name in ('torch', 'transformers', 'numpy', 'ray') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
