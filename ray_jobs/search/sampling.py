"""The values of the next trial, from Optuna: a study built from the trials so far, so equal trials give equal values.

Owns the translation to Optuna. Knows nothing of rungs but that a later one weighs more.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_jobs.search.records import Params
from ray_jobs.search.space import Space, is_whole
from ray_jobs.spec import Range

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

_STARTUP = 5
"""Trials drawn at random before TPE models the results."""
_WORST = 1e9
"""Value of a failed trial."""


@dataclass(frozen=True)
class TriedValues:
    """The values of a trial and its measured metric, as a sampler needs them."""

    params: Params
    values: Mapping[int, float]
    """Metric by rung, lower is better. Empty: the trial runs."""
    complete: bool
    """Whether its training has ended."""


def grid(space: Space) -> list[Params]:
    """Every combination of the listed values."""
    names = list(space)
    lists: list[tuple[Any, ...]] = [values for values in space.values() if not isinstance(values, Range)]
    return [dict(zip(names, point, strict=True)) for point in itertools.product(*lists)]


def suggest(space: Space, seen: Sequence[TriedValues], *, seed: int, random: bool) -> Params:
    """The next trial's values: drawn at random, or by TPE (Bergstra et al. 2011) from the trials so far."""
    import optuna

    number = len(seen)
    sampler: Any = optuna.samplers.RandomSampler(seed=_mix(seed, number))
    if not random:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # multivariate TPE is marked experimental
            sampler = optuna.samplers.TPESampler(
                seed=_mix(seed, number), multivariate=True, constant_liar=True, n_startup_trials=_STARTUP
            )
    study = study_of(space, seen, sampler)
    asked = study.ask(_distributions(space))
    return {name: _value(values, asked.params[name]) for name, values in space.items()}


def study_of(space: Space, seen: Sequence[TriedValues], sampler: Any = None) -> Study:
    """The trials as an Optuna study; lower is better."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    distributions = _distributions(space)
    for trial in seen:
        last = trial.values[max(trial.values)] if trial.values else None
        failed = last is not None and not math.isfinite(last)
        complete = trial.complete or failed
        state = optuna.trial.TrialState
        study.add_trial(
            optuna.trial.create_trial(
                state=state.RUNNING if last is None else state.COMPLETE if complete else state.PRUNED,
                params={name: _choice(values, trial.params[name]) for name, values in space.items()},
                distributions=distributions,
                value=(_WORST if failed else last) if complete else None,
                intermediate_values={rung: value for rung, value in trial.values.items() if math.isfinite(value)},
            )
        )
    return study


def fits(space: Space, params: Params) -> bool:
    """Whether values cover exactly the fields of a space and are within it."""
    if set(params) != set(space):
        return False
    return all(
        values.min <= params[name] <= values.max if isinstance(values, Range) else params[name] in values
        for name, values in space.items()
    )


def expected_gain(space: Space, seen: Sequence[TriedValues]) -> float:
    """Expected improvement of the best value by another trial, from a Gaussian process over the values at the first
    rung (Ishibashi et al. 2023, arXiv:2206.02326). Infinite with too few trials."""
    import optuna
    from optuna.terminator import EMMREvaluator

    flat = [
        TriedValues(trial.params, {0: trial.values[min(trial.values)]}, complete=True)
        for trial in seen
        if trial.values and math.isfinite(trial.values[min(trial.values)])
    ]
    if len(flat) < 2 * _STARTUP:
        return math.inf
    study = study_of(space, flat)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = EMMREvaluator(min_n_trials=2, seed=0)
        return float(evaluator.evaluate(study.trials, study.direction))


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, values in space.items():
        if not isinstance(values, Range):
            found[name] = CategoricalDistribution([_choice(values, value) for value in values])
        elif is_whole(name):
            found[name] = IntDistribution(round(values.min), round(values.max), log=values.scale == "log")
        else:
            found[name] = FloatDistribution(values.min, values.max, log=values.scale == "log")
    return found


def _choice(values: Range | tuple[Any, ...], value: Any) -> Any:
    """A value in a form that Optuna accepts: a list becomes its JSON."""
    return value if isinstance(values, Range) or not isinstance(value, list | tuple | dict) else json.dumps(value)


def _value(values: Range | tuple[Any, ...], chosen: Any) -> Any:
    if isinstance(values, Range):
        return chosen
    return next(value for value in values if _choice(values, value) == chosen)


def _mix(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number * 7919 + 1) % 2**31
