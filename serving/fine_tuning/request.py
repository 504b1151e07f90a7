"""Resolves a create request to a job file. Pure; reports all invalid fields at once, each by its name.

Combines OpenAI's hyperparameters with Kitae's own sections; where both set the same option, the section wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ray_jobs.errors import SpecError
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.spec import JobSpec, TrainingSection, parse_spec
from ray_jobs.training.lr_schedule import default_learning_rate
from serving.files.stored_files import FINE_TUNE, FileRecord
from serving.fine_tuning.records import ApiJob
from serving.http import openai_types
from serving.http.errors import ApiError
from serving.http.ids import created_at_s

LEAST_ROWS = 10
"""OpenAI's minimum; fewer rows leave none to hold out."""
_KEPT_CHECKPOINTS = 3
"""The number that OpenAI keeps."""
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512
_PASS_TOKENS = 2048
_TARGET_EXAMPLES, _MAX_EXAMPLES, _EPOCHS, _MAX_EPOCHS = 100, 25_000, 3, 25


@dataclass
class Problems:
    """Collects the invalid fields of a request as (field, message)."""

    found: list[tuple[str, str]] = field(default_factory=list)

    def add(self, param: str, message: str) -> None:
        self.found.append((param, message))

    def raise_if_any(self, code: str | None = None) -> None:
        if not self.found:
            return
        message = "; ".join(f"{param}: {text}" for param, text in self.found)
        details = [{"param": param, "message": text} for param, text in self.found]
        raise ApiError(400, message, param=self.found[0][0], code=code or "invalid_request", details=details)


@dataclass(frozen=True)
class ResolvedRequest:
    """Result of resolving a request."""

    spec: JobSpec
    hyperparameters: dict[str, Any]
    """The values that replace each `auto`."""
    method: dict[str, Any]


def auto_epochs(examples: int) -> int:
    """Epochs for `auto`: 3, more for few rows, fewer for very many.

    Source: OpenAI's cookbook, "Data preparation and analysis for chat model fine-tuning".
    """
    if examples * _EPOCHS < _TARGET_EXAMPLES:
        return min(_MAX_EPOCHS, max(1, _TARGET_EXAMPLES // examples))
    if examples * _EPOCHS > _MAX_EXAMPLES:
        return max(1, _MAX_EXAMPLES // examples)
    return _EPOCHS


def auto_batch_size(examples: int) -> int:
    """Batch size for `auto`: 16, or less so that an epoch has at least 8 steps."""
    return max(1, min(16, examples // 8))


def resolve(
    body: openai_types.CreateFineTuningJob,
    *,
    identifier: str,
    team: str,
    entry: CatalogueEntry | None,
    training: FileRecord | None,
    validation: FileRecord | None,
    address_of: Mapping[str, str],
    bases: Mapping[str, CatalogueEntry],
    defaults: Mapping[str, Any],
) -> ResolvedRequest:
    """Resolve a request. Raises ApiError 400 with every invalid field.

    `entry`, `training`, `validation`: the base and the files that the request names; None if they do not exist.
    `address_of`: file id → `s3://` address. `bases`: the catalogue. `defaults`: default sections of this endpoint.
    """
    problems = Problems()
    _check_method(body, problems)
    _check_metadata(body, problems)
    if entry is None:
        known = ", ".join(bases) or "none; `kitae bases add SOURCE` adds one"
        problems.add("model", f"the base model {body.model!r} does not exist; available: {known}")
    for param, record, wanted in (
        ("training_file", training, body.training_file),
        ("validation_file", validation, body.validation_file),
    ):
        if wanted is not None:
            _check_file(param, record, wanted, problems)
    _check_data(body, problems)
    problems.raise_if_any()
    assert entry is not None
    assert training is not None
    assert training.report is not None
    task = body.task or training.report.task
    if task not in entry.tasks:
        problems.add("model", f"{entry.name} does not support {task}; it supports {', '.join(entry.tasks)}")
    for param, record in (("training_file", training), ("validation_file", validation)):
        if record is None or record.report is None:
            continue
        if record.report.task != task:
            problems.add(param, f"{record.id} has rows for {record.report.task}, not for {task}")
        long = record.report.too_long if record.report.model == entry.name else ()
        if long and (body.data or {}).get("too_long", "error") == "error":
            lines = ", ".join(map(str, long[:10])) + (", …" if len(long) > 10 else "")
            fix = "shorten them, or set data.too_long to drop or truncate"
            problems.add(
                param, f"lines {lines} are longer than {entry.name}'s maximum of {entry.max_tokens} tokens: {fix}"
            )
    if training.report.rows < LEAST_ROWS:
        problems.add(
            "training_file", f"{training.id} has {training.report.rows} rows; at least {LEAST_ROWS} are needed"
        )
    problems.raise_if_any()

    hyper = _hyperparameters(body)
    epochs = auto_epochs(training.report.rows) if hyper.n_epochs == "auto" else hyper.n_epochs
    batch_size = auto_batch_size(training.report.rows) if hyper.batch_size == "auto" else hyper.batch_size
    method = body.method if isinstance(body.method, str) else "lora"
    own: dict[str, Any] = {
        "name": identifier,
        "task": task,
        "base_model": entry.name,
        "team": team,
        "suffix": body.suffix,
        "priority": body.priority or 0,
        "data": _data(body, entry, training, validation, address_of),
        "training": {
            "method": method,
            "epochs": epochs,
            "batch_size": batch_size,
            "publish_checkpoints": True,
            "checkpoints_to_keep": _KEPT_CHECKPOINTS,
            **({} if body.seed is None else {"seed": body.seed}),
            **({} if body.lora_rank is None else {"lora": {"rank": body.lora_rank, "alpha": 2.0 * body.lora_rank}}),
        },
    }
    if body.search is not None and body.search is not False:
        own["search"] = {} if body.search is True else body.search
    sections = {name: getattr(body, name) or {} for name in ("training", "compute", "evaluation", "serving")}
    document = merged(merged(defaults, own), sections)
    document["training"] = _with_learning_rate(document["training"], hyper, task)
    longest = document["data"].get("max_tokens")
    if isinstance(longest, int):
        document["training"].setdefault("micro_batch_tokens", max(_PASS_TOKENS, longest))
    spec = _parsed(document, problems)
    searched = (spec.search.space or {}).get("base_model", ()) if spec.search is not None else ()
    for name in searched if isinstance(searched, tuple) else ():
        if name not in bases:
            problems.add("search.space.base_model", f"the base model {name!r} does not exist")
    problems.raise_if_any()
    resolved = {
        "n_epochs": spec.training.epochs,
        "batch_size": spec.training.batch_size,
        "learning_rate_multiplier": _multiplier(spec),
    }
    return ResolvedRequest(spec, resolved, {"type": "supervised", "supervised": {"hyperparameters": resolved}})


def new_api_job(
    body: openai_types.CreateFineTuningJob, team: str, key_id: str, identifier: str, resolved: ResolvedRequest
) -> ApiJob:
    """Build the API's record of a resolved request."""
    return ApiJob(
        id=identifier,
        team=team,
        key_id=key_id,
        created_at=int(created_at_s(identifier)),
        model=body.model,
        training_file=body.training_file,
        validation_file=body.validation_file,
        suffix=body.suffix,
        seed=resolved.spec.training.seed,
        metadata=body.metadata,
        integrations=None,
        method=resolved.method,
        hyperparameters=resolved.hyperparameters,
        spec=resolved.spec.model_dump(mode="json"),
        job_id=resolved.spec.job_id,
    )


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested documents; values of the second win."""
    result = dict(first)
    for name, value in second.items():
        current = result.get(name)
        both = isinstance(current, Mapping) and isinstance(value, Mapping)
        result[name] = merged(current, value) if both else value  # type: ignore[arg-type]  # `both` has narrowed it
    return result


def _check_method(body: openai_types.CreateFineTuningJob, problems: Problems) -> None:
    if isinstance(body.method, openai_types.Method) and body.method.type != "supervised":
        problems.add("method.type", f"{body.method.type} is not supported; supervised is")
    if body.integrations:
        problems.add("integrations", "not supported; `GET /fine_tuning/jobs/{id}/events` returns a job's metrics")


def _check_metadata(body: openai_types.CreateFineTuningJob, problems: Problems) -> None:
    pairs = body.metadata or {}
    if len(pairs) > _MAX_PAIRS:
        problems.add("metadata", f"it has {len(pairs)} pairs; at most {_MAX_PAIRS}")
    for key, value in pairs.items():
        if len(key) > _MAX_KEY:
            problems.add("metadata", f"the key {key[:20]!r}… has {len(key)} characters; at most {_MAX_KEY}")
        if len(value) > _MAX_VALUE:
            problems.add(f"metadata.{key[:20]}", f"it has {len(value)} characters; at most {_MAX_VALUE}")


def _check_file(param: str, record: FileRecord | None, wanted: str, problems: Problems) -> None:
    if record is None:
        problems.add(param, f"the file {wanted!r} does not exist")
    elif record.purpose != FINE_TUNE or record.report is None:
        problems.add(param, f"{wanted} was uploaded for {record.purpose}, not with purpose {FINE_TUNE}")


def _check_data(body: openai_types.CreateFineTuningJob, problems: Problems) -> None:
    for name in sorted({"train", "held_out"} & set(body.data or {})):
        instead = "training_file" if name == "train" else "validation_file"
        problems.add(f"data.{name}", f"rows come from files: upload them and name the file in {instead}")


def _hyperparameters(body: openai_types.CreateFineTuningJob) -> openai_types.Hyperparameters:
    """Merge the method's hyperparameters over OpenAI's deprecated top-level ones."""
    old = body.hyperparameters or openai_types.Hyperparameters()
    new = body.method.supervised if isinstance(body.method, openai_types.Method) else None
    named = {} if new is None else new.hyperparameters.model_dump(exclude_unset=True)
    return old.model_copy(update=named)


def _data(
    body: openai_types.CreateFineTuningJob,
    entry: CatalogueEntry,
    training: FileRecord,
    validation: FileRecord | None,
    address_of: Mapping[str, str],
) -> dict[str, Any]:
    """Build the data section; `max_tokens` is the longest row's length, at least 1024, at most the model's maximum."""
    reports = [record.report for record in (training, validation) if record is not None and record.report is not None]
    known = [report.longest_tokens for report in reports if report.longest_tokens is not None]
    most = entry.max_tokens or max([1024, *known])
    document: dict[str, Any] = {
        "train": address_of[training.id],
        "max_tokens": min(most, max([1024, *known])),
        **({} if validation is None else {"held_out": address_of[validation.id]}),
    }
    return document | (body.data or {})


def _with_learning_rate(training: Mapping[str, Any], hyper: openai_types.Hyperparameters, task: str) -> dict[str, Any]:
    """Set the learning rate from the multiplier, unless the training section sets one."""
    document = dict(training)
    if document.get("learning_rate") is None and hyper.learning_rate_multiplier != "auto":
        try:
            section = TrainingSection.model_validate(document)
        except ValidationError:
            return document  # `_parsed` reports what is invalid
        document["learning_rate"] = hyper.learning_rate_multiplier * default_learning_rate(section, task)
    return document


def _multiplier(spec: JobSpec) -> float:
    default = default_learning_rate(spec.training, spec.task)
    return round((spec.training.learning_rate or default) / default, 6)


def _parsed(document: dict[str, Any], problems: Problems) -> JobSpec:
    try:
        return parse_spec(document)
    except SpecError as error:
        for detail in error.details:
            where, colon, text = detail.partition(": ")
            problems.add(where, text) if colon and " " not in where else problems.add("body", detail)
        problems.raise_if_any()
        raise
