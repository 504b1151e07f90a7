"""Resolves a create request to the record of its job. Pure; reports all invalid fields at once, each by its name.

Combines OpenAI's hyperparameters with Kitae's own sections; where both set the same option, the section wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from ray_jobs.data.report import RowReport
from ray_jobs.errors import SpecError
from ray_jobs.registry import catalogue
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.spec import JobSpec, TrainingSection, parse_spec
from ray_jobs.training.lr_schedule import default_learning_rate
from serving.files.stored_files import FINE_TUNE, FileRecord
from serving.fine_tuning.records import ApiJob
from serving.http import openai_types
from serving.http.errors import invalid_fields
from serving.http.fields import metadata_problems
from serving.http.ids import created_at_s

Problem = tuple[str | None, str]
"""(field, message)."""

LEAST_ROWS = 10
"""OpenAI's minimum; fewer rows leave none to hold out."""
_TARGET_EXAMPLES, _MAX_EXAMPLES, _EPOCHS, _MAX_EPOCHS = 100, 25_000, 3, 25


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
    key_id: str,
    files: Mapping[str, FileRecord],
    uri: Callable[[str], str],
    bases: Mapping[str, CatalogueEntry],
    defaults: Mapping[str, Any],
    offers_wandb: bool = False,
) -> ApiJob:
    """Resolve a request. Raises ApiError 400 with every invalid field.

    `files`: those of the request's files that exist, by id. `uri`: store key → `s3://` address. `bases`: the catalogue.
    `defaults`: default sections of this endpoint. `offers_wandb`: its jobs have a key for Weights & Biases.
    """
    named = {"training_file": body.training_file, "validation_file": body.validation_file}
    found = {param: record for param, wanted in named.items() if wanted is not None and (record := files.get(wanted))}
    problems = _unsupported(body, offers_wandb)
    entry = bases.get(body.model)
    if entry is None:
        known = ", ".join(bases) or "none; `kitae bases add SOURCE` adds one"
        problems.append(("model", f"the base model {body.model!r} does not exist; available: {known}"))
    for param, wanted in named.items():
        if wanted is not None and param not in found:
            # The operator may create a job for another team than that of the own files.
            owned = "" if body.team is None else f" in team {team}: files belong to the team whose key uploaded them"
            problems.append((param, f"the file {wanted!r} does not exist{owned}"))
        elif param in found and (found[param].purpose != FINE_TUNE or found[param].report is None):
            problems.append((param, f"{wanted} was uploaded for {found[param].purpose}, not with purpose {FINE_TUNE}"))
    given = body.data or {}
    for name, instead in (("held_out", "validation_file"), ("train", "training_file"), ("dataset", "training_file")):
        if name in given:
            problems.append((f"data.{name}", f"rows come from files: upload them and name the file in {instead}"))
    if "test" in given:
        problems.append(("data.test", "the test rows are taken from training_file: mark them in its column `split`"))
    cleaning = given.get("clean")
    if isinstance(cleaning, dict) and isinstance(cleaning.get("drop_rows"), str):
        problems.append(("data.clean.drop_rows", "write a list of row ids: a job of the API reads no other files"))
    if problems:
        raise invalid_fields(problems)
    assert entry is not None
    reports = {param: record.report for param, record in found.items() if record.report is not None}
    columns = reports["training_file"].columns
    if any(report.columns != columns for report in reports.values()):
        raise invalid_fields([("validation_file", "it was uploaded with other columns than the training file")])
    task = body.task or reports["training_file"].task
    if problems := _unfit(body, task, entry, reports):
        raise invalid_fields(problems)
    own = _own_sections(body, task, entry, reports) | {"name": identifier, "team": team}
    operators = (defaults.get("tracking") or {}).get("wandb") or {}
    if "tracking" in own and operators.get("entity"):  # a tenant chooses a project of it at most
        own["tracking"]["wandb"]["entity"] = operators["entity"]
    own["data"] = {"train": uri(found["training_file"].key), **({"columns": columns} if columns else {}), **own["data"]}
    if "validation_file" in found:
        own["data"] = {"held_out": uri(found["validation_file"].key), **own["data"]}
    sections = {name: getattr(body, name) or {} for name in ("training", "compute", "evaluation", "serving")}
    spec = _parsed(merged(merged(defaults, own), sections), _hyperparameters(body), task, bases)
    if too_much := catalogue.engine_problems(entry, spec):
        raise invalid_fields(too_much)
    default_rate = default_learning_rate(spec.training, spec.task)
    hyperparameters = {
        "n_epochs": spec.training.epochs,
        "batch_size": spec.training.batch_size,
        "learning_rate_multiplier": round((spec.training.learning_rate or default_rate) / default_rate, 6),
    }
    return ApiJob(
        id=identifier,
        team=team,
        key_id=key_id,
        created_at=int(created_at_s(identifier)),
        **body.model_dump(include={"model", "training_file", "validation_file", "suffix", "metadata"}),
        seed=spec.training.seed,
        integrations=[each.model_dump() for each in body.integrations] if body.integrations else None,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        hyperparameters=hyperparameters,
        spec=spec.model_dump(mode="json"),
        job_id=spec.job_id,
        most_tokens=most_tokens(spec, reports["training_file"].rows),
    )


def most_tokens(spec: JobSpec, rows: int) -> int:
    """Most tokens that a job can train on: every row as long as allowed, in every epoch of every trial."""
    steps = max(spec.training.epochs * -(-rows // spec.training.batch_size), spec.training.max_steps or 0)
    # A search trains each trial and each finalist again at most once.
    trainings = 1 if spec.search is None else 1 + 2 * (spec.search.trials + spec.search.finalists)
    return trainings * steps * spec.training.batch_size * spec.data.max_tokens


def _unfit(
    body: openai_types.CreateFineTuningJob, task: str, entry: CatalogueEntry, reports: Mapping[str, RowReport]
) -> list[Problem]:
    """Why the base or the files do not fit the task. `reports`: by the field that names the file."""
    problems: list[Problem] = []
    if task not in entry.tasks:
        problems.append(("model", f"{entry.name} does not support {task}; it supports {', '.join(entry.tasks)}"))
    for param, report in reports.items():
        wanted = getattr(body, param)
        if report.task != task:
            problems.append((param, f"{wanted} has rows for {report.task}, not for {task}"))
        long = report.too_long if report.model == entry.name else ()
        if long and (body.data or {}).get("too_long", "error") == "error":
            lines = ", ".join(map(str, long[:10])) + (", …" if len(long) > 10 else "")
            limit = f"{entry.name}'s maximum of {entry.max_tokens} tokens"
            fix = "shorten them, or set data.too_long to drop or truncate"
            problems.append((param, f"lines {lines} are longer than {limit}: {fix}"))
    if (rows := reports["training_file"].rows) < LEAST_ROWS:
        problems.append(("training_file", f"{body.training_file} has {rows} rows; at least {LEAST_ROWS} are needed"))
    return problems


def _own_sections(
    body: openai_types.CreateFineTuningJob, task: str, entry: CatalogueEntry, reports: Mapping[str, RowReport]
) -> dict[str, Any]:
    """The sections that follow from the request's own fields and from the rows."""
    hyper, rows = _hyperparameters(body), reports["training_file"].rows
    longest = max(1024, *(report.longest_tokens or 0 for report in reports.values()))
    own: dict[str, Any] = {
        "task": task,
        "base_model": entry.name,
        "suffix": body.suffix,
        "priority": body.priority or 0,
        "data": {"max_tokens": min(longest, entry.max_tokens or longest), **(body.data or {})},
        "training": {
            "method": body.method if isinstance(body.method, str) else "lora",
            "epochs": auto_epochs(rows) if hyper.n_epochs == "auto" else hyper.n_epochs,
            "batch_size": auto_batch_size(rows) if hyper.batch_size == "auto" else hyper.batch_size,
            "publish_checkpoints": True,
            "checkpoints_to_keep": 3,  # as many as OpenAI keeps
            **({} if body.seed is None else {"seed": body.seed}),
            **({} if body.lora_rank is None else {"lora": {"rank": body.lora_rank, "alpha": 2.0 * body.lora_rank}}),
        },
    }
    if body.integrations:
        own["tracking"] = {"wandb": body.integrations[0].wandb.model_dump(exclude_none=True)}
    if body.search is not None and body.search is not False:
        own["search"] = {} if body.search is True else body.search
    return own


def _parsed(
    document: dict[str, Any], hyper: openai_types.Hyperparameters, task: str, bases: Mapping[str, CatalogueEntry]
) -> JobSpec:
    """The job file of a document whose learning rate may still follow from the multiplier."""
    options = document["training"]
    if options.get("learning_rate") is None and hyper.learning_rate_multiplier != "auto":
        with suppress(ValidationError):  # `parse_spec` reports what is invalid
            default_rate = default_learning_rate(TrainingSection.model_validate(options), task)
            options["learning_rate"] = hyper.learning_rate_multiplier * default_rate
    max_tokens = document["data"].get("max_tokens")
    if isinstance(max_tokens, int):
        options.setdefault("micro_batch_tokens", max(2048, max_tokens))
    try:
        spec = parse_spec(document)
    except SpecError as error:
        raise invalid_fields([_field_of(detail) for detail in error.details]) from error
    searched = (spec.search.space or {}).get("base_model", ()) if spec.search is not None else ()
    unknown = [name for name in (searched if isinstance(searched, tuple) else ()) if name not in bases]
    if unknown:
        raise invalid_fields(
            [("search.space.base_model", f"the base model {name!r} does not exist") for name in unknown]
        )
    return spec


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested documents; values of the second win."""
    result = dict(first)
    for name, value in second.items():
        current = result.get(name)
        both = isinstance(current, Mapping) and isinstance(value, Mapping)
        result[name] = merged(current, value) if both else value  # type: ignore[arg-type]  # `both` has narrowed it
    return result


def _unsupported(body: openai_types.CreateFineTuningJob, offers_wandb: bool) -> list[Problem]:
    """List the fields that are invalid for any file and any base, as (field, message)."""
    found: list[Problem] = []
    if isinstance(body.method, openai_types.Method) and body.method.type != "supervised":
        found.append(("method.type", f"{body.method.type} is not supported; supervised is"))
    if len(body.integrations or ()) > 1:
        found.append(("integrations", f"it has {len(body.integrations or ())} integrations; at most 1"))
    if body.integrations and not offers_wandb:
        found.append(
            (
                "integrations",
                "this endpoint does not send to Weights & Biases: its operator has not turned it on (KITAE_WANDB); "
                "`GET /fine_tuning/jobs/{id}/events` returns a job's metrics",
            )
        )
    found += metadata_problems(body.metadata)
    return found


def _hyperparameters(body: openai_types.CreateFineTuningJob) -> openai_types.Hyperparameters:
    """Merge the method's hyperparameters over OpenAI's deprecated top-level ones."""
    old = body.hyperparameters or openai_types.Hyperparameters()
    new = body.method.supervised if isinstance(body.method, openai_types.Method) else None
    named = {} if new is None else new.hyperparameters.model_dump(exclude_unset=True)
    return old.model_copy(update=named)


def _field_of(detail: str) -> tuple[str, str]:
    """Return (field, message) of a detail of `parse_spec`."""
    where, colon, text = detail.partition(": ")
    return (where, text) if colon and " " not in where else ("body", detail)
