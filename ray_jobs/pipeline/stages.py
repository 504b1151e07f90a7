"""The stages of a job in their order, and the document that each is found by. Pure: `stage_work.py` does the work.

A document and its stage's name make the record's key, so a change here makes finished jobs run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

from ray_jobs.data.dataset import Dataset
from ray_jobs.evaluation.evaluate import Evaluation
from ray_jobs.evaluation.gate import gate
from ray_jobs.evaluation.parity import ParityReport
from ray_jobs.pipeline import stage_work
from ray_jobs.pipeline.outputs import (
    BaseCopy,
    DeployedEndpoint,
    EncodedRows,
    Flow,
    O,
    Published,
    Registered,
    SearchOutcome,
)
from ray_jobs.pipeline.preview import describe_search
from ray_jobs.pipeline.sources import Sources
from ray_jobs.pipeline.stage_work import StageContext
from ray_jobs.spec import JobSpec
from ray_jobs.spec.identity import FORMER_FRACTION
from ray_jobs.tasks import TASKS
from ray_jobs.training.inputs import TrainOutcome


@dataclass(frozen=True)
class Stage(Generic[O]):
    """One step of a job. A stage whose record exists under the hash of its inputs is not run again."""

    name: str
    inputs: Callable[[Flow], dict[str, Any]] | None
    """The document that its record is found by; pure. None: the stage has no record and always runs."""
    run: Callable[[Flow, StageContext], O]
    output: type[O]
    base_model: str = ""
    """The base it works on. Empty: the stage exists once a job."""
    off: str | None = None
    """Why the job does not run it. None: it does."""
    gate: Callable[[Flow], None] = lambda _: None
    """Raises GateError where the job must end after this stage; called for a recorded output, too."""
    description: str = ""
    """Its work in a few words, for the plan."""


def stages_of(flow: Flow, sources: Sources) -> Iterator[Stage[Any]]:
    """Every stage of a job, from rows to an endpoint."""
    spec = flow.job_spec
    rows = {
        "data": _data(spec, exclude={"max_tokens", "too_long"}),
        "task": spec.task,
        "sources": list(sources.rows) or [sources.dataset],
    }
    yield Stage("dataset", lambda _: rows, stage_work.make_dataset, Dataset)
    for base_model in flow.base_models:
        yield from _material(spec, sources, base_model)
    if spec.search is not None:
        yield Stage("search", _search, stage_work.search, SearchOutcome, description=describe_search(spec))
    if flow.retrains:
        yield Stage("train", _train, stage_work.train, TrainOutcome)
    yield Stage(
        "evaluate",
        _evaluate,
        stage_work.evaluate_candidate,
        Evaluation,
        gate=lambda flow: gate(flow.evaluation, flow.spec),
    )
    off = None if TASKS[spec.task].generates else "not needed: no engine serves this task"
    yield Stage("parity", _parity, stage_work.compare_served, ParityReport, off=off)
    yield Stage("register", _register, stage_work.register, Registered)
    if spec.training.publish_checkpoints:
        yield Stage("publish", _publish, stage_work.publish_checkpoints, Published)
    # Never skipped: a record cannot show that an endpoint answers now.
    off = None if spec.serving.deploy else "off (serving.deploy)"
    yield Stage("deploy", None, stage_work.deploy_version, DeployedEndpoint, off=off)


def _material(spec: JobSpec, sources: Sources, base_model: str) -> Iterator[Stage[Any]]:
    """A base model's copy, and the rows encoded for it. A task that trains from scratch has no copy."""

    def encoded(flow: Flow) -> dict[str, Any]:
        base = flow.base_copy(base_model)
        return {"dataset": flow.dataset.digest, "base": base.digest, "data": _data(spec)}

    if base_model:
        document = {"source": base_model, "fingerprint": sources.bases[base_model], "task": spec.task}
        copy = partial(stage_work.copy_base, base_model=base_model)
        yield Stage("base", lambda _: document, copy, BaseCopy, base_model)
    yield Stage("encode", encoded, partial(stage_work.encode, base_model=base_model), EncodedRows, base_model)


def _data(spec: JobSpec, exclude: Set[str] = frozenset()) -> dict[str, Any]:
    """The section `data`. Fields newer than some stored jobs are left out while they are off: no stage runs again."""
    document = spec.data.model_dump(mode="json", exclude=set(exclude))
    document["held_out_fraction"] = document["held_out_fraction"] or FORMER_FRACTION
    newer = ("encoding", "sheet", "personal_data", "dataset", "name", "test", "split", "clean")
    return {name: value for name, value in document.items() if value is not None or name not in newer}


def _search(flow: Flow) -> dict[str, Any]:
    return {"search": flow.search_prefix}


def _train(flow: Flow) -> dict[str, Any]:
    return {"checkpoints": flow.train_inputs.checkpoints}


def _evaluate(flow: Flow) -> dict[str, Any]:
    return {"checkpoint": flow.trained.checkpoint, "evaluation": flow.spec.evaluation.model_dump(mode="json")}


def _parity(flow: Flow) -> dict[str, Any]:
    return {
        "candidate": flow.evaluation.candidate_key,
        "parity": flow.spec.evaluation.parity.model_dump(mode="json"),
        "serving": flow.spec.serving.model_dump(
            mode="json", exclude={"deploy", "max_queued_requests"}, exclude_none=True
        ),
    }


def _register(flow: Flow) -> dict[str, Any]:
    """A version is its weights, its judgement and its serving options: a change of any makes another."""
    document = {"candidate": flow.evaluation.candidate_key, "name": flow.job_spec.name}
    if flow.job_id == flow.job_spec.former_id:  # it covers the options, so records of earlier versions lack them
        return document
    return document | {
        "evaluation": flow.spec.evaluation.model_dump(mode="json", exclude_none=True),
        "serving": flow.spec.serving.model_dump(mode="json", exclude={"deploy"}, exclude_none=True),
    }


def _publish(flow: Flow) -> dict[str, Any]:
    return {"checkpoints": flow.train_inputs.checkpoints, **flow.registered.model_dump(include={"name", "version"})}
