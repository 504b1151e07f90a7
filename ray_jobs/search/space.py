"""The search space: its default, its values in Optuna's terms, and the gain that another trial promises. Pure.

The learning rate of LoRA is searched around ten times that of full training, its alpha stays fixed, and its rank
follows from the amount of data: an adapter should have room for what the rows can teach, which is less than a parameter
a supervised token (Schulman et al., "LoRA Without Regret", Thinking Machines 2025).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import getitem
from typing import TYPE_CHECKING, Any

from ray_jobs.sharing.segments import Result
from ray_jobs.spec import JobSpec, Range
from ray_jobs.spec.space import Space, is_whole, nearest
from ray_jobs.tasks import TASKS
from ray_jobs.training.lr_schedule import default_learning_rate

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

_RANKS = (8, 16, 32, 64)
_SPREAD = 10.0**0.5
"""The default range of the learning rate: the method's default divided and multiplied by the square of this."""
_ENOUGH = 10
"""Fewest trials from which the gain of another one is estimated."""


def default_space(spec: JobSpec, config: Mapping[str, Any], supervised: int) -> Space:
    """The space for a task and method. `config`: the base's config.json. `supervised`: training labels."""
    training = spec.training
    rate = default_learning_rate(training, spec.task)
    space: Space = {"learning_rate": Range(min=rate / _SPREAD**2, max=rate * _SPREAD**2, scale="log")}
    if training.method in ("lora", "qlora"):
        rank = rank_for(config, supervised)
        space["lora.rank"] = tuple(r for r in _RANKS if rank <= r <= 2 * rank)
    if training.method == "frozen" and not TASKS[spec.task].has_new_head:
        blocks = int(config.get("num_hidden_layers", 1))
        space["trainable_blocks"] = tuple(depth for depth in (1, 2, 4) if depth <= blocks)
    sizes = sorted({max(1, training.batch_size // 2), training.batch_size, training.batch_size * 2})
    return space | {"batch_size": tuple(sizes)}


def rank_for(config: Mapping[str, Any], supervised: int) -> int:
    """The smallest of the usual ranks whose adapter has a parameter for each supervised token."""
    width = int(config.get("hidden_size", 0)) or 1
    inner = int(config.get("intermediate_size", 4 * width))
    a_rank = int(config.get("num_hidden_layers", 1)) * (4 * 2 * width + 3 * (width + inner))
    return next((rank for rank in _RANKS if rank * a_rank >= supervised), _RANKS[-1])


def own_values(spec: JobSpec, space: Space) -> dict[str, Any]:
    """The values of the job without a search, or those in the space nearest to them."""
    own = spec.model_dump()["training"] | {"base_model": spec.base_model}
    own["learning_rate"] = own["learning_rate"] or default_learning_rate(spec.training, spec.task)
    return {name: nearest(values, reduce(getitem, name.split("."), own)) for name, values in space.items()}


def first_rungs(space: Space, results: Iterable[Result], metric: str) -> Study:
    """An Optuna study of the first rung, which all trials reach; lower is better."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, found = optuna.create_study(direction="minimize"), distributions(space)
    for result in sorted(results, key=lambda each: each.run.trial):
        if result.run.rung == 0 and not result.run.again and math.isfinite(result.value(metric)):
            params, value = result.run.params, result.value(metric)
            study.add_trial(optuna.trial.create_trial(params=params, distributions=found, value=value))
    return study


def expected_gain(space: Space, results: Iterable[Result], metric: str) -> float:
    """Expected improvement of the best value by another trial, from a Gaussian process over the values at the first
    rung (Ishibashi et al. 2023, arXiv:2206.02326). Infinite with too few trials."""
    import optuna
    from optuna.terminator import EMMREvaluator

    study = first_rungs(space, results, metric)
    if len(study.trials) < _ENOUGH:
        return math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = EMMREvaluator(min_n_trials=2, seed=0)
        return float(evaluator.evaluate(study.trials, study.direction))


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, values in space.items():
        if not isinstance(values, Range):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a value may be a list, which only a database could not hold
                found[name] = CategoricalDistribution(values)
        elif is_whole(name):
            found[name] = IntDistribution(round(values.min), round(values.max), log=values.scale == "log")
        else:
            found[name] = FloatDistribution(values.min, values.max, log=values.scale == "log")
    return found
