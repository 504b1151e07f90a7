"""The section `training`: method, optimizer, checkpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ray_jobs.spec.section import SpecSection

TrainingMethod = Literal["full", "lora", "qlora", "frozen"]
Precision = Literal["auto", "fp32", "bf16"]
LearningRateSchedule = Literal["constant", "linear", "cosine", "warmup_stable_decay"]


class LoraSection(SpecSection):
    rank: int = Field(16, ge=1, le=512)
    """Rank of the update matrices."""
    alpha: float = Field(32.0, gt=0)
    """Scale: the update is multiplied by alpha / rank (Hu et al. 2021, arXiv:2106.09685)."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get an adapter; `all-linear` is every one but the head."""


class TrainingSection(SpecSection):
    method: TrainingMethod = "lora"
    """`full`: every weight. `lora`: low-rank adapters. `qlora`: the same over a 4-bit base. `frozen`: only the head,
    or for a causal model its last `trainable_blocks` blocks."""
    lora: LoraSection = LoraSection()
    """Used by `lora` and `qlora`."""
    trainable_blocks: int = Field(2, ge=1)
    """Number of last transformer blocks that `frozen` trains in a causal model."""
    epochs: int = Field(3, ge=1, le=50)
    """Passes over the training rows."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps. None: after `epochs`."""
    batch_size: int = Field(16, ge=1)
    """Rows per optimizer step, over all workers."""
    micro_batch_tokens: int = Field(2048, ge=8)
    """Most tokens in one forward pass of a worker; a step accumulates gradients over as many passes as it needs."""
    packing: bool = True
    """Pack several rows into one sequence, without attention across them (causal models only; others are padded)."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate. None: 2e-4 for lora and qlora, 2e-5 for full, 1e-3 for a frozen backbone's head and 5e-5
    for a frozen causal model's blocks."""
    warmup_fraction: float = Field(0.05, ge=0.0, lt=1.0)
    """Share of the steps over which the learning rate rises from 0."""
    schedule: LearningRateSchedule = "cosine"
    """How the learning rate falls to 0 after the warm-up. `warmup_stable_decay`: only in the last fifth of the steps
    (Hägele et al. 2024, arXiv:2405.18392); every trial of a search uses this schedule."""
    weight_decay: float = Field(0.0, ge=0.0)
    """AdamW's decoupled weight decay; not applied to biases and norms."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Clip the global gradient norm at this value. None: no clipping."""
    precision: Precision = "auto"
    """`auto`: bf16 where the hardware computes it natively, else fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    eval_every_steps: int | None = Field(None, ge=1)
    """Steps between evaluations of the held-out loss. None: at the end of each epoch."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations without a better held-out loss. None: never."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints, besides those after each evaluation. None: only after evaluations."""
    checkpoints_to_keep: int = Field(2, ge=1)
    """Number of checkpoints kept in the store: the best by held-out loss, and always the last."""
    publish_checkpoints: bool = False
    """Register the other checkpoints kept as further versions of the model, each with the alias
    `ckpt-step-{step}` (chat models with adapters only)."""
    seed: int = Field(42, ge=0, le=2**31 - 1)
    """Seeds the order of the rows, new weights and dropout."""
