"""From a request to a job file. Pure: what is wrong is told all at once, each with the field's own name.

OpenAI's hyperparameters and Kitae's own sections meet here; where both speak of the same, the section, which is the
more exact, wins.
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
from serving.http import openai_types as wire
from serving.http.errors import ApiError

LEAST_ROWS = 10
"""OpenAI's own limit; with fewer there is nothing to hold out."""
_KEPT_CHECKPOINTS = 3
"""As many as OpenAI keeps."""
_MOST_PAIRS, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512
_PASS_TOKENS = 2048
_TARGET_EXAMPLES, _MOST_EXAMPLES, _EPOCHS, _MOST_EPOCHS = 100, 25_000, 3, 25


@dataclass
class Problems:
    """What is wrong with a request: (field, what)."""

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
class Resolved:
    """What a request comes to."""

    spec: JobSpec
    hyperparameters: dict[str, Any]
    """As the API tells them: no `auto` is left."""
    method: dict[str, Any]


def auto_epochs(examples: int) -> int:
    """Epochs for `auto`: three, more for a few rows, fewer for very many (OpenAI's cookbook, "Data preparation and
    analysis for chat model fine-tuning")."""
    if examples * _EPOCHS < _TARGET_EXAMPLES:
        return min(_MOST_EPOCHS, max(1, _TARGET_EXAMPLES // examples))
    if examples * _EPOCHS > _MOST_EXAMPLES:
        return max(1, _MOST_EXAMPLES // examples)
    return _EPOCHS


def auto_batch_size(examples: int) -> int:
    """Rows a step for `auto`: 16, and fewer where an epoch would have less than eight steps."""
    return max(1, min(16, examples // 8))


def resolve(
    body: wire.CreateJob,
    *,
    identifier: str,
    team: str,
    entry: CatalogueEntry | None,
    training: FileRecord | None,
    validation: FileRecord | None,
    address_of: Mapping[str, str],
    bases: Mapping[str, CatalogueEntry],
    defaults: Mapping[str, Any],
) -> Resolved:
    """The job file of a request. ApiError 400 with everything that is wrong.

    `entry`, `training`, `validation` are what the request's names stand for, None where there is no such thing.
    `address_of`: the `s3://` address of each file by its id. `bases`: the catalogue. `defaults`: sections that every
    job of this endpoint has.
    """
    problems = Problems()
    _check_method(body, problems)
    _check_metadata(body, problems)
    if entry is None:
        known = ", ".join(bases) or "none yet; `kitae bases add SOURCE` brings one"
        problems.add("model", f"there is no base model {body.model!r} to fine-tune; there are: {known}")
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
        problems.add("model", f"{entry.name} cannot do {task}; it does {', '.join(entry.tasks)}")
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
                param, f"lines {lines} are longer than the {entry.max_tokens} tokens {entry.name} takes: {fix}"
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
    document["training"] = _rated(document["training"], hyper, task)
    longest = document["data"].get("max_tokens")
    if isinstance(longest, int):
        document["training"].setdefault("micro_batch_tokens", max(_PASS_TOKENS, longest))
    spec = _parsed(document, problems)
    searched = (spec.search.space or {}).get("base_model", ()) if spec.search is not None else ()
    for name in searched if isinstance(searched, tuple) else ():
        if name not in bases:
            problems.add("search.space.base_model", f"there is no base model {name!r}")
    problems.raise_if_any()
    told = {
        "n_epochs": spec.training.epochs,
        "batch_size": spec.training.batch_size,
        "learning_rate_multiplier": _multiplier(spec),
    }
    return Resolved(spec, told, {"type": "supervised", "supervised": {"hyperparameters": told}})


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested documents as one; where both have a value, the second's."""
    result = dict(first)
    for name, value in second.items():
        there = result.get(name)
        both = isinstance(there, Mapping) and isinstance(value, Mapping)
        result[name] = merged(there, value) if both else value  # type: ignore[arg-type]  # `both` has narrowed it
    return result


def _check_method(body: wire.CreateJob, problems: Problems) -> None:
    if isinstance(body.method, wire.Method) and body.method.type != "supervised":
        problems.add("method.type", f"{body.method.type} is not there yet; supervised is")
    if body.integrations:
        problems.add("integrations", "there are none here; `GET /fine_tuning/jobs/{id}/events` has a job's metrics")


def _check_metadata(body: wire.CreateJob, problems: Problems) -> None:
    pairs = body.metadata or {}
    if len(pairs) > _MOST_PAIRS:
        problems.add("metadata", f"it has {len(pairs)} pairs; at most {_MOST_PAIRS}")
    for key, value in pairs.items():
        if len(key) > _LONGEST_KEY:
            problems.add("metadata", f"the key {key[:20]!r}… has {len(key)} characters; at most {_LONGEST_KEY}")
        if len(value) > _LONGEST_VALUE:
            problems.add(f"metadata.{key[:20]}", f"it has {len(value)} characters; at most {_LONGEST_VALUE}")


def _check_file(param: str, record: FileRecord | None, wanted: str, problems: Problems) -> None:
    if record is None:
        problems.add(param, f"there is no file {wanted!r}")
    elif record.purpose != FINE_TUNE or record.report is None:
        problems.add(param, f"{wanted} was uploaded for {record.purpose}, not with purpose {FINE_TUNE}")


def _check_data(body: wire.CreateJob, problems: Problems) -> None:
    for name in sorted({"train", "held_out"} & set(body.data or {})):
        instead = "training_file" if name == "train" else "validation_file"
        problems.add(f"data.{name}", f"rows come from files: upload them and name the file in {instead}")


def _hyperparameters(body: wire.CreateJob) -> wire.Hyperparameters:
    """Those of the method go before the old ones at the top."""
    old = body.hyperparameters or wire.Hyperparameters()
    new = body.method.supervised if isinstance(body.method, wire.Method) else None
    named = {} if new is None else new.hyperparameters.model_dump(exclude_unset=True)
    return old.model_copy(update=named)


def _data(
    body: wire.CreateJob,
    entry: CatalogueEntry,
    training: FileRecord,
    validation: FileRecord | None,
    address_of: Mapping[str, str],
) -> dict[str, Any]:
    """The longest row decides how long rows may be, as far as the model goes."""
    reports = [record.report for record in (training, validation) if record is not None and record.report is not None]
    known = [report.longest_tokens for report in reports if report.longest_tokens is not None]
    most = entry.max_tokens or max([1024, *known])
    document: dict[str, Any] = {
        "train": address_of[training.id],
        "max_tokens": min(most, max([1024, *known])),
        **({} if validation is None else {"held_out": address_of[validation.id]}),
    }
    return document | (body.data or {})


def _rated(training: Mapping[str, Any], hyper: wire.Hyperparameters, task: str) -> dict[str, Any]:
    """With a rate, where a multiplier names one and the training section does not."""
    document = dict(training)
    if document.get("learning_rate") is None and hyper.learning_rate_multiplier != "auto":
        try:
            section = TrainingSection.model_validate(document)
        except ValidationError:
            return document  # what is wrong with it is told with the rest
        document["learning_rate"] = hyper.learning_rate_multiplier * default_learning_rate(section, task)
    return document


def _multiplier(spec: JobSpec) -> float:
    usual = default_learning_rate(spec.training, spec.task)
    return round((spec.training.learning_rate or usual) / usual, 6)


def _parsed(document: dict[str, Any], problems: Problems) -> JobSpec:
    try:
        return parse_spec(document)
    except SpecError as error:
        for detail in error.details:
            where, colon, text = detail.partition(": ")
            problems.add(where, text) if colon and " " not in where else problems.add("body", detail)
        problems.raise_if_any()
        raise
