"""Ray Tune's trials: each step trains one segment, to the trial's next rung, and commits its result before it returns.

A checkpoint of Tune is the name of the last segment; the weights stay in the store. So a segment with a result is never
trained again, whatever Tune remembers. Runs in small processes without PyTorch: the training runs in a shared trainer
(`SharedTrial`) or in a Ray Train group (`WorkersTrial`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.result import DONE, TRAINING_ITERATION

from ray_jobs import jobs
from ray_jobs.errors import KitaeError, MachineError, TrainingError
from ray_jobs.search.records import Problem, SearchRecords
from ray_jobs.search.rungs import FAILED, RESOURCE, rungs_of, trial_spec
from ray_jobs.sharing.segments import Params, Result, SegmentStatus, TrialSegment
from ray_jobs.sharing.shared_trainer import SegmentState, TrialClock, failed, result_of_training
from ray_jobs.sharing.trial_group import TrialTask
from ray_jobs.spec.search import PERTURBED, POPULATIONS
from ray_jobs.storage import Workspace
from ray_jobs.training import ray_train, ray_workers
from ray_jobs.training.inputs import TrainInputs, TrainUntil

LIVES = 3
"""Process deaths after which a segment is given up. After the first it runs alone, so that the one that kills is
found."""
_POLL_S = 0.2
_RETRY_S = 1.0
_AWAY_S = 300.0
"""Time without an answer of any shared trainer after which a segment is given up."""


@dataclass(frozen=True)
class SearchContext:
    """What the trials of a search need."""

    store: Workspace
    prefix: str
    """Prefix of the search's records."""
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
        self._params: Params = dict(new_config["params"])
        self._source: str | None = None
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "segment").write_text(str(self._source))  # for people; `restore` reads the records

    def restore(self, checkpoint_path: Any) -> None:
        """Resume from the segment in the metrics that the driver sends. Ray's own would read the checkpoint's files,
        pickles among them, which any of the job's pods can write."""
        metrics = checkpoint_path.metrics
        self._iteration, self._restored = metrics[TRAINING_ITERATION], True
        result = self._records.result(metrics["segment"])
        assert result is not None
        copies = result.run.trial != self.config["trial"]  # a member of a population: another's, with perturbed values
        own = {name: value for name, value in self._params.items() if copies and name in PERTURBED}
        self._resume_from(result)
        self._params = {**self._params, **own}

    def _resume_from(self, result: Result) -> None:
        self._source = result.run.name if result.trunk is not None else None
        self._params = result.run.params

    def step(self) -> dict[str, Any]:
        run = self._segment()
        result = self._records.result(run.name)
        if result is None:
            self._report(run, 0)
            self._records.begin_segment(run)
            trained = self._train(TrialTask(run=run, inputs=self._search.inputs(run)))
            if trained is None or (trained.status != "ok" and self._job_stops()):
                return self._reported(Result(run=run, status="failed"), dropped=True)
            result = self._records.add(self._search.problem.comparable(trained))
        self._resume_from(result)
        return self._reported(result)

    def _segment(self) -> TrialSegment:
        if "segment" in self.config:
            run = TrialSegment.model_validate(self.config["segment"])
            self._iteration = run.rung  # for loggers: a trial's last rung is the same one here
            return run
        problem, rung, params = self._search.problem, self.iteration, self._params
        until = rungs_of(problem, params)[rung]
        run = TrialSegment(trial=self.config["trial"], rung=rung, params=params, until=until, source=self._source)
        # What a member of a population copies is drawn anew in each attempt; what it began is finished.
        begun = self._records.segment(run.name) if problem.search.schedules in POPULATIONS else None
        return begun or run

    def _job_stops(self) -> bool:
        """Whether the job was paused, cancelled or taken over: then a failure may only follow from that."""
        job = jobs.load(self._search.store, self._search.job_id)
        return job.status != "running" or job.attempt != self._search.attempt

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
        continues = run.rung + 1 < rungs and (result.status == "ok" or search.schedules in POPULATIONS)
        return {
            **values,
            "tokens_per_s": values.get("tokens_per_s", result.tokens_per_s),
            "tokens": result.tokens,
            "steps": run.until,
            RESOURCE: search.reduction**run.rung,
            "segment": run.name,
            "status": "dropped" if dropped else result.status,
            DONE: dropped or not continues or "segment" in self.config,
        }


class SharedTrial(_Trial):
    """A light client of a shared trainer: several trials on one base in one process, or one after another there."""

    def _train(self, task: TrialTask) -> Result | None:
        import ray

        run, process, deaths = task.run, "", 0
        why: Exception = TrainingError("a process of the search ended")
        minutes, said, shown = self._search.problem.search.trial_minutes, set[str](), 0
        since = answered = time.monotonic()
        trainer = self._search.trainers[0]
        while True:
            try:
                if not process:
                    trainer = self._least_loaded(run)
                    process = ray.get(trainer.submit.remote(task, alone=deaths > 0))
                state: SegmentState = ray.get(trainer.state.remote(run.name))
                answered = time.monotonic()
            except Exception as error:  # noqa: BLE001  # whatever ended the process, the segment starts again
                why = ray_workers.explain(error, "a process of the search ended")
                if time.monotonic() - answered > _AWAY_S:
                    return _lost(run, why, f"no process for it within {_AWAY_S:g} s")
                trainer.end_if_broken.remote()
                time.sleep(_RETRY_S)
                continue
            if state.process != process:
                process, deaths, since = "", deaths + 1, time.monotonic()
                self._report(run, 0, note=f"{why}; trial {run.trial} resumes from its last checkpoint")
                if deaths >= LIVES:
                    return _lost(run, why, f"{LIVES} times")
                continue
            for note in set(state.notes) - said:
                said.add(note)
                self._report(run, state.step or 0, note=note)
            if state.result is not None or state.step is None:
                return state.result
            since = time.monotonic() if state.waits else since
            if minutes is not None and time.monotonic() - since > minutes * 60:
                trainer.drop.remote(run.name)
                return _late(run, minutes)
            if state.step != shown:
                shown = state.step
                self._report(run, shown)
            time.sleep(_POLL_S)

    def _least_loaded(self, run: TrialSegment) -> Any:
        """The trainer with the fewest segments, of those that answer; trials that start together take turns."""
        import ray

        loads: dict[int, int] = {}
        trainers, error = self._search.trainers, None
        for i, trainer in enumerate(trainers):
            try:
                loads[i] = ray.get(trainer.load.remote(), timeout=_RETRY_S * 5)
            except Exception as away:  # noqa: BLE001  # it starts again; another one may answer
                error = away
        if not loads and error is not None:
            raise error
        return trainers[min(loads, key=lambda i: (loads[i], (i - run.trial) % len(trainers)))]


class WorkersTrial(_Trial):
    """A Ray Train group for each segment, for trials that cannot share and need several workers."""

    def _train(self, task: TrialTask) -> Result | None:
        run, inputs, store = task.run, task.inputs, self._search.store
        clock, minutes, late = TrialClock(), self._search.problem.search.trial_minutes, False
        ray_train.allow_training(store, inputs)

        def report(done: float, *_: object) -> None:
            nonlocal late
            clock.step()
            self._report(run, int(done))
            if minutes is not None and not late and clock.trained_s() > minutes * 60:
                ray_train.stop_training(store, inputs)
                late = True

        try:
            ray_train.train_on_workers(
                inputs, store, job_id=self._search.job_id, attempt=self._search.attempt, report=report
            )
        except KitaeError as error:
            return failed(run, error)
        result = result_of_training(store, task)
        if result is None:
            return _late(run, minutes) if minutes is not None and late else None
        return clock.timed(result)


def _lost(run: TrialSegment, why: Exception, times: str) -> Result:
    status: SegmentStatus = "out_of_memory" if isinstance(why, MachineError) else "lost"
    return Result(run=run, status=status, error=f"{why} ({times})")


def _late(run: TrialSegment, minutes: float) -> Result:
    return Result(run=run, status="timed_out", error=f"it took more than search.trial_minutes {minutes:g}")
