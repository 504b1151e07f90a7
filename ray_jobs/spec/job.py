"""JobSpec: the sections together, the rules between them, and the identity that names a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ray_jobs.digests import json_digest
from ray_jobs.errors import suggestion
from ray_jobs.spec import problems as invalid
from ray_jobs.spec.identity import FORMER_FRACTION, identity_of
from ray_jobs.spec.search import SearchSection, searchable_fields
from ray_jobs.spec.section import SpecSection
from ray_jobs.spec.sections import (
    ComputeSection,
    DataSection,
    EvaluationSection,
    Name,
    ServingSection,
    TrackingSection,
    TrainingSection,
)
from ray_jobs.spec.space import Range
from ray_jobs.tasks import TASKS, TaskName

DEFAULT_TEAM = "default"
"""Team of jobs and models without a team."""

COMBINATIONS = "combinations"
"""Type of pydantic's error about fields that exclude each other; its context has the `problems`."""


def _require_base_model(schema: dict[str, Any]) -> None:
    """Add to the JSON schema that `base_model` is required for the tasks that start from one."""
    schema["if"] = {"properties": {"task": {"enum": [name for name, task in TASKS.items() if task.base is not None]}}}
    schema["then"] = {"required": ["base_model"]}


class JobSpec(SpecSection):
    """One fine-tuning job, from rows to an answering endpoint."""

    model_config = ConfigDict(json_schema_extra=_require_base_model)

    name: Name
    """The model's name in the registry and at the endpoint."""
    task: TaskName
    """What the model does, and so which columns the rows have."""
    base_model: str = Field("", validate_default=True)
    """The base model: a hub id, `s3://bucket/prefix`, a directory, or a `.gguf` file of any of these. Required, except
    for a task that trains from scratch."""
    team: Name | None = None
    """Team that owns the job and its model. None: the team `default`."""
    priority: int = Field(0, ge=-100, le=100)
    """Waiting jobs with a higher priority start first."""
    suffix: str | None = Field(None, min_length=1, max_length=64)
    """Part of the model's name in the fine-tuning API; it has no other effect."""
    data: DataSection
    training: TrainingSection = TrainingSection()
    search: SearchSection | None = None
    """Search hyperparameters; the best trial is evaluated and registered. None: train once."""
    compute: ComputeSection = ComputeSection()
    evaluation: EvaluationSection = EvaluationSection()
    serving: ServingSection = ServingSection()
    tracking: TrackingSection = TrackingSection()

    @field_validator("base_model")
    @classmethod
    def _suits_the_task(cls, base_model: str, info: ValidationInfo) -> str:
        task = TASKS.get(info.data.get("task", ""))
        from_scratch = task is not None and task.base is None
        if not base_model and not from_scratch:
            raise PydanticCustomError("missing", "Field required")
        if base_model and from_scratch:
            raise ValueError("this task trains from scratch; leave base_model out")
        return base_model

    @model_validator(mode="after")
    def _combinations(self) -> JobSpec:
        problems = self.data.problems()
        if not self.base_model and self.training.method != "full":
            problems.append(f"task: {self.task} has no base model to adapt; set training.method: full")
        if self.compute.offload != "none" and self.compute.zero_stage < 2:
            problems.append(
                f"compute.offload: {self.compute.offload} needs compute.zero_stage 2 or 3, and it is "
                f"{self.compute.zero_stage}"
            )
        if self.compute.offload == "optimizer_and_parameters" and self.compute.zero_stage != 3:
            problems.append("compute.offload: optimizer_and_parameters needs compute.zero_stage: 3")
        if self.training.method == "qlora" and self.compute.zero_stage == 3:
            problems.append("training.method: qlora does not work with compute.zero_stage: 3; use 2, or method: lora")
        if self.training.micro_batch_tokens < self.data.max_tokens:
            problems.append(
                f"training.micro_batch_tokens is {self.training.micro_batch_tokens}, less than one row of "
                f"data.max_tokens {self.data.max_tokens}; raise the first or lower the second"
            )
        problems += self._search_problems()
        if problems:
            raise PydanticCustomError(COMBINATIONS, "{text}", {"text": "; ".join(problems), "problems": problems})
        return self

    def _search_problems(self) -> list[str]:
        if self.search is None:
            return []
        problems = []
        known = ("loss", TASKS[self.task].metric)
        for place, metric in enumerate(self.search.metrics):
            if metric not in (known if place == 0 else (*known, "tokens_per_s")):
                problems.append(f"search.metric: {self.task} has no {metric!r}; it has {' and '.join(known)}")
        fields = [*searchable_fields(TrainingSection), "base_model"]
        for name, values in (self.search.space or {}).items():
            if name not in fields:
                problems.append(f"search.space.{name}: no field of training has this name; {suggestion(name, fields)}")
                continue
            ends = (values.min, values.max) if isinstance(values, Range) else values
            for value in ends:
                try:
                    self.with_values({name: value})
                except ValidationError as error:
                    problems += [f"search.space.{name}: {text}" for _, text in invalid.problems(error.errors(), {})]
        return problems

    def with_values(self, values: Mapping[str, Any]) -> JobSpec:
        """The same job without its search, with these values of searched fields."""
        document = self.model_dump(exclude={"search"})
        for name, value in values.items():
            if name == "base_model":
                document["base_model"] = value
                continue
            *sections, field = name.split(".")
            place = document["training"]
            for section in sections:
                place = place[section]
            place[field] = value
        return JobSpec.model_validate(document)

    def digest(self) -> str:
        """16 hex digits of SHA-256 over the resolved spec without `compute`, `priority` and `tracking`: a registered
        version with another one has other weights, another judgement or other serving options."""
        resolved = self.model_dump(mode="json", exclude={"compute", "priority", "tracking"}, exclude_none=True)
        # Newer than some stored jobs: left out while it is off, so that their ids do not change.
        if not self.training.publish_checkpoints:
            del resolved["training"]["publish_checkpoints"]
        resolved["data"].setdefault("held_out_fraction", FORMER_FRACTION)
        return json_digest(resolved)

    @property
    def identity(self) -> str:
        """10 hex digits of what decides the trained weights: job files with the same are one job.

        What comes after the training is no part of it, nor how a path is written or on how many workers it runs.
        """
        return identity_of(self.model_dump(mode="json", exclude_none=True))

    @property
    def job_id(self) -> str:
        """`{name}-{identity}`, the id of a new job. `jobs.id_of` also finds those of earlier versions."""
        return f"{self.name}-{self.identity}"

    @property
    def former_id(self) -> str:
        """The id that earlier versions gave to a job with exactly this file."""
        return f"{self.name}-{self.digest()[:10]}"
