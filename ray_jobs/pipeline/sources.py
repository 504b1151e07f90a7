"""Fingerprints of what a job reads from outside the store's own records: its rows and its base models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_jobs import registry
from ray_jobs.data import versions
from ray_jobs.data.sources import fingerprint, is_here
from ray_jobs.errors import KitaeError, ServingError
from ray_jobs.jobs import JobRecord
from ray_jobs.models import bases
from ray_jobs.pipeline.outputs import Flow
from ray_jobs.registry import catalogue
from ray_jobs.registry.model import base_name
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS


@dataclass(frozen=True)
class Sources:
    """Fingerprints that change with the content."""

    rows: tuple[str, ...]
    """Those of `data.sources`."""
    bases: Mapping[str, str]
    """By base model."""
    dataset: str = ""
    """Digest of the dataset that `data.dataset` names. Empty: the job names rows."""


def submitted(record: JobRecord, *, everywhere: bool) -> Mapping[str, str]:
    """Fingerprints that stand for reading the source: of what was submitted and, unless `everywhere`, is not here."""
    paths = record.submitted.items()
    return {path: found for path, found in paths if everywhere or not is_here(path)}


def local_sources(store: Workspace, flow: Flow) -> set[str]:
    """The rows and bases that are files of this machine."""
    rows = {source for source in flow.job_spec.data.sources if not source.startswith("s3://")}
    return rows | {base_model for base_model in flow.base_models if bases.is_local(store, base_model)}


def read_sources(store: Workspace, flow: Flow, known: Mapping[str, str]) -> Sources:
    """Fingerprint the rows and the bases that are not `known`. Raises one error with everything that is missing."""
    problems: list[KitaeError] = []
    rows: tuple[str, ...] = ()
    named, prints = "", dict[str, str]()
    try:
        rows = tuple(known.get(source) or fingerprint(store, source) for source in flow.job_spec.data.sources)
        if flow.job_spec.data.dataset is not None:
            named = versions.dataset_of(store, flow.job_spec.data.dataset, flow.job_spec.task).digest
    except KitaeError as error:
        problems.append(error)
    for base_model in filter(None, flow.base_models):
        try:
            _require_engine(store, flow.job_spec, base_model)
            prints[base_model] = known.get(base_model) or bases.fingerprint(store, base_model)
        except KitaeError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:  # the first one's kind, which keeps its exit code
        raise type(problems[0])("the job cannot run", details=[str(problem) for problem in problems])
    return Sources(rows, prints, named)


def _require_engine(store: Workspace, spec: JobSpec, base_model: str) -> None:
    """Raise for a job whose adapter could not be served: the engine of a base in the catalogue is the operator's, and
    the name of any other base must be the team's."""
    entry = catalogue.find(store, base_model)
    if entry is not None:
        if problems := catalogue.engine_problems(entry, spec):
            raise ServingError("the job cannot be served", details=[f"{field}: {why}" for field, why in problems])
    elif spec.serving.deploy and TASKS[spec.task].generates and spec.training.method in ("lora", "qlora"):
        registry.require_base_owner(store, base_name(base_model))
