"""The model card: README.md of a version, in Markdown with the hub's YAML front matter. Pure except `write_card`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ray_jobs.errors import RegistryError
from ray_jobs.registry.model import ModelVersion
from ray_jobs.tasks import TASKS

CARD_NAME = "README.md"

_KINDS = {
    "adapter": "a LoRA adapter: it needs the weights of its base",
    "full": "a whole model",
    "predictor": "a whole model with a head for its task",
}


def write_card(directory: Path, version: ModelVersion) -> None:
    try:
        (directory / CARD_NAME).write_text(model_card(version), encoding="utf-8")
    except OSError as error:
        raise RegistryError(f"cannot write the model card into {directory}: {error.strerror}") from error


def model_card(version: ModelVersion) -> str:
    lineage = version.lineage
    spec = lineage.spec
    training = spec.training
    # A JSON string is a valid YAML string for any base model's name.
    front = [
        *([f"base_model: {json.dumps(spec.base_model, ensure_ascii=False)}"] if spec.base_model else []),
        *([f"library_name: {'peft' if version.kind == 'adapter' else 'transformers'}"] if spec.base_model else []),
        f"pipeline_tag: {TASKS[version.task].pipeline_tag}",
        f"tags: [kitae, {training.method}]",
    ]
    origin = f"Fine-tuned from `{_code(spec.base_model)}`" if spec.base_model else "Trained from scratch"
    parts = [
        "---\n" + "\n".join(front) + "\n---",
        f"# {version.name}, version {version.version}",
        f"{origin} for {version.task.replace('_', ' ')}, with {training.method}. This is {_KINDS[version.kind]}.",
    ]
    if version.labels:
        labels = "\n".join(f"{index}. `{_code(label)}`" for index, label in enumerate(version.labels))
        parts.append(f"## Labels\n\n{labels}")
    parts.append("## Results on test rows\n\n" + _results(version.metrics, lineage.base_is))
    if lineage.not_judged:
        parts.append(f"Whether this model is better than its base was not judged: {lineage.not_judged}.")
    origins = {
        "job": lineage.job_id,
        **({"trial of its search": lineage.trial} if lineage.trial else {}),
        "dataset": f"{lineage.dataset} {lineage.dataset_digest}".strip(),
        "base weights": lineage.base_digest,
        "code": lineage.code_version,
        "made": lineage.created_at,
    }
    rows = [(name, f"`{_code(text)}`") for name, text in origins.items()]
    parts.append("## Lineage\n\n" + _table(("", ""), rows))
    document = json.dumps(spec.model_dump(mode="json", exclude_defaults=True), indent=2, ensure_ascii=False)
    parts.append(f"The job, without defaults:\n\n````json\n{document}\n````")
    return "\n\n".join(parts) + "\n"


def _results(metrics: dict[str, float], base_is: str) -> str:
    if not metrics:
        return "None were recorded."
    names = [name for name in metrics if not (name.startswith("base_") and name[5:] in metrics)]
    rows = [(name.replace("_", " "), _metric(metrics[name]), _metric(metrics.get(f"base_{name}"))) for name in names]
    return _table(("", "this model", base_is), rows)


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _metric(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _code(text: str) -> str:
    """The text for use between backticks, on one line."""
    return text.replace("`", "'").replace("\n", " ")
