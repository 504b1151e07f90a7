"""The search space in Optuna's terms, and the gain that another trial promises."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ray_jobs.search.space import Space, is_whole
from ray_jobs.sharing.segments import Params, Result
from ray_jobs.spec import Range

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

_ENOUGH = 10
"""Fewest trials from which the gain of another one is estimated."""


def grid(space: Space) -> list[Params]:
    """Every combination of the listed values."""
    names = list(space)
    lists: list[tuple[Any, ...]] = [values for values in space.values() if not isinstance(values, Range)]
    return [dict(zip(names, point, strict=True)) for point in itertools.product(*lists)]


def first_rungs(space: Space, results: Iterable[Result], metric: str) -> Study:
    """An Optuna study of the first rung, which all trials reach; lower is better."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, found = optuna.create_study(direction="minimize"), distributions(space)
    for result in sorted(results, key=lambda each: each.run.trial):
        if result.run.rung == 0 and not result.run.again and math.isfinite(result.value(metric)):
            values = {"params": result.run.params, "value": result.value(metric)}
            study.add_trial(optuna.trial.create_trial(distributions=found, **values))
    return study


def fits(space: Space, params: Params) -> bool:
    """Whether values cover exactly the fields of a space and are within it."""
    if set(params) != set(space):
        return False
    return all(
        values.min <= params[name] <= values.max if isinstance(values, Range) else params[name] in values
        for name, values in space.items()
    )


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
