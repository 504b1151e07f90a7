"""A search without processes: Ray Tune's real schedulers and samplers over a clock that counts optimizer steps.

Takes the part of Tune's controller, in its order: ask the sampler, let the scheduler resume, then handle one event. The
trials are the real trainables; only what a segment's training gives is made up.
"""

from __future__ import annotations

import heapq
import itertools
import json
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar, cast

from ray import tune
from ray.tune.experiment import Experiment, Trial
from ray.tune.result import DONE
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher, SearchGenerator

from ray_jobs.errors import ConflictError, ObjectNotFound
from ray_jobs.search.driver import Sampling
from ray_jobs.search.records import Problem, SearchRecords
from ray_jobs.search.rungs import trials_of
from ray_jobs.search.samplers import param_space
from ray_jobs.search.standing import Standing, standing
from ray_jobs.search.trainables import SearchContext, SharedTrial
from ray_jobs.sharing.segments import Result, TrialSegment
from ray_jobs.sharing.trial_group import TrialTask
from ray_jobs.storage import Workspace
from ray_jobs.storage.unreadable import UnreadableRecords
from ray_jobs.training.inputs import TrainInputs
from tests.search.problems import outcome

Make = Callable[[TrialSegment], Result]


class MemoryStore:
    """The documents of a search, without a server."""

    def __init__(self) -> None:
        self.objects: dict[str, str] = {}
        self.unreadable = UnreadableRecords()

    def now_s(self) -> float:
        return time.time()

    def put_json(self, key: str, document: Any, *, if_absent: bool = False) -> None:
        if if_absent and key in self.objects:
            raise ConflictError(key)
        self.objects[key] = json.dumps(document)

    def get_json(self, key: str) -> Any:
        if key not in self.objects:
            raise ObjectNotFound(key)
        return json.loads(self.objects[key])

    def path(self, key: str) -> str:
        return key

    def delete_tree(self, prefix: str) -> None:
        self.objects = {key: text for key, text in self.objects.items() if not key.startswith(f"{prefix}/")}

    def list(self, prefix: str) -> Iterator[Any]:
        for key in sorted(key for key in self.objects if key.startswith(prefix)):
            yield SimpleNamespace(key=key)


class Board:
    """Takes the trials' reports."""

    class put:
        @staticmethod
        def remote(*_: object) -> None: ...


class MadeUpTrial(SharedTrial):
    make: ClassVar[Make]
    begun: ClassVar[list[str]]
    context: ClassVar[SearchContext]

    def setup(self, config: dict[str, Any], search: SearchContext | None = None) -> None:
        super().setup(config, search or self.context)

    def _job_stops(self) -> bool:
        return False

    def _train(self, task: TrialTask) -> Result | None:
        self.begun.append(task.run.name)
        return type(self).make(task.run)


class Simulation:
    """One attempt. `results`: the records' results, also of earlier attempts on the same `store`."""

    def __init__(self, problem: Problem, make: Make, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        self.problem, self.records = problem, SearchRecords(cast(Workspace, self.store), "search")
        self.results = self.records.results()
        self.sampling = Sampling(problem, self.records, self.results, problem.search.parallel)
        self.search_alg = self.sampling.sampler
        self.trials: list[Trial] = []
        self.begun: list[str] = []
        inputs = TrainInputs(spec=problem.spec, labels=(), encoded_key="e", base_key="b", checkpoints="")
        bases = problem.space.get("base_model", ())
        assert isinstance(bases, tuple)
        materials = dict.fromkeys((problem.spec.base_model, *bases), inputs)
        context = SearchContext(cast(Workspace, self.store), "search", problem, materials, "job", 1, (), Board())
        parts = {"make": staticmethod(make), "begun": self.begun, "context": context}
        self._kind = type("Made", (MadeUpTrial,), parts)
        self._paused: set[Trial] = set()
        self.most_at_once = 0
        self._count = itertools.count()
        self._clock, self._events = 0.0, cast(list[tuple[float, int, Trial, MadeUpTrial, dict[str, Any]]], [])

    # ---- what schedulers and samplers see of the controller

    def get_trials(self) -> list[Trial]:
        return self.trials

    def get_live_trials(self) -> list[Trial]:
        return [trial for trial in self.trials if not trial.is_finished()]

    def stop_trial(self, trial: Trial) -> None:
        if trial.status in (Trial.PENDING, Trial.PAUSED):
            self.sampling.scheduler.on_trial_remove(self, trial)
            self.search_alg.on_trial_complete(trial.trial_id)
        else:
            self.sampling.scheduler.on_trial_complete(self, trial, trial.last_result)
            self.search_alg.on_trial_complete(trial.trial_id, result=trial.last_result)
        trial.set_status(Trial.TERMINATED)

    # ---- its loop

    def run(self, until: int | None = None) -> None:
        """Sample to the end, or until so many segments have results."""
        search = self.problem.search
        samples = 1 if search.samples == "grid" else trials_of(self.problem)
        if isinstance(self.search_alg, Searcher):
            self.search_alg = SearchGenerator(self.search_alg)
        tune.register_trainable("made-up", SharedTrial)  # for its name; Tune pickles the class
        experiment = Experiment("simulated", "made-up", config=param_space(self.problem), num_samples=samples)
        self.search_alg.add_configurations([experiment])
        mode = "min" if self.problem.lower_is_better else "max"
        self.sampling.scheduler.set_search_properties(search.judge, mode)
        self.sampling.places.trials = self.trials
        while until is None or len(self.results) < until:
            if (new := self.search_alg.next_trial()) is not None:
                self.trials.append(new)
                self.sampling.scheduler.on_trial_add(self, new)
                self._start(new)
            if (paused := self.sampling.scheduler.choose_trial_to_run(self)) is not None:
                self._start(paused)
            if new is not None or paused is not None:
                continue  # nothing ends while trials start
            if self._events:
                self._handle(*heapq.heappop(self._events))
            elif not self.get_live_trials() and self.search_alg.is_finished():
                return

    def _start(self, trial: Trial) -> None:
        trial.set_status(Trial.RUNNING)
        self.most_at_once = max(self.most_at_once, sum(each.status == Trial.RUNNING for each in self.trials))
        trainable = self._kind(config=dict(trial.config))
        if trial in self._paused:
            trainable.restore(SimpleNamespace(metrics=trial.last_result))
        self._train(trial, trainable)

    def _train(self, trial: Trial, trainable: MadeUpTrial) -> None:
        result = trainable.train()
        spent = result["steps"] if result["segment"] not in self.results else 0
        heapq.heappush(self._events, (self._clock + spent, next(self._count), trial, trainable, result))

    def _handle(self, at: float, _: int, trial: Trial, trainable: MadeUpTrial, result: dict[str, Any]) -> None:
        self._clock = at
        found = self.records.result(result["segment"])
        assert found is not None
        self.results[found.run.name] = found
        decision = TrialScheduler.STOP
        if not result[DONE]:
            decision = self.sampling.scheduler.on_trial_result(self, trial, result)
            if decision != TrialScheduler.STOP:
                self.search_alg.on_trial_result(trial.trial_id, result)
        trial.run_metadata.last_result = result
        if decision == TrialScheduler.CONTINUE:
            self._train(trial, trainable)
        elif decision == TrialScheduler.PAUSE:
            self._paused.add(trial)
            trial.set_status(Trial.PAUSED)
        else:
            self.stop_trial(trial)


def finish(
    problem: Problem, make: Make = outcome, store: MemoryStore | None = None
) -> tuple[Standing, dict[str, Result], list[str]]:
    """A search to its winner. Returns also its results, in the order of their ends, and the segments trained."""
    simulation = Simulation(problem, make, store)
    simulation.run()
    records, results = simulation.records, simulation.results
    stop = records.stop(simulation.sampling.why, results)
    while due := standing(problem, results, stop).due:
        for run in due:
            results[run.name] = records.add(make(run))
            simulation.begun.append(run.name)
    return standing(problem, results, stop), results, simulation.begun
