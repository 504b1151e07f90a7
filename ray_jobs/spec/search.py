"""The section `search`: the space, the algorithm and the budget of a hyperparameter search."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from ray_jobs.spec.sections import SpecSection


class Range(SpecSection):
    min: float
    """Least value."""
    max: float
    """Largest value."""
    scale: Literal["linear", "log"] = "linear"
    """`log`: as likely between 1 and 10 as between 10 and 100."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.min >= self.max:
            raise ValueError(f"the range from {self.min:g} to {self.max:g} is empty: min must be below max")
        if self.scale == "log" and self.min <= 0:
            raise ValueError(f"a log range cannot begin at {self.min:g}: min must be above 0")
        return self


RANGE, LIST = "a range", "a list"
FieldSpace = Annotated[
    # The whole job is validated with each value.
    Annotated[Range, Tag(RANGE)] | Annotated[tuple[Any, ...], Field(min_length=1, max_length=1000), Tag(LIST)],
    Discriminator(lambda given: RANGE if isinstance(given, dict | Range) else LIST),
]
"""The values of one field that a search tries."""


class BudgetSection(SpecSection):
    hours: float | None = Field(None, gt=0)
    """Wall-clock hours of the search, over all its attempts."""
    gpu_hours: float | None = Field(None, gt=0)
    """Hours of all training workers together (of CPU workers where there are no GPUs)."""
    money: float | None = Field(None, gt=0)
    """Largest cost of these hours, at `price_per_hour`."""
    price_per_hour: float | None = Field(None, gt=0)
    """Price of one training worker's hour."""
    gain_below: float | None = Field(None, gt=0)
    """Stop sampling when another trial is expected to improve the metric by less than this."""

    @model_validator(mode="after")
    def _priced(self) -> BudgetSection:
        if self.money is not None and self.price_per_hour is None:
            raise ValueError("money needs price_per_hour, the price of one worker's hour")
        return self


class SearchSection(SpecSection):
    space: dict[str, FieldSpace] | None = Field(None, max_length=100)
    """The fields to search: a field of `training` (`learning_rate`, `lora.rank`, …) or `base_model`, each with a list
    of values or a range `{min, max, scale}`. None: the default space of the task and method, which `plan` shows."""
    algorithm: Literal["asha", "tpe", "random", "grid", "pbt"] = "asha"
    """`asha`: TPE proposes, and a trial continues only while it is among the best of its rung. `tpe`, `random` and
    `grid`: every trial is trained to its end. `pbt`: a population whose worst members continue from the best."""
    metric: str = "loss"
    """Metric on held-out rows: `loss`, or the task's own (`token_accuracy`, `accuracy`)."""
    trials: int = Field(16, ge=1, le=10_000)
    """Most trials; for `pbt` the population's size. `grid` has one per point."""
    parallel: int = Field(4, ge=1, le=256)
    """Trials at once."""
    rungs: int = Field(3, ge=1, le=8)
    """How often a trial of `asha`, or a population of `pbt`, is judged."""
    reduction: int = Field(3, ge=2, le=16)
    """ASHA's reduction factor η: 1/η of the trials at a rung are promoted to the next, which is η times as long (Li
    et al. 2018, arXiv:1810.05934)."""
    finalists: int = Field(2, ge=1, le=16)
    """Number of best trials that are repeated with another seed before one wins. 1: the best trial wins directly."""
    retrain: bool = False
    """Train the winner's values once more, with `training` and `compute`, instead of taking the winner itself. With
    `finalists: 1` no trial is then trained to its end."""
    budget: BudgetSection = BudgetSection()
    """Limits at which the search stops sampling, besides `trials`."""
    trial_minutes: float | None = Field(None, gt=0)
    """Longest trial segment in minutes; a longer one is given up. None: no limit."""
    warm_start: bool = True
    """Try first the best values of earlier searches on the same base model and task."""
    checkpoints_to_keep: int = Field(3, ge=1)
    """Number of best trials whose checkpoints are kept after the search."""
    storage_gib: float | None = Field(None, gt=0)
    """Most storage for checkpoints during the search. The worst trials' are deleted first, and such a trial starts
    again if it is promoted later; those of running trials and finalists are always kept. None: no limit."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Seed of the proposals."""

    @model_validator(mode="after")
    def _combinations(self) -> SearchSection:
        ranges = sorted(name for name, values in (self.space or {}).items() if isinstance(values, Range))
        if self.algorithm == "grid" and ranges:
            raise ValueError(f"algorithm: grid needs lists of values, and {', '.join(ranges)} has a range")
        if self.algorithm == "grid" and self.space is None:
            raise ValueError("algorithm: grid needs space, with a list of values for each field")
        if self.space is not None and not self.space:
            raise ValueError("space is empty: name a field to try values of, or leave it out for the default")
        return self


def searchable_fields(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Names of a section's fields that a search can try values of, such as `lora.rank`."""
    names: list[str] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += searchable_fields(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names
