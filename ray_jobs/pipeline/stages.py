"""The stages of a job in their order, and the document that each is found by. Pure: the work is in the modules beside.

A document and its stage's name make the record's key, so a change here makes finished jobs run again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ray_jobs.data.dataset import Dataset
from ray_jobs.evaluation.evaluate import Evaluation, gate
from ray_jobs.evaluation.parity import ParityReport
from ray_jobs.pipeline import evaluation_stages, material_stages, release_stages, training_stages
from ray_jobs.pipeline.outputs import (
    BaseCopy,
    DeployedEndpoint,
    EncodedRows,
    Flow,
    Published,
    Registered,
    SearchOutcome,
)
from ray_jobs.pipeline.sources import Sources
from ray_jobs.pipeline.stage import Stage
from ray_jobs.search.space import describe
from ray_jobs.spec import JobSpec
from ray_jobs.tasks import TASKS
from ray_jobs.training.inputs import TrainOutcome


def stages_of(flow: Flow, sources: Sources) -> list[Stage[Any]]:
    """Every stage of a job, from rows to an endpoint."""
    spec = flow.job_spec
    return [
        dataset(spec, sources),
        *(stage for base_model in flow.base_models for stage in material(spec, sources, base_model)),
        *([search(spec)] if spec.search is not None else []),
        *([train()] if flow.retrains else []),
        evaluate(),
        parity(spec),
        register(spec),
        *([publish()] if spec.training.publish_checkpoints else []),
        deploy(spec),
    ]


def dataset(spec: JobSpec, sources: Sources) -> Stage[Dataset]:
    document = {
        "data": spec.data.model_dump(mode="json", exclude={"max_tokens", "too_long"}),
        "task": spec.task,
        "sources": list(sources.rows),
    }
    return Stage("dataset", lambda _: document, material_stages.make_dataset, Dataset)


def material(spec: JobSpec, sources: Sources, base_model: str) -> Iterator[Stage[Any]]:
    """A base model's copy, and the rows encoded for it. A task that trains from scratch has no copy."""

    def encoded(flow: Flow) -> dict[str, Any]:
        base = flow.base_copy(base_model)
        return {"dataset": flow.dataset.digest, "base": base.digest, "data": spec.data.model_dump(mode="json")}

    encode = partial(material_stages.encode, base_model=base_model)
    if base_model:
        document = {"source": base_model, "fingerprint": sources.bases[base_model], "task": spec.task}
        copy = partial(material_stages.copy_base, base_model=base_model)
        yield Stage("base", lambda _: document, copy, BaseCopy, base_model)
    yield Stage("encode", encoded, encode, EncodedRows, base_model)


def search(spec: JobSpec) -> Stage[SearchOutcome]:
    def document(flow: Flow) -> dict[str, Any]:
        return {"search": flow.search_prefix}

    return Stage("search", document, training_stages.search, SearchOutcome, description=describe(spec))


def train() -> Stage[TrainOutcome]:
    def document(flow: Flow) -> dict[str, Any]:
        return {"checkpoints": flow.train_inputs.checkpoints}

    return Stage("train", document, training_stages.train, TrainOutcome)


def evaluate() -> Stage[Evaluation]:
    def document(flow: Flow) -> dict[str, Any]:
        return {"checkpoint": flow.trained.checkpoint, "evaluation": flow.spec.evaluation.model_dump(mode="json")}

    return Stage(
        "evaluate",
        document,
        evaluation_stages.evaluate_candidate,
        Evaluation,
        gate=lambda flow: gate(flow.evaluation, flow.spec),
    )


def parity(spec: JobSpec) -> Stage[ParityReport]:
    def document(flow: Flow) -> dict[str, Any]:
        return {
            "candidate": flow.evaluation.candidate_key,
            "parity": flow.spec.evaluation.parity.model_dump(mode="json"),
            "serving": flow.spec.serving.model_dump(mode="json", exclude={"deploy", "max_queued_requests"}),
        }

    off = None if TASKS[spec.task].generates else "not needed: no engine serves this task"
    return Stage("parity", document, evaluation_stages.compare_served, ParityReport, off=off)


def register(spec: JobSpec) -> Stage[Registered]:
    def document(flow: Flow) -> dict[str, Any]:
        return {"candidate": flow.evaluation.candidate_key, "name": spec.name}

    return Stage("register", document, release_stages.register, Registered)


def publish() -> Stage[Published]:
    def document(flow: Flow) -> dict[str, Any]:
        return {"checkpoints": flow.train_inputs.checkpoints, **flow.registered.model_dump()}

    return Stage("publish", document, release_stages.publish_checkpoints, Published)


def deploy(spec: JobSpec) -> Stage[DeployedEndpoint]:
    """Never skipped: a record cannot show that an endpoint answers now."""
    off = None if spec.serving.deploy else "off (serving.deploy)"
    return Stage("deploy", None, release_stages.deploy_version, DeployedEndpoint, off=off)
