"""The section `search`: the space, the algorithm and the budget of a hyperparameter search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from ray_jobs.spec.section import SpecSection
from ray_jobs.spec.space import LIST, FieldSpace, Range


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

    def limits(self, spent: Mapping[str, float]) -> list[tuple[str, float, float]]:
        """(the field and its value, its hours, those spent) of each limit that is set.

        `spent`: hours by the clock (`wall`) and of all workers (`worker`).
        """
        affordable = None if self.money is None or not self.price_per_hour else self.money / self.price_per_hour
        found = (
            ("hours", self.hours, "wall"),
            ("gpu_hours", self.gpu_hours, "worker"),
            ("money", affordable, "worker"),
        )
        return [
            (f"search.budget.{name} {getattr(self, name):g}", hours, spent[clock])
            for name, hours, clock in found
            if hours is not None
        ]


TEXT = "a text"
Scheduler = Literal["asha", "asha_stopping", "hyperband", "median_stopping", "pbt", "pb2", "none"]
Sampler = Literal["tpe", "gp", "cmaes", "random", "grid"]
POPULATIONS = ("pbt", "pb2")
PERTURBED = ("learning_rate", "weight_decay", "max_grad_norm")
"""Values that a member of a population can change; the others come with the weights it copies."""


_ALGORITHMS: dict[str, tuple[Scheduler, Sampler]] = {
    "asha": ("asha", "tpe"),
    "tpe": ("none", "tpe"),
    "random": ("none", "random"),
    "grid": ("none", "grid"),
    "pbt": ("pbt", "random"),
}


class SearchSection(SpecSection):
    space: dict[str, FieldSpace] | None = Field(None, max_length=100)
    """The fields to search: a field of `training` (`learning_rate`, `lora.rank`, …) or `base_model`, each with a list
    of values or a range `{min, max, scale}`. None: the default space of the task and method, which `plan` shows."""
    algorithm: Literal["asha", "tpe", "random", "grid", "pbt"] = "asha"
    """Scheduler and sampler in one word. `asha`: TPE proposes, and a trial continues only while it is among the best of
    its rung. `tpe`, `random` and `grid`: every trial is trained to its end. `pbt`: a population whose worst members
    continue from the best."""
    scheduler: Scheduler | None = None
    """Ray Tune's scheduler, which decides how long a trial trains. `asha` pauses each trial at a rung and promotes the
    best; `asha_stopping` (Ray's own ASHA), `hyperband` and `median_stopping` stop trials; `pbt` and `pb2` train a
    population; `none` trains every trial to its end. None: that of `algorithm`."""
    sampler: Sampler | None = None
    """What proposes values: Optuna's `tpe`, `gp` (a Gaussian process) or `cmaes` (CMA-ES), `random` draws, or `grid`,
    every combination. None: that of `algorithm`; for a population, `random`."""
    metric: Annotated[
        Annotated[str, Tag(TEXT)] | Annotated[tuple[str, ...], Field(min_length=1, max_length=2), Tag(LIST)],
        Discriminator(lambda given: LIST if isinstance(given, list | tuple) else TEXT),
    ] = "loss"
    """Metric on held-out rows: `loss`, or the task's own (`token_accuracy`, `accuracy`). A list of two, such as
    `[loss, tokens_per_s]`, searches for their Pareto front; the first one judges the rungs and names the winner."""
    trials: int = Field(16, ge=1, le=10_000)
    """Most trials; for `pbt` and `pb2` the population's size. `grid` has one per point."""
    parallel: int = Field(4, ge=1, le=256)
    """Trials at once."""
    rungs: int = Field(3, ge=1, le=8)
    """How often a trial, or a population, is judged. With neither this nor `reduction`, ASHA with 27 trials or more has
    2 rungs and reduction 9."""
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

    @property
    def schedules(self) -> Scheduler:
        """The scheduler in effect."""
        return self.scheduler or _ALGORITHMS[self.algorithm][0]

    @property
    def samples(self) -> Sampler:
        """The sampler in effect."""
        return self.sampler or ("random" if self.schedules in POPULATIONS else _ALGORITHMS[self.algorithm][1])

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics; the first one judges."""
        return (self.metric,) if isinstance(self.metric, str) else self.metric

    @property
    def judge(self) -> str:
        """The metric by which rungs are judged and the winner is chosen."""
        return self.metrics[0]

    @model_validator(mode="before")
    @classmethod
    def _fewer_rungs(cls, given: Any) -> Any:
        """Where a ninth of the trials are three or more, a rung at a third costs more than it finds
        (`docs/decisions/search.md`)."""
        if not isinstance(given, dict) or {"rungs", "reduction"} & set(given):
            return given
        trials, schedules = given.get("trials"), given.get("scheduler") or given.get("algorithm", "asha")
        large = schedules == "asha" and isinstance(trials, int) and trials >= 27
        return {**given, "rungs": 2, "reduction": 9} if large else given

    @model_validator(mode="after")
    def _combinations(self) -> SearchSection:
        problems = list(self._pairs())
        if self.space is not None and not self.space:
            problems.append("space is empty: name a field to try values of, or leave it out for the default")
        if len(set(self.metrics)) < len(self.metrics):
            problems.append(f"metric names {self.judge} twice")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _pairs(self) -> Iterator[str]:
        """What scheduler, sampler and space cannot be together, with what can."""
        space = self.space or {}
        ranges = sorted(name for name, values in space.items() if isinstance(values, Range))
        lists = sorted(set(space) - set(ranges))
        if self.algorithm != "asha" and (self.scheduler or self.sampler):
            yield f"algorithm: {self.algorithm} sets scheduler and sampler; leave it out, or leave those out"
        if self.schedules in POPULATIONS and self.samples != "random":
            yield (
                f"scheduler: {self.schedules} changes the values itself and needs sampler: random; "
                f"sampler: {self.samples} needs scheduler: asha, asha_stopping, hyperband, median_stopping or none"
            )
        changed = PERTURBED if self.space is None else tuple(set(PERTURBED) & set(space))
        if self.schedules == "pbt" and not changed:
            yield f"scheduler: pbt changes {', '.join(PERTURBED)}, and space has none of them"
        if self.schedules == "pb2" and not (set(changed) & set(ranges) or self.space is None):
            yield f"scheduler: pb2 needs a range for one of {', '.join(PERTURBED)}; scheduler: pbt takes lists too"
        if self.samples == "grid" and self.space is None:
            yield "sampler: grid needs space, with a list of values for each field"
        if self.samples == "grid" and ranges:
            yield (
                f"sampler: grid needs lists of values, and {', '.join(ranges)} has a range; sampler: random, tpe, gp "
                "and cmaes take ranges"
            )
        if self.samples == "cmaes" and (lists or len(ranges) < 2):
            what = (
                f"{', '.join(lists)} has a list" if lists else "the default space has lists" if not space else "1 field"
            )
            yield f"sampler: cmaes needs at least two fields, all with ranges ({what}); sampler: tpe and gp take lists"
        if self.samples == "cmaes" and self.schedules != "none":
            yield (
                f"sampler: cmaes learns from whole trials and needs scheduler: none; scheduler: {self.schedules} takes "
                "sampler: tpe, gp, random or grid"
            )
        if self.samples == "cmaes" and len(self.metrics) > 1:
            yield "sampler: cmaes takes one metric; sampler: tpe, gp, random and grid take two"
        if self.budget.gain_below is not None and len(self.metrics) > 1:
            yield "budget.gain_below needs one metric, and metric names two"


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
