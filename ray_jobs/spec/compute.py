"""The section `compute`: workers, GPUs and how DeepSpeed divides the model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ray_jobs.spec.section import SpecSection

Offload = Literal["none", "optimizer", "optimizer_and_parameters"]


class ComputeSection(SpecSection):
    workers: int = Field(1, ge=1)
    """Training processes: one per GPU or, without GPUs, one per share of the cores."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """Ray CPUs reserved for each worker."""
    gpus_per_worker: int = Field(0, ge=0, le=1)
    """GPUs reserved for each worker: 0 or 1."""
    threads_per_worker: int | None = Field(None, ge=1)
    """Compute threads of a CPU worker. None: the machine's cores divided by the workers on it."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: what is split over the workers. 1: optimizer state; 2: also gradients; 3: also weights.
    In bf16, 0 runs as 1."""
    offload: Offload = "none"
    """Keep optimizer state, or weights too, in CPU memory (needs zero_stage 2 or 3; weights need 3)."""
    max_failures: int = Field(3, ge=0)
    """How often lost workers are restarted from the last checkpoint before the job fails."""
