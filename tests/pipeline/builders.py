"""A job whose heavy stages are fakes, before a real store: rows, dataset, base, records and aliases are real."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from ray_jobs import pipeline, registry
from ray_jobs.evaluation.evaluate import Evaluation
from ray_jobs.evaluation.parity import ParityReport
from ray_jobs.pipeline import stage_work
from ray_jobs.pipeline.outputs import BaseCopy, DeployedEndpoint, EncodedRows, Flow, Registered, SearchOutcome
from ray_jobs.pipeline.stage_work import StageContext
from ray_jobs.registry import catalogue
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.training import checkpoint
from ray_jobs.training.checkpoint import Position, Writer
from ray_jobs.training.inputs import TrainInputs, TrainOutcome
from tests.builders import make_spec

STEPS = (2, 4)
ROWS_KEY = "files/rows.jsonl"
LINEAGE = {
    "dataset_digest": "d",
    "base_digest": "b",
    "code_version": "0",
    "job_id": "j",
    "metrics": {},
    "labels": [],
    "created_at": "2026-11-24",
}


def write_rows(store: Workspace, count: int = 40) -> None:
    """The training rows of every job of `job_file`."""
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}."}]}
        for i in range(count)
    ]
    store.put(ROWS_KEY, "\n".join(json.dumps(row) for row in rows).encode())


def add_base(store: Workspace, name: str) -> None:
    """A base of the catalogue, which is in the store already."""
    entry = CatalogueEntry(
        name=name, digest=f"digest-{name}", source=name, architecture="LlamaForCausalLM",
        tasks=("chat", "text_classification"), max_tokens=128,
    )  # fmt: skip
    catalogue.add(store, entry)


def job_file(store: Workspace, **fields: Any) -> JobSpec:
    """A full fine-tune of the base `small`, whose checkpoints are published without a worker."""
    return make_spec(
        **{"base_model": "small", "data": {"train": store.uri(ROWS_KEY)}, "training": {"method": "full"}} | fields
    )


def stage_keys(store: Workspace, job_id: str, name: str) -> list[str]:
    """Keys of a stage's records."""
    folder = f"jobs/{job_id}/stages/"
    return [info.key for info in store.list(folder) if info.key.startswith(f"{folder}{name}-")]


@dataclass
class FakeStages:
    """The names of the stages that ran, in order."""

    ran: list[str] = field(default_factory=list)
    during: dict[str, Callable[[], object]] = field(default_factory=dict)
    """Called in the stage of that name."""
    aliases: dict[str, str] = field(default_factory=dict)
    """The model's aliases when the deploy stage ran."""
    tuned_loss: float = 1.0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Record each stage; the heavy ones do nothing else."""

        def patch(function: str, name: str, work: Callable[..., Any]) -> None:
            def run(*arguments: Any, **options: Any) -> Any:
                self.ran.append(name)
                self.during.get(name, lambda: None)()
                return work(*arguments, **options)

            monkeypatch.setattr(stage_work, function, run)

        patch("make_dataset", "dataset", stage_work.make_dataset)
        patch("copy_base", "base", stage_work.copy_base)
        patch("encode", "encode", encode)
        patch("search", "search", search)
        patch("train", "train", train)
        patch("evaluate_candidate", "evaluate", self.evaluate)
        patch("compare_served", "parity", compare_served)
        patch("register", "register", register)
        patch("publish_checkpoints", "publish", stage_work.publish_checkpoints)
        patch("deploy_version", "deploy", self.deploy)

    def rerun(self, store: Workspace, spec: JobSpec) -> list[str]:
        """The stages that another run of the job runs."""
        self.ran.clear()
        pipeline.run(store, spec)
        return self.ran

    def evaluate(self, flow: Flow, _context: StageContext) -> Evaluation:
        return Evaluation(
            candidate_key=flow.evaluate_inputs.candidate_key,
            is_adapter=False,
            lora_rank=None,
            dtype="fp32",
            base={"loss": 2.0},
            tuned={"loss": self.tuned_loss},
            base_is="the base model",
            test_rows=8,
            parity_prompts=(),
        )

    def deploy(self, flow: Flow, context: StageContext) -> DeployedEndpoint:
        self.aliases = registry.aliases(context.store, flow.registered.name)
        return DeployedEndpoint(url="http://endpoint", version=flow.registered.version)


def encode(flow: Flow, _context: StageContext, base_model: str) -> EncodedRows:
    digest = flow.get(BaseCopy, base_model).digest
    return EncodedRows(train_rows=36, test_kept=(), key=f"encoded/{flow.dataset.digest}/{digest}", labels=())


def search(flow: Flow, _context: StageContext) -> SearchOutcome:
    spec = flow.job_spec.with_values({"base_model": flow.base_models[-1]})
    encoded = flow.get(EncodedRows, spec.base_model)
    inputs = TrainInputs(
        spec=spec,
        labels=(),
        encoded_key=encoded.key,
        base_key=flow.get(BaseCopy, spec.base_model).key,
        checkpoints=f"{flow.search_prefix}/runs/0000-0",
    )
    return SearchOutcome(
        inputs=inputs,
        run="0000-0",
        params={"base_model": spec.base_model},
        checkpoint=f"{inputs.checkpoints}/step-00000004-run",
        tokens_per_s=10.0,
        trials=2,
        tokens=100,
        page="page.html",
    )


def train(flow: Flow, context: StageContext) -> TrainOutcome:
    position, prefix = Position(), flow.train_inputs.checkpoints
    run = prefix.rpartition("/")[2]  # the name of a start is never used twice
    writer = Writer(context.store, prefix, run, rank=0, workers=1, keep=2)
    for step in STEPS:
        position = Position(step=step, losses=(*position.losses, 2.0, 1.0)).measured(1.0 / step, 0.5)
        writer.save([], position)
    writer.close()
    return TrainOutcome(
        stopped="finished",
        step=4,
        best_step=4,
        best_loss=0.25,
        checkpoint=checkpoint.committed(context.store, prefix)[-1].key,
        final_train_loss=1.0,
        tokens=640,
        seconds=1.0,
        tokens_per_s=10.0,
        checkpoint_stall_s=0.0,
        peak_memory_bytes=0,
        resumed_from_step=0,
        workers=1,
    )


def compare_served(_flow: Flow, _context: StageContext) -> ParityReport:
    return ParityReport(
        prompts=1,
        identical_prompts=1,
        answer_tokens=1,
        mean_gap=0.0,
        max_gap=0.0,
        bound=1e-3,
        mean_gap_without_adapter=None,
        dtype="float32",
        passed=True,
        findings=(),
    )


def register(flow: Flow, context: StageContext) -> Registered:
    spec, store = flow.spec, context.store
    lineage = LINEAGE | {"spec": spec.model_dump(mode="json")}
    version = str(len(registry.versions(store, spec.name)) + 1)
    store.commit(f"models/{spec.name}/{version}", [], {"kind": "full", "lineage": lineage})
    registry.set_alias(store, spec.name, "champion", version)
    return Registered(name=spec.name, version=version)
