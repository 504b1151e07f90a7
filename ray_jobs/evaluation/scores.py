"""Scores of a model on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray_jobs.data.encoding import Encoded
from ray_jobs.spec import JobSpec
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import Reference, Row, Scores
from ray_jobs.training.scoring import score

if TYPE_CHECKING:
    import torch


def measure_model(
    model: torch.nn.Module,
    processor: Any,
    encoded: Encoded,
    rows: Sequence[Row],
    spec: JobSpec,
    labels: Sequence[str],
    reference: Reference | None,
) -> dict[str, float]:
    """Loss and accuracy over the encoded rows, and the task's own measures. `rows` are those of `encoded`."""
    task = TASKS[spec.task]
    model.eval()
    metrics = as_metrics(score(model, task, encoded, spec, next(model.parameters()).device, reference), task.metric)
    chosen = rows if not task.generates else rows[: spec.evaluation.generate_rows]
    whole: Any = model
    return metrics | task.measure(whole, processor, chosen, labels, max_new_tokens=spec.evaluation.max_new_tokens)


def as_metrics(scores: Scores, metric: str) -> dict[str, float]:
    """Loss in nats a label, and the share of labels that the model would choose."""
    return {"loss": scores.loss, metric: scores.accuracy}
