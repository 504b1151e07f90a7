"""Ray Tune's schedulers for the rungs of a search, and how many trials run at once.

A result's `training_iteration` is its rung, counted from 1; its `resource` is the rung's length in units of the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.result import TRAINING_ITERATION
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from ray_jobs.search.records import Problem, Unsaved
from ray_jobs.search.rungs import RESOURCE, trials_of
from ray_jobs.sharing.segments import Params
from ray_jobs.spec import Range
from ray_jobs.spec.search import PERTURBED

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


@dataclass
class Places:
    """How many trials run at once. Tune's own limiters count a paused trial too, and would wait for it forever."""

    most: int
    trials: Sequence[Trial] = ()
    """Tune's list of trials, which Tune extends."""

    def free(self) -> bool:
        return sum(trial.status in (Trial.RUNNING, Trial.PENDING) for trial in self.trials) < self.most


class _InPlaces(Unsaved):
    """A scheduler that resumes a paused trial only in a free place, and keeps a process for each place between trials.
    Tune keeps one, and trials that share passes end together: the others would start a process each, which takes longer
    than a short trial."""

    def __init__(self, places: Places, **options: Any) -> None:
        super().__init__(**options)
        self.places, self._keeps = places, False

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)  # type: ignore[misc]  # a scheduler's
        # Tune's wrapper has no public way to its cache.
        cache = getattr(getattr(tune_controller, "_tune_controller", None), "_actor_cache", None)
        if cache is not None and not self._keeps:
            self._keeps = True
            cache.increase_max(trial.placement_group_factory, by=self.places.most)

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        chosen: Trial | None = super().choose_trial_to_run(tune_controller)  # type: ignore[misc]  # a scheduler's
        waits = chosen is not None and chosen.status == Trial.PAUSED and not self.places.free()
        return None if waits else chosen


def _in_places(kind: Any, places: Places, **options: Any) -> TrialScheduler:
    """One of Ray's schedulers as it is, but for the places."""
    made: TrialScheduler = type(kind.__name__, (_InPlaces, kind), {})(places, **options)
    return made


class PromotingASHA(_InPlaces, FIFOScheduler):
    """ASHA (Li et al. 2018, arXiv:1810.05934): every trial pauses at its rung, and whenever a place is free, the best
    1/η of a rung that were not promoted yet come before a new trial.

    Ray's AsyncHyperBandScheduler stops trials instead and lets the first pass every rung. Other than in the paper, no
    more than 1/η of a rung's planned trials are promoted: one promoted early is often outside the best 1/η later.
    """

    def __init__(self, problem: Problem, places: Places) -> None:
        super().__init__(places)
        self._reduction, self._judge, self._trials = problem.search.reduction, problem.search.judge, trials_of(problem)
        self._sign = 1.0 if problem.lower_is_better else -1.0
        self._rungs: list[dict[Trial, float]] = [{} for _ in range(problem.search.rungs)]
        """Value of each trial by rung; lower is better, infinite for a failed trial."""
        self._promoted: list[set[Trial]] = [set() for _ in self._rungs]

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        self._record(trial, result)
        return str(TrialScheduler.PAUSE)

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        self._record(trial, result)

    def _record(self, trial: Trial, result: dict[str, Any]) -> None:
        value = self._sign * result[self._judge] if result["status"] == "ok" else math.inf
        self._rungs[result[TRAINING_ITERATION] - 1][trial] = value

    def promotable(self) -> tuple[int, Trial] | None:
        """The next trial to promote, and its rung: the best of the highest rung."""
        for rung, values in reversed(list(enumerate(self._rungs[:-1]))):
            if len(self._promoted[rung]) >= self._trials // self._reduction ** (rung + 1):
                continue
            ranked = sorted(values, key=lambda trial: (values[trial], trial.config["trial"]))
            for trial in ranked[: len(ranked) // self._reduction]:
                ready = trial.status == Trial.PAUSED and trial not in self._promoted[rung]
                if ready and math.isfinite(values[trial]):
                    return rung, trial
        return None

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        found = self.promotable()
        if found is not None and self.places.free():
            self._promoted[found[0]].add(found[1])
            return found[1]
        trials = tune_controller.get_trials()
        runs = any(trial.status in (Trial.RUNNING, Trial.PENDING) for trial in trials)
        if found is None and not runs and tune_controller.search_alg.is_finished():
            for trial in [trial for trial in trials if trial.status == Trial.PAUSED]:
                tune_controller.stop_trial(trial)  # nothing can promote it any more
        return None


class _HyperBand(_InPlaces, HyperBandScheduler):
    def _create_bracket(self, s: int) -> Any:
        """A bracket that is full once all its trials have begun. Ray's own lets later ones take the places of those
        that ended, so that with few places every trial would join the first bracket, which stops none."""
        bracket = super()._create_bracket(s)
        bracket.filled = lambda: len(bracket._all_trials) >= bracket._n0
        return bracket

    def _process_bracket(self, tune_controller: TuneController, bracket: Any) -> str:
        """Halve a full bracket only: Ray's own would judge the trials that have begun, one by one."""
        if not bracket.filled() and not tune_controller.search_alg.is_finished():
            return str(TrialScheduler.PAUSE)
        return str(super()._process_bracket(tune_controller, bracket))

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        if tune_controller.search_alg.is_finished():
            for bracket in [bracket for band in self._hyperbands for bracket in band if bracket is not None]:
                live = bracket.current_trials()
                resumes = bracket.trials_to_unpause & set(live)
                if live and not resumes and all(trial.status == Trial.PAUSED for trial in live):
                    self._process_bracket(tune_controller, bracket)  # the last one, which stays unfilled
        return super().choose_trial_to_run(tune_controller)


def _population(problem: Problem, places: Places) -> TrialScheduler:
    """PopulationBasedTraining or PB2, whose members may be more than the places."""
    search, failed = problem.search, set[Trial]()
    space = {name: values for name, values in problem.space.items() if name in PERTURBED}
    ranges = {name: values for name, values in space.items() if isinstance(values, Range)}
    options: dict[str, Any] = {
        "time_attr": TRAINING_ITERATION, "perturbation_interval": 1, "synch": True, "log_config": False,
    }  # fmt: skip
    kind: Any = PopulationBasedTraining
    if search.schedules == "pb2":
        from ray.tune.schedulers.pb2 import PB2  # imports scikit-learn

        kind = PB2
        options["hyperparam_bounds"] = {"params": {name: [r.min, r.max] for name, r in ranges.items()}}
    else:
        lists = {name: list(values) for name, values in space.items() if not isinstance(values, Range)}
        changes = {name: tune.uniform(r.min, r.max) for name, r in ranges.items()} | lists
        options |= {"resample_probability": 0.0, "perturbation_factors": (0.8, 1.25)}
        options["hyperparam_mutations"] = {"params": changes}

    class Population(_InPlaces, kind):
        def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
            if result["status"] != "ok":  # its mark would flatten what PB2 models
                scores = [state.last_score for state in self._trial_state.values() if state.last_score is not None]
                result = {**result, search.judge: self._metric_op * min(scores)} if scores else result
                failed.add(trial)
            else:
                failed.discard(trial)
            for other, state in self._trial_state.items():
                if other.status == Trial.ERROR:  # the others do not wait for it
                    state.last_train_time, state.last_score = self._next_perturbation_sync, None
            if len(self._trial_state) < search.trials:  # some have not begun, so that there is no ranking yet
                self._save_trial_state(self._trial_state[trial], result[TRAINING_ITERATION], result, trial)
                return str(TrialScheduler.PAUSE)
            return str(super().on_trial_result(tune_controller, trial, result))

        def _is_behind(self, trial: Trial) -> bool:
            return bool(self._trial_state[trial].last_train_time < self._next_perturbation_sync)

        def _quantiles(self) -> tuple[list[Trial], list[Trial]]:
            """Every failed member copies one of the best, and none copies it."""
            worst, best = super()._quantiles()
            best = [trial for trial in best if trial not in failed]
            again = [trial for trial in failed if not trial.is_finished() and trial not in worst]
            again.sort(key=lambda trial: trial.config["trial"])
            return ([*worst, *again], best) if best else ([], [])

        def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[Params, Params]:
            """Keep the number of a member that copies another, and its values within their ranges."""
            config, operations = super()._get_new_config(trial, trial_to_clone)
            params = dict(config["params"])
            for name, values in ranges.items():
                params[name] = min(values.max, max(values.min, params[name]))
            return {"trial": trial.config["trial"], "params": params}, operations

        def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
            going = [trial for trial in tune_controller.get_trials() if not trial.is_finished()]
            begun = bool(going) and len(self._trial_state) == search.trials
            if begun and all(t.status == Trial.PAUSED and not self._is_behind(t) for t in going):
                self._next_perturbation_sync += 1  # they waited for one that has died
            return super().choose_trial_to_run(tune_controller)

    return Population(places, **options)


def scheduler_of(problem: Problem, places: Places) -> TrialScheduler:
    """The scheduler of a search."""
    search = problem.search
    longest = search.reduction ** (search.rungs - 1)
    rungs = {"time_attr": RESOURCE, "max_t": longest, "reduction_factor": search.reduction}
    match search.schedules:
        case "asha":
            return PromotingASHA(problem, places)
        case "asha_stopping":
            return _in_places(AsyncHyperBandScheduler, places, **rungs)
        case "hyperband":
            return _HyperBand(places, **rungs)
        case "median_stopping":
            return _in_places(MedianStoppingRule, places, time_attr=RESOURCE, grace_period=1)
        case "pbt" | "pb2":
            return _population(problem, places)
        case "none":
            return _in_places(FIFOScheduler, places)
