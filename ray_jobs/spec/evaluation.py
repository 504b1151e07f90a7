"""The section `evaluation`: the gates a candidate passes before it is registered."""

from __future__ import annotations

from pydantic import Field

from ray_jobs.spec.section import SpecSection


class ParitySection(SpecSection):
    prompts: int = Field(8, ge=1, le=256)
    """Held-out prompts answered by both the serving engine and the trainer's model."""
    max_mean_logprob_gap: float | None = Field(None, gt=0)
    """Largest mean |difference| of the answer tokens' log-probabilities. None: 1e-3 in fp32, 0.1 in bf16."""


class EvaluationSection(SpecSection):
    must_beat_base: bool = True
    """Refuse to register a model whose held-out loss is not below its base's."""
    generate_rows: int = Field(16, ge=0)
    """Held-out rows that both models answer for the task metric (chat only)."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest such answer, in tokens."""
    parity: ParitySection = ParitySection()
    """The check that the served model answers as the trained one did."""
