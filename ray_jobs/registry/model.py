"""A version of a model, its lineage, and their JSON in the manifest. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from ray_jobs.errors import CorruptObject, SpecError
from ray_jobs.spec import JobSpec, parse_spec
from ray_jobs.storage.unreadable import summary
from ray_jobs.tasks.base import PromptSetting

ModelKind = Literal["adapter", "full", "predictor"]

_STEP = "step"
"""A metric that only checkpoints have; versions from before `gated` are distinguished by it."""


@dataclass(frozen=True)
class Lineage:
    """The origin of a version, complete enough to train it again."""

    dataset_digest: str
    base_digest: str
    spec: JobSpec
    code_version: str
    job_id: str
    metrics: dict[str, float] = field(hash=False)
    """Metrics of the tuned model and, as `base_…`, of what it was compared with; all finite."""
    labels: tuple[str, ...] = ()
    """Classes of a classifier, in the order of its outputs."""
    trial: str | None = None
    """The trial of the job's search that won; None without a search."""
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    gated: bool = True
    """Whether it passed the gate and parity; a published checkpoint did not."""
    not_judged: str = ""
    """Why the gate could not judge it. Empty: it could, or it is a published checkpoint."""
    base_is: str = "the base model"
    """What the metrics `base_…` are of, such as `the majority class` where the base does not do the task."""
    prompts: PromptSetting = field(default=PromptSetting(), hash=False)
    """How the prompts of its rows were written; the endpoint sends the switches where a request has none."""
    dataset: str = ""
    """Name and version of the dataset, such as `reviews@3`. Empty: it has none."""


_LINEAGE = TypeAdapter(Lineage)


@dataclass(frozen=True)
class ModelVersion:
    """One registered version. `key` is the prefix of its tree in the team's workspace."""

    team: str
    """The team that registered it, from its place in the store."""
    name: str
    version: str
    key: str
    task: str
    kind: ModelKind
    """`adapter` needs its base's weights; `full` generates on its own; `predictor` is everything else."""
    base_name: str
    base_digest: str
    labels: tuple[str, ...]
    metrics: dict[str, float] = field(hash=False)
    lineage: Lineage

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {"lineage": lineage_json(self.lineage)}


def base_name(base_model: str) -> str:
    """Name of a base at the endpoint: the last part of its address, lower case, without `.gguf`."""
    last = re.split(r"[/\\]", base_model.rstrip("/\\"))[-1].lower().removesuffix(".gguf")
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-._") or "base"


def version_of(team: str, name: str, number: str, meta: dict[str, Any]) -> ModelVersion:
    """The version of a manifest, which a job's pods may have written. Raises CorruptObject."""
    what = f"{key_of(name, number)} is not a model version"
    if meta.get("kind") not in get_args(ModelKind):
        raise CorruptObject(f"{what}: its kind is {str(meta.get('kind'))[:40]!r}")
    try:
        lineage = lineage_of(meta["lineage"])
        datetime.fromisoformat(lineage.created_at).timestamp()
    except ValidationError as error:
        raise CorruptObject(f"{what}: {summary(error)}") from None
    except (KeyError, TypeError, ValueError, OverflowError, SpecError):
        raise CorruptObject(f"{what}: its lineage cannot be read") from None
    return ModelVersion(
        team=team,
        name=name,
        version=number,
        key=key_of(name, number),
        task=lineage.spec.task,
        kind=meta["kind"],
        base_name=base_name(lineage.spec.base_model) if lineage.spec.base_model else "",
        base_digest=lineage.base_digest,
        labels=lineage.labels,
        metrics=lineage.metrics,
        lineage=lineage,
    )


def lineage_json(lineage: Lineage) -> dict[str, Any]:
    dumped = {name: getattr(lineage, name).model_dump(mode="json") for name in ("spec", "prompts")}
    return vars(lineage) | dumped


def lineage_of(document: dict[str, Any]) -> Lineage:
    spec = parse_spec(document["spec"], source=f"the lineage of a model of job {document['job_id']}", stored=True)
    gated = document.get("gated", _STEP not in document["metrics"])
    return _LINEAGE.validate_python({**document, "spec": spec, "gated": gated})


def key_of(name: str, number: str) -> str:
    return f"models/{name}/{number}"
