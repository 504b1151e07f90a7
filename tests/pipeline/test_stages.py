"""The documents that stages are found by. Pure: a flow of given outputs, no store."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from ray_jobs.data.dataset import Dataset
from ray_jobs.digests import canonical_digest
from ray_jobs.evaluation.evaluate import Evaluation
from ray_jobs.pipeline.outputs import BaseCopy, EncodedRows, Flow, MissingOutputError, Registered, SearchOutcome
from ray_jobs.pipeline.sources import Sources
from ray_jobs.pipeline.stages import stages_of
from ray_jobs.spec import JobSpec
from ray_jobs.training.inputs import TrainInputs, TrainOutcome
from tests.builders import make_spec

SOURCES = Sources(rows=("rows",), bases=MappingProxyType({"org/base": "print", "org/other": "other print"}))


def finished(spec: JobSpec) -> Flow:
    """A flow in which every stage that others depend on has an output."""
    flow = Flow(spec, spec.former_id).with_output(
        Dataset,
        "",
        Dataset(digest="d1", task=spec.task, train_rows=9, validation_rows=1, test_rows=1, labels=("ä", "b")),
    )
    for base_model in flow.base_models:
        digest = f"digest of {base_model}"
        copy = BaseCopy(digest=digest, name=base_model, key=f"bases/{digest}")
        rows = EncodedRows(test_kept=(0,), key=f"encoded/{digest}", labels=("ä", "b"))
        flow = flow.with_output(BaseCopy, base_model, copy).with_output(EncodedRows, base_model, rows)
    if spec.search is not None:
        flow = flow.with_output(SearchOutcome, "", search_outcome(flow))
    return (
        flow.with_output(TrainOutcome, "", train_outcome())
        .with_output(Evaluation, "", evaluation())
        .with_output(Registered, "", Registered(name=spec.name, version="7"))
    )


def search_outcome(flow: Flow) -> SearchOutcome:
    best = flow.job_spec.with_values({"base_model": flow.base_models[-1]})
    inputs = TrainInputs(spec=best, labels=("ä", "b"), encoded_key="e", base_key="b", checkpoints="search/run")
    return SearchOutcome(
        inputs=inputs, run="0001-2", params={}, checkpoint="search/run/step-8", tokens_per_s=1.0, trials=2, tokens=9,
        page="page",
    )  # fmt: skip


def train_outcome() -> TrainOutcome:
    return TrainOutcome(
        stopped="finished", step=4, best_step=4, best_loss=0.1, checkpoint="checkpoints/step-4", final_train_loss=1.0,
        tokens=5, seconds=1.0, tokens_per_s=2.0, checkpoint_stall_s=0.0, peak_memory_bytes=1, resumed_from_step=0,
        workers=1,
    )  # fmt: skip


def evaluation() -> Evaluation:
    return Evaluation(
        candidate_key="candidates/step-4", is_adapter=True, lora_rank=8, dtype="fp32", base={"loss": 2.0},
        tuned={"loss": 1.0}, base_is="the base model", test_rows=1, parity_prompts=(),
    )  # fmt: skip


def documents(flow: Flow) -> list[tuple[str, dict[str, Any]]]:
    return [(stage.name, stage.inputs(flow)) for stage in stages_of(flow, SOURCES) if stage.inputs is not None]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            make_spec(training={"publish_checkpoints": True}),
            [
                "dataset-1f209fb7b996965d",
                "base-36b68cf3f91cd0a6",
                "encode-0244abacbd340c2a",
                "train-5dc2ce397d155e51",
                "evaluate-db357e3d68501862",
                "parity-0873db85ce65e983",
                "register-aef45207d03e9872",
                "publish-6da46eecd1bdd64f",
            ],
        ),
        (
            make_spec(search={"trials": 2, "space": {"base_model": ["org/base", "org/other"]}}),
            [
                "dataset-1f209fb7b996965d",
                "base-36b68cf3f91cd0a6",
                "encode-0244abacbd340c2a",
                "base-bd9fa4f6e3a46b34",
                "encode-bf55d2793a5ad3b6",
                "search-e7511262d55b8c51",
                "evaluate-7829d4c97ef779a2",
                "parity-0873db85ce65e983",
                "register-aef45207d03e9872",
            ],
        ),
    ],
    ids=["train", "search"],
)
def test_a_finished_job_of_version_0_1_is_still_found(spec: JobSpec, expected: list[str]) -> None:
    """The digests are part of the keys of stage records: another one runs finished stages again."""
    found = [f"{name}-{canonical_digest(document, 16)}" for name, document in documents(finished(spec))]
    assert found == expected


def test_inputs_follow_only_from_the_stages_before() -> None:
    spec = make_spec()
    for stage in stages_of(Flow(spec), SOURCES):
        if stage.name in ("dataset", "base"):
            assert stage.inputs is not None
            assert stage.inputs(Flow(spec))
        elif stage.inputs is not None:
            with pytest.raises(MissingOutputError):
                stage.inputs(Flow(spec))


@pytest.mark.parametrize(
    "fields",
    [
        {"compute": {"workers": 3}},
        {"priority": 5},
        {"tracking": {"tensorboard": False, "wandb": {"project": "p"}, "mlflow": {"tracking_uri": "sqlite://"}}},
    ],
)
def test_workers_priority_and_tracking_change_no_document(fields: dict[str, Any]) -> None:
    assert documents(finished(make_spec(**fields))) == documents(finished(make_spec()))
    search = {"trials": 2}
    assert documents(finished(make_spec(search=search, **fields))) == documents(finished(make_spec(search=search)))
