"""Ray Tune's trials: each step trains one segment, to the trial's next rung, and commits its result before Tune hears.

A checkpoint of Tune is the name of the last segment; the weights stay in the store. So a segment with a result is never
trained again, whatever Tune remembers. Runs in small processes without PyTorch: the training runs in a shared trainer
(`SharedTrial`) or in a Ray Train group (`WorkersTrial`).
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.result import DONE

from ray_jobs.errors import KitaeError, MachineError, TrainingError
from ray_jobs.search.records import Problem, SearchRecords
from ray_jobs.search.rungs import FAILED, RESOURCE, rungs_of, trial_spec
from ray_jobs.sharing.segments import Params, Result, TrialSegment
from ray_jobs.sharing.shared_trainer import SegmentState, TrialClock, failed, result_of_training
from ray_jobs.sharing.trial_group import TrialTask
from ray_jobs.spec.search import PERTURBED, POPULATIONS
from ray_jobs.storage import Store
from ray_jobs.training import ray_train, ray_workers
from ray_jobs.training.inputs import TrainInputs, TrainUntil

LIVES = 3
"""Process deaths after which a segment is given up. After the first it runs alone, so that the one that kills is
found."""
_POLL_S = 0.2
_RETRY_S = 1.0
_FILE = "segment.json"


@dataclass(frozen=True)
class SearchContext:
    """What the trials of a search need."""

    store: Store
    prefix: str
    """Of the search's records."""
    problem: Problem
    materials: Mapping[str, TrainInputs]
    """By base model: rows and base, without values, `until` and `checkpoints`."""
    job_id: str
    attempt: int
    trainers: tuple[Any, ...]
    """Actors of `SharedTrainer`. Empty: each segment is a Ray Train group."""
    board: Any
    """Actor to which the trials report: `ray_workers.progress_sink`."""

    @property
    def records(self) -> SearchRecords:
        return SearchRecords(self.store, self.prefix)

    def inputs(self, run: TrialSegment) -> TrainInputs:
        """Inputs of a segment."""
        spec = trial_spec(self.problem, run)
        source = self.records.result(run.source) if run.source is not None else None
        until = TrainUntil(stop_at_step=run.until, resume_from=source.trunk if source is not None else None)
        update = {"spec": spec, "until": until, "checkpoints": self.records.checkpoints(run)}
        return self.materials[spec.base_model].model_copy(update=update)


class _Trial(tune.Trainable):
    """A trial of a search. Its config: `trial` and `params`, or for a finalist the whole `segment` too."""

    def setup(self, config: Params, search: SearchContext) -> None:
        self._search, self._records = search, search.records
        self.reset_config(config)

    def reset_config(self, new_config: Params) -> bool:
        self._params: Params = dict(new_config.get("params", {}))
        self._source: str | None = None
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, _FILE).write_text(json.dumps({"segment": self._source, "params": self._params}))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Go on from a segment. A member of a population gets another's here, with perturbed values in its config."""
        saved = json.loads(Path(checkpoint_dir, _FILE).read_text())
        changed = PERTURBED if self._search.problem.search.schedules in POPULATIONS else ()
        own = {name: value for name, value in self._params.items() if name in changed}
        self._source, self._params = saved["segment"], {**saved["params"], **own}

    def step(self) -> dict[str, Any]:
        run = self._segment()
        result = self._records.result(run.name)
        if result is None:
            self._report(run, 0)
            trained = self._train(TrialTask(run=run, inputs=self._search.inputs(run)))
            if trained is None:
                return self._reported(Result(run=run, status="failed"), dropped=True)
            result = self._records.add(trained)
        self._source = result.run.name if result.trunk is not None else None
        self._params = result.run.params
        return self._reported(result)

    def _segment(self) -> TrialSegment:
        if "segment" in self.config:
            run = TrialSegment.model_validate(self.config["segment"])
            self._iteration = run.rung  # for loggers: a trial's last rung is the same one here
            return run
        rung, params = self.iteration, self._params
        until = rungs_of(self._search.problem, params)[rung]
        return TrialSegment(trial=self.config["trial"], rung=rung, params=params, until=until, source=self._source)

    def _train(self, task: TrialTask) -> Result | None:
        """Train a segment to its end. None: the driver gave it up."""
        raise NotImplementedError

    def _report(self, run: TrialSegment, step: int, *, note: str = "") -> None:
        """Tell the driver how far a segment is."""
        self._search.board.put.remote(
            (step, run.until, "steps", {"segment": run.model_dump_json(), "note": note}), True
        )

    def _reported(self, result: Result, *, dropped: bool = False) -> dict[str, Any]:
        """A result as Tune's schedulers, searchers and loggers read it."""
        problem, run = self._search.problem, result.run
        search, rungs = problem.search, len(rungs_of(problem, run.params))
        values = {metric: result.measured(metric) for metric in ("loss", *search.metrics)}
        if result.status != "ok":
            values = {metric: FAILED if metric == "loss" else -FAILED for metric in values}
        goes_on = run.rung + 1 < rungs and (result.status == "ok" or search.schedules in POPULATIONS)
        return {
            **values,
            "tokens_per_s": values.get("tokens_per_s", result.tokens_per_s),
            "tokens": result.tokens,
            "steps": run.until,
            RESOURCE: search.reduction**run.rung,
            "segment": run.name,
            "status": "dropped" if dropped else result.status,
            DONE: dropped or not goes_on or "segment" in self.config,
        }


class SharedTrial(_Trial):
    """A light client of a shared trainer: several trials on one base in one process, or one after another there."""

    def _train(self, task: TrialTask) -> Result | None:
        import ray

        run, deaths, process = task.run, 0, ""
        why: Exception = TrainingError("a process of the search ended")
        minutes, since = self._search.problem.search.trial_minutes, time.monotonic()
        trainer = self._search.trainers[0]
        while True:
            try:
                if not process:
                    trainer = self._least_loaded()
                    process = ray.get(trainer.submit.remote(task, alone=deaths > 0))
                state: SegmentState = ray.get(trainer.state.remote(run.name))
            except Exception as error:  # noqa: BLE001  # whatever ended the process, the segment starts again
                why = ray_workers.explain(error, "a process of the search ended")
                trainer.end_if_broken.remote()
                time.sleep(_RETRY_S)
                continue
            if state.process != process:
                process, deaths = "", deaths + 1
                self._report(run, 0, note=f"{why}; trial {run.trial} resumes from its last checkpoint")
                if deaths >= LIVES:
                    status = "out_of_memory" if isinstance(why, MachineError) else "lost"
                    return Result(run=run, status=status, error=f"{why} ({LIVES} times)")
                continue
            for note in state.notes:
                self._report(run, state.step or 0, note=note)
            if state.result is not None or state.step is None:
                return state.result
            if minutes is not None and time.monotonic() - since > minutes * 60:
                trainer.drop.remote(run.name)
                return _late(run, minutes)
            self._report(run, state.step)
            time.sleep(_POLL_S)

    def _least_loaded(self) -> Any:
        import ray

        trainers = self._search.trainers
        loads = ray.get([trainer.load.remote() for trainer in trainers])
        return trainers[min(range(len(trainers)), key=lambda i: (loads[i], random.random()))]


class WorkersTrial(_Trial):
    """A Ray Train group for each segment, for trials that cannot share and need several workers."""

    def _train(self, task: TrialTask) -> Result | None:
        run, inputs, store = task.run, task.inputs, self._search.store
        clock, minutes = TrialClock(), self._search.problem.search.trial_minutes
        ray_train.allow_training(store, inputs)

        def report(done: float, *_: object) -> None:
            clock.step()
            self._report(run, int(done))

        with _alarm(minutes, lambda: ray_train.stop_training(store, inputs)) as late:
            try:
                ray_train.train_on_workers(
                    inputs, store, job_id=self._search.job_id, attempt=self._search.attempt, report=report
                )
            except KitaeError as error:
                return failed(run, error)
        result = result_of_training(store, task)
        if result is None:
            return _late(run, minutes) if minutes is not None and late.is_set() else None
        return clock.timed(result)


@contextlib.contextmanager
def _alarm(minutes: float | None, ring: Any) -> Iterator[threading.Event]:
    """Call `ring` after some minutes. Yields an event that is set then."""
    rung = threading.Event()

    def late() -> None:
        rung.set()
        with contextlib.suppress(KitaeError):
            ring()

    timer = threading.Timer((minutes or 0) * 60, late)
    timer.daemon = True
    if minutes is not None:
        timer.start()
    try:
        yield rung
    finally:
        timer.cancel()


def _late(run: TrialSegment, minutes: float) -> Result:
    return Result(run=run, status="timed_out", error=f"it took more than search.trial_minutes {minutes:g}")
