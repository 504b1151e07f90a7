"""The price of an hour of training. Pure. Where prices come from: `ray_jobs.cluster.prices`."""

from __future__ import annotations

from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field


class Hours(Protocol):
    """Something that used machines."""

    @property
    def gpu_seconds(self) -> float: ...

    @property
    def cpu_seconds(self) -> float:
        """CPUs × seconds of training without GPUs."""


class Prices(BaseModel):
    """Prices in the installation's currency. None: unknown, counts as 0."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    gpu_hour: float | None = Field(None, ge=0, allow_inf_nan=False)
    """One GPU for an hour."""
    cpu_hour: float | None = Field(None, ge=0, allow_inf_nan=False)
    """One CPU for an hour, in a training without GPUs."""

    def cost(self, used: Hours) -> float:
        """What these hours cost."""
        return (used.gpu_seconds * (self.gpu_hour or 0.0) + used.cpu_seconds * (self.cpu_hour or 0.0)) / 3600
