"""The order of the stages, what a resumed job skips and what a stopped one leaves; the stages themselves do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ray_jobs import jobs, pipeline, registry
from ray_jobs.errors import JobCancelled, JobError, JobPaused
from ray_jobs.evaluation.evaluate import Evaluation
from ray_jobs.pipeline import stages as work
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store
from ray_jobs.training import checkpoint
from ray_jobs.training.checkpoint import Position, Writer
from tests.builders import make_spec

STEPS = (2, 4)
DEPLOY = {"url": "http://endpoint"}


class Stages:
    """What ran, in order, and what else happens in a stage."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.during: dict[str, Callable[[], object]] = {}
        self.aliases: dict[str, str] = {}
        """When the deploy stage ran."""


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch, store: Store) -> Stages:
    seen = Stages()

    def fake(name: str, function: str, answer: Callable[..., dict[str, Any]]) -> None:
        def run(*arguments: Any) -> dict[str, Any]:
            seen.ran.append(name)
            seen.during.get(name, lambda: None)()
            return answer(*arguments)

        monkeypatch.setattr(work, function, run)

    def train(_job: object, _store: object, inputs: Any, _show: object) -> dict[str, Any]:
        position = Position()
        writer = Writer(store, inputs.checkpoints, "run", rank=0, workers=1, keep=2)
        for step in STEPS:
            position = Position(step=step, losses=(*position.losses, 2.0, 1.0)).measured(1.0 / step, 0.5)
            writer.save([], position)
        writer.close()
        best = checkpoint.committed(store, inputs.checkpoints)[-1].key
        return {"checkpoint": best, "tokens_per_s": 10.0, "tokens": 640}

    evaluation = Evaluation(
        candidate_key="candidate",
        is_adapter=False,
        lora_rank=None,
        dtype="fp32",
        base={"loss": 2.0},
        tuned={"loss": 1.0},
        base_is="the base model",
        held_out_rows=8,
        parity_prompts=(),
    )

    def register(_job: object, _store: object, spec: JobSpec, *_: object) -> dict[str, Any]:
        store.commit(f"models/{spec.name}/1", [], {"kind": "full", "lineage": LINEAGE | {"spec": dump(spec)}})
        registry.set_alias(store, spec.name, "champion", "1")
        return {"name": spec.name, "version": "1"}

    def deploy(*_: object) -> dict[str, Any]:
        seen.aliases = registry.aliases(store, "greeter")
        return DEPLOY

    monkeypatch.setattr(
        pipeline, "_first_inputs", lambda _store, spec: ([], {"dataset": {}, f"base {spec.base_model}": {}})
    )
    fake("dataset", "make_dataset", lambda *_: {"digest": "d", "labels": []})
    fake("base", "prepare_base", lambda *_: {"digest": "b", "name": "base", "key": "bases/b"})
    fake("encode", "encode", lambda *_: {"key": "encoded", "labels": [], "held_out_kept": []})
    fake("train", "train", train)
    fake("evaluate", "evaluate_candidate", lambda *_: evaluation.model_dump(mode="json"))
    fake("parity", "compare_served", lambda *_: {"mean_gap": 0.0})
    fake("register", "register", register)
    fake("deploy", "deploy_version", deploy)
    return seen


LINEAGE = {
    "dataset_digest": "d",
    "base_digest": "b",
    "code_version": "0",
    "job_id": "j",
    "metrics": {},
    "labels": [],
    "created_at": "now",
}


def dump(spec: JobSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json")


def whole_model(**training: Any) -> JobSpec:
    """A job whose checkpoints beside the best cannot be called, so that publishing needs no worker."""
    return make_spec(training={"method": "full", **training})


ALL = ["dataset", "base", "encode", "train", "evaluate", "parity", "register", "deploy"]


def test_a_checkpoint_can_be_called_before_the_model_is_deployed(stages: Stages, store: Store) -> None:
    spec = whole_model(publish_checkpoints=True)
    result = pipeline.run(store, spec)
    assert stages.ran == ALL
    assert [stage.name for stage in result.stages] == pipeline.stages_of(spec)
    assert stages.aliases == {"champion": "1", "ckpt-step-4": "1"}
    record = jobs.load(store, spec.job_id)
    assert record.result is not None
    assert record.result["checkpoints"] == [
        {"step": 4, "version": "1", "train_loss": 1.0, "valid_loss": 0.25, "valid_mean_token_accuracy": 0.5}
    ]
    assert record.result["trained_tokens"] == 640
    assert store.get(record.result["metrics_csv"]).decode().splitlines()[-1] == "4,1.0,0.25,0.5"
    assert "checkpoints 4, as greeter@ckpt-step-N" in result.as_text()

    stages.ran.clear()
    again = pipeline.run(store, spec)
    assert stages.ran == ["deploy"]
    assert again.checkpoints == result.checkpoints


def test_nothing_is_published_that_was_not_asked_for(stages: Stages, store: Store) -> None:
    result = pipeline.run(store, whole_model())
    assert stages.ran == ALL
    assert "publish" not in [stage.name for stage in result.stages]
    assert stages.aliases == {"champion": "1"}
    assert result.checkpoints == []
    assert "checkpoints" not in result.as_text()


@pytest.mark.parametrize(
    ("request_stop", "raised", "status"),
    [(jobs.request_pause, JobPaused, "paused"), (jobs.request_cancel, JobCancelled, "cancelled")],
)
def test_a_job_that_was_told_to_stop_goes_on_where_it_was(
    stages: Stages,
    store: Store,
    request_stop: Callable[[Store, str], object],
    raised: type[JobError],
    status: str,
) -> None:
    spec = whole_model()
    stages.during["evaluate"] = lambda: request_stop(store, spec.job_id)
    with pytest.raises(raised):
        pipeline.run(store, spec)
    assert stages.ran[-1] == "evaluate"
    record = jobs.load(store, spec.job_id)
    assert (record.status, record.error) == (status, None)
    told = [event for _, event in jobs.events(store, spec.job_id)]
    assert (told[-1].level, status in told[-1].message) == ("warning", True)

    stages.ran.clear()
    stages.during.clear()
    pipeline.run(store, spec)
    assert stages.ran == ["evaluate", "parity", "register", "deploy"]
    assert jobs.load(store, spec.job_id).status == "succeeded"
