"""The job file: one YAML document, one frozen schema, every default in one place.

Owns the shape and the static rules of a job. Knows nothing of files, stores, models or clusters: no I/O beyond
`load_spec` reading the file it is given. The fields' docstrings become the exported JSON schema's descriptions.

A little over 400 lines, so that a job's whole schema is read in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from ray_jobs.digests import json_digest
from ray_jobs.errors import SpecError, suggestion

TaskName = Literal["chat", "text_classification"]
Method = Literal["full", "lora", "qlora", "frozen"]
Precision = Literal["auto", "fp32", "bf16"]
Schedule = Literal["constant", "linear", "cosine", "warmup_stable_decay"]
Algorithm = Literal["asha", "tpe", "random", "grid", "pbt"]
Offload = Literal["none", "optimizer", "optimizer_and_parameters"]

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,46}[a-z0-9])?$")]
"""A name that is safe in a store key, a Serve application and a Kubernetes object: lower case, at most 48 long."""


METRICS: dict[TaskName, str] = {"chat": "token_accuracy", "text_classification": "accuracy"}
"""Each task's own measure on held-out rows, higher is better."""


_MOST_VALUES = 1000
"""That a search may try of one field: each is checked with the whole job."""
_MOST_FIELDS = 100
_MOST_FINDINGS = 100


class Section(BaseModel):
    """A part of the job file: frozen, and a field it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataSection(Section):
    train: str
    """Rows to train on: `s3://bucket/key` or a path; `.jsonl`, `.csv`, `.tsv` or `.parquet`."""
    held_out: str | None = None
    """Rows to evaluate on. None: `held_out_fraction` of the training rows is set aside."""
    held_out_fraction: float = Field(0.1, gt=0.0, lt=1.0)
    """Share of the rows set aside when `held_out` is None. Rows with the same content go to the same side."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of the file for each column of the task, where they differ, such as `{text: body, label: is_spam}`."""
    max_rows: int | None = Field(None, ge=1)
    """Use only this many rows, chosen by hash (the same each time). None: all."""
    max_tokens: int = Field(1024, ge=8)
    """Longest row in tokens."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What happens to a longer row: refuse the data, leave the row out, or cut it at the end."""


class LoraSection(Section):
    rank: int = Field(16, ge=1, le=512)
    """Rank of the update matrices."""
    alpha: float = Field(32.0, gt=0)
    """Scale: the update is multiplied by alpha / rank (Hu et al. 2021, arXiv:2106.09685)."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get an adapter; `all-linear` is every one but the head."""


class TrainingSection(Section):
    method: Method = "lora"
    """`full`: every weight. `lora`: low-rank adapters. `qlora`: the same over a 4-bit base. `frozen`: only the head,
    or for a causal model its last `trainable_blocks` blocks."""
    lora: LoraSection = LoraSection()
    """Used by `lora` and `qlora`."""
    trainable_blocks: int = Field(2, ge=1)
    """Used by `frozen` on a causal model: how many of the last transformer blocks are trained."""
    epochs: int = Field(3, ge=1, le=50)
    """Passes over the training rows."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps. None: after `epochs`."""
    batch_size: int = Field(16, ge=1)
    """Rows an optimizer step, over all workers."""
    micro_batch_tokens: int = Field(2048, ge=8)
    """Most tokens one worker puts through the model at once; a step accumulates as many such passes as it needs."""
    packing: bool = True
    """Put several rows in one sequence, without attention across them (causal models only; others are padded)."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate. None: 2e-4 for lora and qlora, 2e-5 for full, 1e-3 for a frozen backbone's head and 5e-5
    for a frozen causal model's blocks."""
    warmup_fraction: float = Field(0.05, ge=0.0, lt=1.0)
    """Share of the steps over which the rate climbs from 0."""
    schedule: Schedule = "cosine"
    """How the rate falls to 0 after the warm-up. `warmup_stable_decay`: not until the last fifth of the steps (Hägele
    et al. 2024, arXiv:2405.18392); every trial of a search has this one."""
    weight_decay: float = Field(0.0, ge=0.0)
    """AdamW's decoupled weight decay; not applied to biases and norms."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Clip the global gradient norm at this. None: no clipping."""
    precision: Precision = "auto"
    """`auto`: bf16 where the hardware computes it natively, else fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    eval_every_steps: int | None = Field(None, ge=1)
    """Held-out loss after every so many steps. None: at the end of each epoch."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations without a better held-out loss. None: never."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Save after every so many steps, besides after each evaluation. None: only after evaluations."""
    checkpoints_to_keep: int = Field(2, ge=1)
    """The best N by held-out loss stay in the store, and always the last."""
    publish_checkpoints: bool = False
    """Register the other checkpoints that stay as further versions of the model, each with the alias
    `ckpt-step-{step}` (chat models with adapters only)."""
    seed: int = Field(42, ge=0, le=2**31 - 1)
    """Seeds the order of the rows, new weights and dropout."""


class ComputeSection(Section):
    workers: int = Field(1, ge=1)
    """Training processes, one a GPU (or, without GPUs, one a share of the cores)."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """Ray CPUs reserved for each."""
    gpus_per_worker: int = Field(0, ge=0, le=1)
    """GPUs reserved for each: 0 or 1."""
    threads_per_worker: int | None = Field(None, ge=1)
    """Compute threads a CPU worker uses. None: the machine's cores divided by the workers on it."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: what is split over the workers. 1: optimizer state; 2: and gradients; 3: and weights.
    In bf16, 0 runs as 1."""
    offload: Offload = "none"
    """Keep optimizer state, or weights too, in CPU memory (needs zero_stage 2 or 3; weights need 3)."""
    max_failures: int = Field(3, ge=0)
    """How often lost workers are started again from the last checkpoint before the job fails."""


class ParitySection(Section):
    prompts: int = Field(8, ge=1, le=256)
    """Held-out prompts sent through the serving engine and through the trainer's model."""
    max_mean_logprob_gap: float | None = Field(None, gt=0)
    """Largest mean |difference| of the answer tokens' log-probabilities. None: 1e-3 in fp32, 0.1 in bf16."""


class EvaluationSection(Section):
    must_beat_base: bool = True
    """Refuse to register a model whose held-out loss is not below its base's."""
    generate_rows: int = Field(16, ge=0)
    """Held-out rows answered by both models for the task metric (chat only)."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest such answer, in tokens."""
    parity: ParitySection = ParitySection()
    """Served equals trained."""


class ServingSection(Section):
    deploy: bool = True
    """Deploy the version once it is registered."""
    max_model_len: int = Field(2048, ge=64)
    """Longest prompt plus answer, in tokens."""
    max_loras: int = Field(4, ge=1)
    """Adapters a base's engine holds in memory at once."""
    max_ongoing_requests: int = Field(32, ge=1)
    """Requests a replica works on at once."""
    max_queued_requests: int = Field(128, ge=1)
    """Requests that may wait beyond those; more are answered 429."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Memory of a CPU engine's key/value cache, in GiB (a GPU engine takes what is free)."""


class Range(Section):
    min: float
    """Least value."""
    max: float
    """Largest value."""
    scale: Literal["linear", "log"] = "linear"
    """`log`: as likely between 1 and 10 as between 10 and 100."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.min >= self.max:
            raise ValueError(f"the range from {self.min:g} to {self.max:g} is empty: min must be below max")
        if self.scale == "log" and self.min <= 0:
            raise ValueError(f"a log range cannot begin at {self.min:g}: min must be above 0")
        return self


Values = Annotated[tuple[Any, ...], Field(min_length=1, max_length=_MOST_VALUES)]
Tried = Annotated[
    Annotated[Range, Tag("a range")] | Annotated[Values, Tag("a list")],
    Discriminator(lambda given: "a range" if isinstance(given, dict | Range) else "a list"),
]
"""What a search tries of one field."""


class BudgetSection(Section):
    hours: float | None = Field(None, gt=0)
    """Wall-clock hours of the search, over all its starts."""
    gpu_hours: float | None = Field(None, gt=0)
    """Hours of all training workers together (of CPU workers where there are no GPUs)."""
    money: float | None = Field(None, gt=0)
    """What these may cost, at `price_per_hour`."""
    price_per_hour: float | None = Field(None, gt=0)
    """Of one training worker."""
    gain_below: float | None = Field(None, gt=0)
    """Stop sampling when another trial is expected to improve the metric by less than this."""

    @model_validator(mode="after")
    def _priced(self) -> BudgetSection:
        if self.money is not None and self.price_per_hour is None:
            raise ValueError("money needs price_per_hour, the price of one worker's hour")
        return self


class SearchSection(Section):
    space: dict[str, Tried] | None = Field(None, max_length=_MOST_FIELDS)
    """What is tried: a field of `training` (`learning_rate`, `lora.rank`, …) or `base_model`, and for each a list of
    values or a range `{min, max, scale}`. None: the space that suits the task and method, which `plan` shows."""
    algorithm: Algorithm = "asha"
    """`asha`: TPE proposes, and a trial goes on only while it is among the best of its rung. `tpe`, `random` and
    `grid`: every trial is trained to its end. `pbt`: a population whose worst members go on from the best."""
    metric: str = "loss"
    """On held-out rows: `loss`, or the task's own (`token_accuracy`, `accuracy`)."""
    trials: int = Field(16, ge=1, le=10_000)
    """Most trials; for `pbt` the population's size. `grid` has one a point."""
    parallel: int = Field(4, ge=1, le=256)
    """Trials at once."""
    rungs: int = Field(3, ge=1, le=8)
    """How often a trial of `asha` is judged, and a population of `pbt`."""
    reduction: int = Field(3, ge=2, le=16)
    """Of so many trials at a rung one goes on to the next, which is so many times as long (Li et al. 2018,
    arXiv:1810.05934)."""
    finalists: int = Field(2, ge=1, le=16)
    """The best trials, which are run again with another seed before one wins. 1: the best wins as it is."""
    retrain: bool = False
    """Train the winner's values once more, as `training` and `compute` say, instead of taking the winner itself. With
    `finalists: 1` no trial then goes on to its end."""
    budget: BudgetSection = BudgetSection()
    """Where the search stops sampling, besides `trials`."""
    trial_minutes: float | None = Field(None, gt=0)
    """A stretch of a trial that takes longer is given up. None: no limit."""
    warm_start: bool = True
    """Try first what did best in earlier searches on the same base model and task."""
    checkpoints_to_keep: int = Field(3, ge=1)
    """Of how many of the best trials the checkpoints stay once the search is over."""
    storage_gib: float | None = Field(None, gt=0)
    """Most that checkpoints may take while it runs; the worst trials' go first, which begin anew if they go on after
    all. What runs, and the finalists', stay in any case. None: no limit."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Of what is proposed."""

    @model_validator(mode="after")
    def _combinations(self) -> SearchSection:
        ranges = sorted(name for name, values in (self.space or {}).items() if isinstance(values, Range))
        if self.algorithm == "grid" and ranges:
            raise ValueError(f"algorithm: grid needs lists of values, and {', '.join(ranges)} has a range")
        if self.algorithm == "grid" and self.space is None:
            raise ValueError("algorithm: grid needs space, with a list of values for each field")
        if self.space is not None and not self.space:
            raise ValueError("space is empty: name a field to try values of, or leave it out for the default")
        return self


class JobSpec(Section):
    """One fine-tuning job, from rows to an answering endpoint."""

    name: Name
    """The model's name in the registry and at the endpoint."""
    task: TaskName
    """What the model does, and so which columns the rows have."""
    base_model: str
    """Where to start: a hub id, `s3://bucket/prefix`, a directory, or a `.gguf` file of any of these."""
    team: Name | None = None
    """Who owns the job and its model. None: the team `default`."""
    priority: int = Field(0, ge=-100, le=100)
    """Of the jobs that wait, one with a higher priority starts first."""
    suffix: str | None = Field(None, min_length=1, max_length=64)
    """Shown in the model's name at the endpoint's fine-tuning API; it changes nothing else."""
    data: DataSection
    training: TrainingSection = TrainingSection()
    search: SearchSection | None = None
    """Search hyperparameters; the best trial is what is evaluated and registered. None: train once."""
    compute: ComputeSection = ComputeSection()
    evaluation: EvaluationSection = EvaluationSection()
    serving: ServingSection = ServingSection()

    @model_validator(mode="after")
    def _combinations(self) -> JobSpec:
        problems = []
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
            raise _Problems(problems)
        return self

    def _search_problems(self) -> list[str]:
        if self.search is None:
            return []
        problems = []
        metrics = ("loss", METRICS[self.task])
        if self.search.metric not in metrics:
            problems.append(f"search.metric: {self.task} has no {self.search.metric!r}; it has {' and '.join(metrics)}")
        known = [*_searchable(TrainingSection), "base_model"]
        for name, values in (self.search.space or {}).items():
            if name not in known:
                problems.append(f"search.space.{name}: no field of training has this name; {suggestion(name, known)}")
                continue
            ends = (values.min, values.max) if isinstance(values, Range) else values
            for value in ends:
                try:
                    self.with_values({name: value})
                except ValidationError as error:
                    problems += [f"search.space.{name}: {value!r}: {item['msg']}" for item in error.errors()]
                except ValueError as error:
                    problems.append(f"search.space.{name}: {error}")
        return problems

    def with_values(self, values: Mapping[str, Any]) -> JobSpec:
        """The same job without its search, with these values of searched fields in their places."""
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
        """16 hex digits of SHA-256 over the resolved spec without `compute` and `priority`: on how many workers a job
        runs, and when, does not change what it comes to, so it can go on with others."""
        resolved = self.model_dump(mode="json", exclude={"compute", "priority"}, exclude_none=True)
        # Newer than jobs that are in stores: while it is off, their ids stay what they were.
        if not self.training.publish_checkpoints:
            del resolved["training"]["publish_checkpoints"]
        return json_digest(resolved)

    @property
    def job_id(self) -> str:
        """`{name}-{digest}`: running the same spec again is going on with the same job."""
        return f"{self.name}-{self.digest()[:10]}"


def _searchable(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Names of a section's fields that a search can try values of."""
    names: list[str] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += _searchable(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def load_spec(path: Path) -> JobSpec:
    """Read a job file. Raises SpecError naming every wrong field, with the nearest right name for an unknown one."""
    document = read_yaml(path, "job file")
    if not isinstance(document, dict):
        raise SpecError(f"{path} holds a {type(document).__name__}, not a mapping of fields; see `kitae schema`")
    return parse_spec(document, source=str(path))


def read_yaml(path: Path, what: str) -> Any:
    """A YAML document. SpecError, naming `what` it should have been, where there is none."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError(f"no {what} at {path}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{path} is not readable YAML: {error}") from error


def parse_spec(document: dict[str, Any], *, source: str = "the spec", stored: bool = False) -> JobSpec:
    """Validate a document; a `stored` one may be of an older version, and have fields that are no more.

    Raises SpecError with one detail a finding.
    """
    try:
        return JobSpec.model_validate(document, extra="ignore" if stored else None)
    except ValidationError as error:
        items = error.errors()
        details = [finding for item in items[:_MOST_FINDINGS] for finding in _explain(dict(item))][:_MOST_FINDINGS]
        count = max(len(items), len(details))
        if count > len(details):
            details.append(f"+{count - len(details)} more")
        raise SpecError(f"{source}: {count} field(s) are wrong", details=details) from error


def json_schema() -> dict[str, Any]:
    """The JSON schema of a job file, for editors."""
    return JobSpec.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}


class _Problems(ValueError):
    """Several findings of one validator."""

    def __init__(self, findings: list[str]) -> None:
        super().__init__("; ".join(findings))
        self.findings = findings


def _explain(item: dict[str, Any]) -> list[str]:
    """One of pydantic's errors as findings."""
    location = [str(part) for part in item["loc"] if part not in ("a range", "a list")]
    where = ".".join(location)
    if isinstance(found := item.get("ctx", {}).get("error"), _Problems):
        return found.findings
    if item["type"] == "extra_forbidden":
        return [f"{where}: unknown field; {suggestion(location[-1], _fields_at(location[:-1]))}"]
    if item["type"] == "missing":
        return [f"{where}: required, and missing"]
    if item["type"] == "value_error":
        return [f"{where}: {item['ctx']['error']}" if where else str(item["ctx"]["error"])]
    return [f"{where}: {item['msg']} (got {item['input']!r:.200})"]


def _fields_at(location: list[str]) -> list[str]:
    model: type[BaseModel] = JobSpec
    for part in location:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return sorted(model.model_fields)
