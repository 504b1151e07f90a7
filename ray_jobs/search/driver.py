"""A search from its first trial to its winner, on `ray.tune.Tuner`.

Two runs of Tune: one samples, one trains the finalists. Every attempt of the job starts them anew and gives them the
records of the attempts before, so that nothing with a result runs again; Tune's own state is written for people and
tools, and never read back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy.random
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import SearchAlgorithm, Searcher

from ray_jobs.errors import KitaeError, TrainingError
from ray_jobs.jobs import Job
from ray_jobs.search.progress import SearchProgress
from ray_jobs.search.records import EVERY_TRIAL, Problem, SearchRecords
from ray_jobs.search.rungs import trials_of
from ray_jobs.search.samplers import Numbers, finalists, param_space, sampler_of
from ray_jobs.search.schedulers import Places, PromotingASHA, scheduler_of
from ray_jobs.search.space import expected_gain
from ray_jobs.search.standing import Standing, all_failed, standing
from ray_jobs.search.stoppers import BudgetStopper
from ray_jobs.search.trainables import LIVES, SearchContext, SharedTrial, WorkersTrial
from ray_jobs.sharing.segments import Params, Result
from ray_jobs.sharing.shared_trainer import Mode, SharedTrainer, mode_of
from ray_jobs.spec import Range
from ray_jobs.tracking.files import trial_run
from ray_jobs.training import ray_train, ray_workers
from ray_jobs.training.inputs import TrainInputs

_SETTINGS = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the job has its own
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # `tracking` chooses them
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
_WATCH_S = 1.0
_END_S = 60.0
"""Time for the trials to end when the job stops."""
_CLIENT_BYTES = 200 * 2**20
"""Memory of a trial's process, by which Tune places it. It takes no CPU: those are the trainers' or the groups'."""


class Sampling:
    """What begins and promotes the trials of a search: its sampler and its scheduler."""

    def __init__(self, problem: Problem, records: SearchRecords, results: Mapping[str, Result], places: int) -> None:
        self._problem, self._results = problem, results
        self.why = EVERY_TRIAL
        """Why no further trial begins."""
        self.places = Places(places)
        self.scheduler = scheduler_of(problem, self.places)
        self.sampler = sampler_of(problem, Numbers(records, results), self._may_start, self._gain_is_too_small)

    def _may_start(self) -> bool:
        """Whether a trial may begin: in a free place for which no paused one waits."""
        promotes = isinstance(self.scheduler, PromotingASHA) and self.scheduler.promotable() is not None
        return self.places.free() and not promotes

    def _gain_is_too_small(self) -> bool:
        least = self._problem.search.budget.gain_below
        if least is None:
            return False
        gain = expected_gain(self._problem.space, self._results.values(), self._problem.search.judge)
        if gain < least:
            self.why = f"another trial is expected to gain {gain:.2g}, less than {least:g}"
        return gain < least


@dataclass
class Search:
    """One attempt's search."""

    job: Job
    records: SearchRecords
    problem: Problem
    materials: Mapping[str, TrainInputs]
    """By base model, see `SearchContext`."""
    show: Callable[..., None]
    note: Callable[[str], None]
    loggers: Callable[[], list[tune.Callback]] = list
    """Trackers of a run of Tune."""

    def run(self) -> Standing:
        """Run the search to its end. Raises TrainingError when every trial fails or the budget is too small for one."""
        mode = mode_of_search(self.problem)
        with self._context(mode) as context:
            if self.records.stopped() is None:
                self._sample(context, mode)
            now = self._now()
            if now.due:
                self.progress.finals(now, Places(self._places(mode)))
                sampler, space = finalists(now.due, self.progress.places.free)
                stopper = BudgetStopper(None, self.progress.results, self.progress.meter)
                self._fit(context, "finalists", sampler, FIFOScheduler(), stopper, space, 1)
                now = self._now()
        self.progress.ended(now)
        if now.winner is None:
            raise all_failed(self.records.results())
        return now

    def _now(self) -> Standing:
        return standing(self.problem, self.records.results(), self.records.stopped())

    @contextlib.contextmanager
    def _context(self, mode: Mode) -> Iterator[SearchContext]:
        """The trials' context, with the shared trainers while the search runs."""
        import ray

        job, records, compute = self.job, self.records, self.problem.spec.compute
        count, device = self._trainers(mode), "cuda" if compute.gpus_per_worker else "cpu"

        def busy_workers(running: int) -> int:
            if not count:
                return running * compute.workers
            return min(running, count) * (1 if compute.gpus_per_worker else compute.workers)

        self.progress = SearchProgress(job, records, self.problem, busy_workers, self.show, self.note)
        trainers = tuple(
            ray_workers.start_actor(SharedTrainer, records.store, device, compute=compute) for _ in range(count)
        )
        try:
            with ray_workers.progress_sink(self.progress.report) as board:
                yield SearchContext(
                    records.store, records.prefix, self.problem, self.materials, job.id, job.attempt, trainers, board
                )
        finally:
            for trainer in trainers:
                with contextlib.suppress(Exception):
                    ray.kill(trainer)
            self.progress.meter.save()

    def _sample(self, context: SearchContext, mode: Mode) -> None:
        problem, progress = self.problem, self.progress
        sampling = Sampling(problem, self.records, progress.results, self._places(mode))
        stopper = BudgetStopper(problem, progress.results, progress.meter)
        progress.places = sampling.places
        random.seed(problem.search.seed)  # PopulationBasedTraining draws from it, and PB2 from NumPy's
        numpy.random.seed(problem.search.seed)
        samples = 1 if problem.search.samples == "grid" else trials_of(problem)
        space = param_space(problem)
        self._fit(context, "trials", sampling.sampler, sampling.scheduler, stopper, space, samples)
        stop = self.records.stop(stopper.reason or sampling.why, self.records.results())
        if stop.reason != EVERY_TRIAL:
            self.job.event("info", f"search: {stop.reason}")

    def _fit(
        self, context: SearchContext, name: str, sampler: SearchAlgorithm | Searcher, scheduler: TrialScheduler,
        stopper: BudgetStopper, space: Params, samples: int,
    ) -> None:  # fmt: skip
        """One run of Tune. Raises what ended the job."""
        os.environ.update(_SETTINGS)
        # They would warn that reading a result from the store took half a second, and of each trial at the end that it
        # has no CSV file.
        for module in ("utils.util", "analysis.experiment_analysis"):
            logging.getLogger(f"ray.tune.{module}").setLevel(logging.ERROR)
        kind = SharedTrial if context.trainers else WorkersTrial
        client = tune.PlacementGroupFactory([{"memory": _CLIENT_BYTES}])
        files, path = self.records.store.filesystem(f"{self.records.prefix}/tune")
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(kind, search=context), client),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=self.problem.search.judge,
                mode="min" if self.problem.lower_is_better else "max",
                search_alg=sampler,
                scheduler=scheduler,
                num_samples=samples,
                reuse_actors=True,
                trial_name_creator=_name_of,
                trial_dirname_creator=_name_of,
            ),
            run_config=tune.RunConfig(
                name=f"attempt-{self.job.attempt}-{name}",
                storage_path=path,
                storage_filesystem=files,
                stop=stopper,
                failure_config=tune.FailureConfig(max_failures=LIVES),
                callbacks=[self.progress, *self.loggers()],
                verbose=0,
            ),
        )
        self._run_beside_a_watch(tuner, stopper, context)

    def _run_beside_a_watch(self, tuner: tune.Tuner, stopper: BudgetStopper, context: SearchContext) -> None:
        """Run Tune in a thread: its calls of Ray hang when the cluster is gone, and end the process after a minute."""
        failure: list[BaseException] = []

        def fit() -> None:
            try:
                tuner.fit()
            except BaseException as error:  # noqa: BLE001  # raised below
                failure.append(self.progress.error or error)

        thread = threading.Thread(target=fit, name="tune", daemon=True)
        thread.start()
        while thread.is_alive():
            try:
                thread.join(_WATCH_S)
                self.job.check()
                ray_workers.check_cluster(self.job.id)
                self.progress.refresh()
            except TrainingError:
                raise  # the cluster is lost, and Tune with it
            except BaseException as error:
                stopper.reason, until = "the job stops", time.monotonic() + _END_S
                if not isinstance(error, Exception):
                    raise  # a signal: the process ends, and Tune with it
                while thread.is_alive() and time.monotonic() < until:
                    self._drop(context)
                    thread.join(_WATCH_S)
                raise
            if stopper.reason:
                self._drop(context)  # again and again: a segment may have begun since
        self.job.check(fresh=True)  # trials that ended with their job have not failed
        if failure:
            raise failure[0]

    def _drop(self, context: SearchContext) -> None:
        """Give up the running segments, so that their trials answer at once."""
        for run in list(self.progress.running.values()):
            for trainer in context.trainers:
                with contextlib.suppress(Exception):
                    trainer.drop.remote(run.name)
            if not context.trainers:
                with contextlib.suppress(KitaeError):
                    ray_train.stop_training(self.records.store, context.inputs(run))

    def _trainers(self, mode: Mode) -> int:
        """Shared trainers: one for each GPU; on CPUs more than one would share the same cores."""
        if mode == "workers" or not self.problem.spec.compute.gpus_per_worker:
            return int(mode != "workers")
        gpus = int(ray_workers.cluster_resources().get("GPU", 0.0))
        return max(1, min(self.problem.search.parallel, gpus, trials_of(self.problem)))

    def _places(self, mode: Mode) -> int:
        """Most trials at once: of Ray Train groups, as many as the cluster holds, since each has a placement group of
        its own beside Tune's."""
        parallel, compute = self.problem.search.parallel, self.problem.spec.compute
        if mode != "workers":
            return parallel if mode == "shared" else min(parallel, self._trainers(mode))
        needs, have = {"CPU": compute.cpus_per_worker, "GPU": compute.gpus_per_worker}, ray_workers.cluster_resources()
        places = [have.get(name, 0.0) / (need * compute.workers) for name, need in needs.items() if need]
        return max(1, min(parallel, int(min(places))))


def _name_of(trial: tune.experiment.Trial) -> str:
    """The name of a trial and of its directory."""
    return trial_run(trial.config) if "trial" in trial.config else str(trial.trial_id)


def mode_of_search(problem: Problem) -> Mode:
    """The mode of a search: `workers` if any of its trials needs several workers, else `shared` if any can. Pure."""
    fields = {name: problem.space[name] for name in ("method", "lora.dropout") if name in problem.space}
    options = [(values.min, values.max) if isinstance(values, Range) else values for values in fields.values()]
    modes = {mode_of(problem.spec.with_values(dict(zip(fields, point, strict=True))))[0] for point in product(*options)}
    order: tuple[Mode, ...] = ("workers", "shared", "alone")
    return next(mode for mode in order if mode in modes)
