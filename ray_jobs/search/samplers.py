"""What proposes the values of trials: Ray Tune's `OptunaSearch` and `BasicVariantGenerator`, with numbered trials.

Each number gets its values once: they are recorded before the trial starts, and a later attempt gives them back.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.search import BasicVariantGenerator, Searcher
from ray.tune.search.optuna import OptunaSearch

from ray_jobs.search.records import Problem, SearchRecords, Unsaved
from ray_jobs.search.rungs import shares_of, trials_of
from ray_jobs.search.space import distributions, own_values
from ray_jobs.sharing.segments import Params, Result, TrialSegment
from ray_jobs.spec import Range
from ray_jobs.spec.search import POPULATIONS
from ray_jobs.spec.space import grid, is_whole
from ray_jobs.tracking.files import trial_run

_STARTUP = 5
"""Trials drawn at random before a model of the results proposes."""
MayStart = Callable[[], bool]


class Numbers:
    """The numbers and values of the trials."""

    def __init__(self, records: SearchRecords, results: Mapping[str, Result]) -> None:
        self.known, self.results = records.points(results), results
        self._records, self._next = records, itertools.count()

    def config(self, params: Params) -> Params:
        """The config of the next trial, which gets these values unless others are recorded."""
        number = next(self._next)
        values = self.known[number] if number in self.known else self._records.point(number, params)
        return {"trial": number, "params": values}


class NumberedSearch(Unsaved, Searcher):
    """Numbers the trials of `OptunaSearch` and starts one only in a free place."""

    def __init__(self, problem: Problem, numbers: Numbers, may_start: MayStart, gain_too_small: MayStart) -> None:
        search = problem.search
        modes = ["min" if metric == "loss" else "max" for metric in search.metrics]
        if len(modes) == 1:
            super().__init__(metric=search.judge, mode=modes[0])
        else:
            super().__init__(metric=list(search.metrics), mode=modes)
        first = [*problem.warm, own_values(problem.spec, problem.space)]
        begun = max(numbers.known, default=-1) + 1
        # A number without values, which only a search of an earlier version has, gets the job's own.
        first = [numbers.known.get(number, first[-1]) for number in range(begun)] + first[begun:]
        self._optuna = OptunaSearch(
            space=distributions(problem.space),
            metric=self.metric,
            mode=self.mode,
            sampler=_ByResults(problem, numbers.results),
            points_to_evaluate=first[: trials_of(problem)],
        )
        self._numbers, self._models = numbers, search.samples != "tpe"
        self._may_start, self._gain_too_small = may_start, gain_too_small

    def set_search_properties(self, metric: str | None, mode: str | None, config: Params, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Params | str | None:
        if not self._may_start():
            return None
        if self._gain_too_small():
            return str(Searcher.FINISHED)
        return self._numbers.config(self._optuna.suggest(trial_id))

    def on_trial_complete(self, trial_id: str, result: Params | None = None, error: bool = False) -> None:
        # TPE learns from a failure where not to go; a model of the values would take its mark for one.
        if result is not None and (result["status"] == "dropped" or (self._models and result["status"] != "ok")):
            result, error = None, True
        self._optuna.on_trial_complete(trial_id, result, error)


class _ByResults(BaseSampler):
    """Optuna's sampler over the trials as their results show them. Tune's paused trials count as running in Optuna,
    from which TPE would learn to avoid them; a stopped one would count as a whole one, and Tune reports no two metrics
    before a trial's end.

    It is seeded for each trial by its number: a proposal depends on the trials before it alone, not on how many of them
    an attempt has proposed itself.
    """

    def __init__(self, problem: Problem, results: Mapping[str, Result]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search, self._results, self._rungs = problem.search, results, len(shares_of(problem))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The first of the three calls for each trial."""
        seed = (self._search.seed * 1_000_003 + trial.number * 7919 + 1) % 2**31
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # marked experimental
            samplers: dict[str, Callable[[], BaseSampler]] = {
                "gp": lambda: GPSampler(seed=seed, n_startup_trials=_STARTUP, deterministic_objective=False),
                "cmaes": lambda: CmaEsSampler(seed=seed, n_startup_trials=_STARTUP),
                "tpe": lambda: TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=_STARTUP),
            }
            self._sampler = samplers[self._search.samples]()
        return self._sampler.infer_relative_search_space(self._view(study), trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> Params:
        return self._sampler.sample_relative(self._view(study), trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, values: BaseDistribution) -> Any:
        return self._sampler.sample_independent(self._view(study), trial, name, values)

    def _view(self, study: Study) -> Study:
        if self._rungs == 1:
            return study
        view = optuna.create_study(directions=study.directions)
        for trial in study.get_trials(deepcopy=False):
            view.add_trial(self._shown(trial))
        return view

    def _shown(self, trial: FrozenTrial) -> FrozenTrial:
        """A trial that has not reached its last rung as pruned there, and one that has as whole, also while Tune saves
        it; or, for a Gaussian process, which knows no rungs, and with two metrics, every trial as a whole one with the
        values of its first rung, which all reach."""
        names = [f"{trial.number:04d}-{rung}" for rung in range(self._rungs)]
        own = [self._results[name] for name in names if name in self._results]
        if not own or own[-1].status != "ok":
            return trial
        shown, metrics = copy.copy(trial), self._search.metrics
        shown.datetime_complete = trial.datetime_complete or trial.datetime_start
        if len(metrics) > 1 or self._search.samples == "gp":
            shown.state, shown.values = TrialState.COMPLETE, [own[0].measured(metric) or 0.0 for metric in metrics]
        elif len(own) < self._rungs:
            shown.state, shown.value = TrialState.PRUNED, None
            shown.intermediate_values = {each.run.rung: each.measured(metrics[0]) or 0.0 for each in own}
        else:
            shown.state, shown.value = TrialState.COMPLETE, own[-1].measured(metrics[0]) or 0.0
        return shown


class Variants(Unsaved, BasicVariantGenerator):
    """A grid or random draws, each started only in a free place. `complete`: what the config of a variant becomes."""

    def __init__(self, may_start: MayStart, complete: Callable[[Params], Params], seed: int = 0) -> None:
        super().__init__(random_state=seed)
        self._may_start, self._complete = may_start, complete

    def next_trial(self) -> tune.experiment.Trial | None:
        trial = super().next_trial() if self._may_start() else None
        if trial is not None:
            trial.config.update(self._complete(trial.config))
            trial.custom_trial_name = trial.custom_dirname = trial_run(trial.config)  # named before it had a number
        return trial


def sampler_of(
    problem: Problem, numbers: Numbers, may_start: MayStart, gain_too_small: MayStart
) -> NumberedSearch | Variants:
    """The search algorithm of a search."""
    search = problem.search
    if search.samples not in ("grid", "random"):
        return NumberedSearch(problem, numbers, may_start, gain_too_small)
    if search.samples == "grid":  # in the order of every version, which Tune's own may not be
        points = iter(grid(problem.space))
        return Variants(may_start, lambda _: numbers.config(next(points)))
    first = iter([] if search.schedules in POPULATIONS else problem.warm)
    return Variants(may_start, lambda config: numbers.config(next(first, config["params"])), search.seed)


def finalists(segments: Sequence[TrialSegment], may_start: MayStart) -> tuple[Variants, Params]:
    """The finalists' segments as variants, and their space."""
    segment = tune.grid_search([run.model_dump(mode="json") for run in segments])
    given = Variants(may_start, lambda config: {name: config["segment"][name] for name in ("trial", "params")})
    return given, {"segment": segment}


def param_space(problem: Problem) -> Params:
    """The space in Tune's terms, for grid and random draws; Optuna's samplers have their own."""
    samples = problem.search.samples
    if samples not in ("grid", "random"):
        return {}
    of_list = tune.grid_search if samples == "grid" else tune.choice
    return {
        "params": {
            name: _domain(name, values) if isinstance(values, Range) else of_list(list(values))
            for name, values in problem.space.items()
        }
    }


def _domain(name: str, values: Range) -> Any:
    log, whole = values.scale == "log", is_whole(name)
    domain: Any = (tune.lograndint if log else tune.randint) if whole else (tune.loguniform if log else tune.uniform)
    return domain(round(values.min), round(values.max) + 1) if whole else domain(values.min, values.max)
