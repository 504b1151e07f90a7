"""The gate on held-out loss: a model that is no better than its base is not registered. Pure."""

from __future__ import annotations

import math

from ray_jobs.errors import GateError
from ray_jobs.evaluation.evaluate import Evaluation
from ray_jobs.spec import JobSpec


def gate(evaluation: Evaluation, spec: JobSpec) -> None:
    """Raise GateError for a tuned model that is not better than its base on held-out rows."""
    tuned, base = evaluation.tuned["loss"], evaluation.base["loss"]
    if not math.isfinite(tuned):
        raise GateError(f"the tuned model's held-out loss is {tuned}; it is not registered")
    if spec.evaluation.must_beat_base and tuned >= base:
        raise GateError(
            f"the tuned model's held-out loss {tuned:.4f} is not below that of {evaluation.base_is}, {base:.4f}, on "
            f"{evaluation.held_out_rows} rows, so it is not registered: train longer, change the learning rate or "
            "bring more rows, or set evaluation.must_beat_base: false"
        )
