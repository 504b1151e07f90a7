"""OpenAI's fine-tuning jobs and evals as requests to Kitae's API, with everything that differs. Pure.

A job that Kitae cannot run has problems instead of a request. The endpoint checks a request again, in a dry run.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs.importing.client import Document

JOB_KEY, EVAL_KEY = "openai_job", "openai_eval"
"""Metadata of a created job or eval that names the one it was made from."""
_MOST_PAIRS = 16
_MOST_EPOCHS, _MOST_BATCH, _LARGEST_AUTO_BATCH = 50, 256, 16
_LARGEST_SEED = 2**31 - 1
_LONGEST_SUFFIX = 64
_SMALL = ("mini", "nano", "3.5", "babbage", "davinci")
_PARAMETERS = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)
_OPEN = ("validating_files", "queued", "running", "paused")
_JUDGES = ("label_model", "score_model")


@dataclass(frozen=True)
class MappedJob:
    """A job of OpenAI's for Kitae."""

    id: str
    model: str
    status: str
    training_file: str
    request: Document
    """Body of `POST /v1/fine_tuning/jobs` with the ids of OpenAI's files and without `model`."""
    differences: tuple[str, ...]
    problems: tuple[str, ...]
    """Why it cannot be created; empty: it can."""


@dataclass(frozen=True)
class MappedEval:
    """An eval of OpenAI's for Kitae."""

    id: str
    name: str
    request: Document
    """Body of `POST /v1/evals`."""
    differences: tuple[str, ...]


def mapped_job(job: Document, refused: Mapping[str, str]) -> MappedJob:
    """Map a job. `refused`: by the id of a file that does not come over, why."""
    method, differences, problems = _method_of(job)
    hyperparameters = _hyperparameters(job, method, differences)
    request: Document = {
        "training_file": job.get("training_file"),
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "metadata": _metadata(job, JOB_KEY, differences),
    }
    for name in ("training_file", "validation_file"):
        identifier = job.get(name)
        if isinstance(identifier, str) and identifier:
            request[name] = identifier
            if identifier in refused:
                problems.append(f"{name} {identifier} does not come over: {refused[identifier]}")
        elif name == "training_file":
            problems.append("it names no training file")
    if suffix := _suffix_of(job):
        request["suffix"] = suffix[:_LONGEST_SUFFIX]
    seed = job.get("seed")
    if isinstance(seed, int) and 0 <= seed <= _LARGEST_SEED:
        request["seed"] = seed
        differences.append("seed: the same number gives the same rows in the same order here, not OpenAI's order")
    if job.get("integrations"):
        differences.append(
            "integrations: left out; where the operator has set KITAE_WANDB, a job created by hand may name W&B"
        )
    if job.get("result_files"):
        differences.append("result_files: OpenAI's metrics stay there; a Kitae job has its own")
    if job.get("fine_tuned_model"):
        differences.append(
            f"fine_tuned_model: {job['fine_tuned_model']} cannot be taken along; the new model has a name of its own"
        )
    status = str(job.get("status") or "unknown")
    if status in _OPEN:
        problems.append(f"it is {status} at OpenAI: wait until it has ended there, or cancel it")
    return MappedJob(
        str(job["id"]),
        str(job.get("model") or "unknown"),
        status,
        str(job.get("training_file") or ""),
        request,
        tuple(differences),
        tuple(problems),
    )


def with_targets(mapped: MappedJob, base: str, files: Mapping[str, str]) -> Document:
    """The request on a base, with the ids of the target's files."""
    named: Document = {
        name: files[mapped.request[name]] for name in ("training_file", "validation_file") if name in mapped.request
    }
    return {**mapped.request, "model": base, **named}


def mapped_eval(document: Document) -> MappedEval:
    """Map an eval: what OpenAI's API returns to what it takes."""
    differences: list[str] = []
    request: Document = {
        "name": str(document.get("name") or document["id"]),
        "data_source_config": _data_source(document.get("data_source_config"), differences),
        "testing_criteria": [
            {name: value for name, value in each.items() if name != "id" and value is not None}
            for each in document.get("testing_criteria") or ()
            if isinstance(each, dict)
        ],
        "metadata": _metadata(document, EVAL_KEY, differences),
    }
    for each in request["testing_criteria"]:
        if each.get("type") in _JUDGES and each.get("model"):
            differences.append(
                f"criterion {each.get('name')!r} is judged by {each['model']}: it needs a judge that the endpoint has "
                "(--judge MODEL)"
            )
    return MappedEval(str(document["id"]), request["name"], request, tuple(differences))


def with_judge(mapped: MappedEval, judge: str | None) -> Document:
    """The request with another judge in every criterion that has one."""
    if judge is None:
        return mapped.request
    criteria = [
        {**each, "model": judge} if each.get("type") in _JUDGES else each for each in mapped.request["testing_criteria"]
    ]
    return {**mapped.request, "testing_criteria": criteria}


def proposed_base(model: str, bases: Collection[str]) -> str | None:
    """The base that is proposed for a job on `model`, by the number of parameters in the bases' names.

    The largest; for a small model of OpenAI's the smallest of at least three billion, if there is one. No measure says
    that a base is as good as OpenAI's model: the replay compares them.
    """
    if not bases:
        return None
    sizes = {name: parameters_of(name) or 0.0 for name in sorted(bases)}
    largest = max(sizes, key=lambda name: sizes[name])
    if any(word in model for word in _SMALL):
        fitting = [name for name, size in sizes.items() if size >= 3e9]
        return min(fitting, key=lambda name: sizes[name], default=largest)
    return largest


def parameters_of(name: str) -> float | None:
    """Number of parameters in a model's name: 8e9 for `qwen3-8b`, 1.35e8 for `smollm2-135m`."""
    found = _PARAMETERS.findall(name)
    if not found:
        return None
    number, unit = found[-1]
    return float(number) * (1e9 if unit.lower() == "b" else 1e6)


def _method_of(job: Document) -> tuple[Document, list[str], list[str]]:
    """(the method's hyperparameters, differences, problems)."""
    method = job.get("method")
    kind = method.get("type", "supervised") if isinstance(method, dict) else "supervised"
    options = (method.get(kind) if isinstance(method, dict) else None) or {}
    given = options.get("hyperparameters") if isinstance(options, dict) else None
    if not isinstance(given, dict):
        given = job.get("hyperparameters") if isinstance(job.get("hyperparameters"), dict) else {}
    assert isinstance(given, dict)
    differences: list[str] = []
    problems: list[str] = []
    if kind != "supervised":
        what = {
            "dpo": "its rows are preferences",
            "reinforcement": "its rows have a grader instead of answers",
        }.get(str(kind), "it is not known here")
        problems.append(f"method {kind}: only supervised jobs come over; {what}")
    differences.append("method: trains a LoRA adapter by default; `extra_body` of a request made by hand names another")
    return given, differences, problems


def _hyperparameters(job: Document, given: Mapping[str, Any], differences: list[str]) -> Document:
    found: Document = {
        "n_epochs": _bounded("n_epochs", given.get("n_epochs"), _MOST_EPOCHS, differences),
        "batch_size": _bounded("batch_size", given.get("batch_size"), _MOST_BATCH, differences),
        "learning_rate_multiplier": "auto",
    }
    multiplier = given.get("learning_rate_multiplier")
    if multiplier not in (None, "auto"):
        differences.append(
            f"learning_rate_multiplier: OpenAI's {multiplier} multiplies a rate that OpenAI does not publish; here it "
            "multiplies Kitae's default rate of the method, so `auto` (1) is requested; a `search` can tune it"
        )
    if found["n_epochs"] == "auto" or found["batch_size"] == "auto":
        differences.append("auto: Kitae chooses by its own rule, from the number of rows (docs/api.md)")
    return found


def _bounded(name: str, value: object, most: int, differences: list[str]) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        return "auto"
    if value > most:
        differences.append(f"{name}: {value} is above the maximum of {most}, which is requested")
    elif name == "batch_size" and value > _LARGEST_AUTO_BATCH:
        differences.append(
            f"batch_size: {value} rows a step, as at OpenAI; Kitae's `auto` takes at most {_LARGEST_AUTO_BATCH}"
        )
    return min(value, most)


def _metadata(document: Document, key: str, differences: list[str]) -> dict[str, str]:
    given = document.get("metadata")
    pairs = {str(name): str(value) for name, value in given.items()} if isinstance(given, dict) else {}
    if len(pairs) >= _MOST_PAIRS and key not in pairs:
        left_out = list(pairs)[_MOST_PAIRS - 1 :]
        differences.append(
            f"metadata: {', '.join(left_out)} left out, so that {key} has room among {_MOST_PAIRS} pairs"
        )
        pairs = {name: value for name, value in pairs.items() if name not in left_out}
    return {**pairs, key: str(document["id"])}


def _suffix_of(job: Document) -> str | None:
    """The suffix that the user gave, which is in the name of the tuned model."""
    if isinstance(job.get("user_provided_suffix"), str):
        return job["user_provided_suffix"] or None
    parts: Sequence[str] = str(job.get("fine_tuned_model") or "").split(":")
    return parts[3] or None if len(parts) >= 5 and parts[0] == "ft" else None


def _data_source(given: object, differences: list[str]) -> Document:
    """The configuration as the API takes it, from the schema that it returns."""
    config = dict(given) if isinstance(given, dict) else {}
    schema = config.pop("schema", None)
    if config.get("type") == "custom" and "item_schema" not in config and isinstance(schema, dict):
        properties = schema.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        return {
            "type": "custom",
            "item_schema": properties.get("item") or {"type": "object"},
            "include_sample_schema": "sample" in properties,
        }
    if config.get("type") in ("logs", "stored_completions"):
        differences.append(
            f"data_source_config: {config['type']} read completions stored at OpenAI; here a run reads those stored "
            "here, or a file of rows"
        )
    return {name: value for name, value in config.items() if value is not None}
