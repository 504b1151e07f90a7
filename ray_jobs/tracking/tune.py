"""Ray Tune's logger callbacks for a search: a run for each trial, in one group for the job.

The callbacks are Ray's own. Added here: the runs' names (`{job id}-trial-{n}`), the store, and two properties that a
search needs. A resumed search replays its trials from committed results, so a result that the run holds already is left
out. An error of a tracker is one warning and ends nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.air.constants import TRAINING_ITERATION
from ray.air.integrations import mlflow as ray_mlflow
from ray.air.integrations import wandb as ray_wandb
from ray.tune.logger import LoggerCallback, TBXLoggerCallback

from ray_jobs.spec import JobSpec, MlflowSection, WandbSection
from ray_jobs.storage import Store
from ray_jobs.tracking import files
from ray_jobs.tracking.event_files import EventWriter
from ray_jobs.tracking.job_run import reason
from ray_jobs.tracking.mlflow_run import JOB_TAG, RUN_TAG, find_run, set_environment
from ray_jobs.tracking.wandb_run import init_arguments

if TYPE_CHECKING:
    from ray.tune import Callback
    from ray.tune.experiment import Trial

_UPLOAD_S = 60
"""Longest time that the end of a search waits for W&B's uploads; Ray's default is half an hour."""
_MOST_FAILURES = 3
"""Trials that may lose a tracker before it is left out of the search: each try may block the search for a minute."""
_BOOKKEEPING = frozenset(
    {"pid", "timestamp", "done", "time_this_iter_s", "time_since_restore", "iterations_since_restore"}
)
"""Numbers of a result that are Tune's own and no metrics."""

Warn = Callable[[str], None]
"""Writes a warning into the job's events."""


def tune_callbacks(spec: JobSpec, job_id: str, store: Store, warn: Warn) -> list[Callback]:
    """Callbacks of `spec.tracking` for `ray.tune.RunConfig`.

    A trial's config is `{"trial": n, "params": {…}}`; each result has `training_iteration`. Set
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS=1 if `tensorboard` is off, or Tune adds its own event files.
    """
    tracking = spec.tracking
    found: list[Callback] = []
    if tracking.tensorboard:
        found.append(TensorboardTrials(job_id, store, warn))
    if tracking.mlflow is not None:
        found.append(MlflowTrials(job_id, store, warn, tracking.mlflow, spec.name))
    if tracking.wandb is not None:
        found.append(WandbTrials(job_id, store, warn, tracking.wandb))
    return found


def _ignore(_: str) -> None:
    """Stands for `warn` in stored callbacks."""


def _directory(trial: Trial) -> Path:
    """Where Tune keeps a trial's files on this machine."""
    assert trial.local_path is not None
    return Path(trial.local_path)


class _TrialRuns(LoggerCallback):
    """Stands before one of Ray's callbacks: leaves out what a run holds, and turns errors into one warning."""

    tracker: str

    def keep(self, job_id: str, store: Store, warn: Warn) -> None:
        """Set what `__init__` of Ray's callbacks does not take."""
        self.job_id, self.store, self.warn = job_id, store, warn
        self._held: dict[Trial, int] = {}
        """Last iteration that each trial's run holds."""
        self._started: set[Trial] = set()
        """Trials whose run is open."""
        self._lost: set[Trial] = set()
        """Trials whose run failed; the tracker gets no more of them."""
        self._failures = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the job: Tune stores the callbacks beside its state, and runs the ones that it was given."""
        return {**self.__dict__, "warn": _ignore}

    def run_of(self, trial: Trial) -> str:
        """Name of a trial's run within the job."""
        return files.trial_run(trial.config)

    def held(self, trial: Trial) -> int:
        """Last iteration that the run of a trial holds; 0 for a new one."""
        return files.last_step(self.store, self.job_id, self.run_of(trial), self.tracker)

    def start(self, trial: Trial) -> None:
        """Create or continue the run of a trial, before its first new result."""
        super().log_trial_start(trial)

    def wrote(self, trial: Trial, iteration: int) -> None:
        """Called after a result was written."""

    def ended(self, trial: Trial) -> None:
        """Called after a trial's end was written."""

    def setup(self, *arguments: Any, **info: Any) -> None:
        self._try(None, lambda: super(_TrialRuns, self).setup(*arguments, **info))

    def log_trial_start(self, trial: Trial) -> None:
        def look_up() -> None:  # Tune starts a paused trial again
            self._held[trial] = max(self.held(trial), self._held.get(trial, 0))

        self._try(trial, look_up)

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        reached = int(result[TRAINING_ITERATION])
        if reached <= self._held.get(trial, 0):
            return

        def write() -> None:
            metrics = {
                name: value for name, value in result.items() if isinstance(value, Real) and name not in _BOOKKEEPING
            }
            if trial not in self._started:
                self.start(trial)
                self._started.add(trial)
            super(_TrialRuns, self).log_trial_result(iteration, trial, metrics)
            self._held[trial] = reached
            self.wrote(trial, reached)

        self._try(trial, write)

    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        def end() -> None:
            super(_TrialRuns, self).log_trial_end(trial, failed)
            self.ended(trial)

        if trial in self._started:
            self._started.discard(trial)
            self._try(trial, end)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self._try(None, lambda: super(_TrialRuns, self).on_experiment_end(trials, **info))

    def failed(self, error: BaseException) -> None:
        """Warn at the first error."""
        self._failures += 1
        if self._failures == 1:
            self.warn(f"{self.tracker} fails, and the search continues without it: {reason(error)}")

    def _try(self, trial: Trial | None, call: Callable[[], None]) -> None:
        if trial in self._lost or self._failures >= _MOST_FAILURES:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001  # of someone else's server or package: it must not end the search
            self.failed(error)
            if trial is None:
                self._failures = _MOST_FAILURES
            else:
                self._lost.add(trial)


class _TrialWriter(EventWriter):
    """The part of tensorboardX's SummaryWriter that Ray's callback uses for numbers."""

    def __init__(self, directory: str, flush_secs: int) -> None:
        # The names of two attempts' files must differ, even within a second.
        super().__init__(directory, suffix=f".{secrets.token_hex(4)}")
        self.file_writer = self


class TensorboardTrials(_TrialRuns, TBXLoggerCallback):
    """Event files of each trial, in the store."""

    tracker = "TensorBoard"

    def __init__(self, job_id: str, store: Store, warn: Warn) -> None:
        super().__init__()
        self.keep(job_id, store, warn)
        self._summary_writer_cls = _TrialWriter

    def wrote(self, trial: Trial, iteration: int) -> None:
        self.ended(trial)
        files.write_last_step(self.store, self.job_id, self.run_of(trial), self.tracker, iteration)

    def ended(self, trial: Trial) -> None:
        directory = _directory(trial)
        files.upload(self.store, directory, "events.out.*", self.job_id, "tensorboard", self.run_of(trial))


class MlflowTrials(_TrialRuns, ray_mlflow.MLflowLoggerCallback):
    """A run of each trial, found again by its tag."""

    tracker = "MLflow"

    def __init__(self, job_id: str, store: Store, warn: Warn, section: MlflowSection, model: str) -> None:
        set_environment()
        super().__init__(section.tracking_uri, experiment_name=section.experiment or model)
        self.keep(job_id, store, warn)

    def held(self, trial: Trial) -> int:
        found = find_run(self.mlflow_util._get_client(), str(self.mlflow_util.experiment_id), self._name(trial))
        if found is None:
            return 0
        self._trial_runs[trial] = found.info.run_id
        return int(found.data.metrics.get(TRAINING_ITERATION, 0))

    def start(self, trial: Trial) -> None:
        util, name = self.mlflow_util, self._name(trial)
        if trial in self._trial_runs:
            util._get_client().update_run(self._trial_runs[trial], status="RUNNING")
            return
        run = util.start_run(run_name=name, tags={JOB_TAG: self.job_id, RUN_TAG: name})
        self._trial_runs[trial] = run.info.run_id
        util.log_params(dict(trial.config["params"]), run_id=run.info.run_id)

    def _name(self, trial: Trial) -> str:
        return f"{self.job_id}-{self.run_of(trial)}"


class WandbTrials(_TrialRuns, ray_wandb.WandbLoggerCallback):
    """A run of each trial, written by Ray's actor for it. Online, W&B itself leaves out the iterations that a run
    holds."""

    tracker = "W&B"

    def __init__(self, job_id: str, store: Store, warn: Warn, section: WandbSection) -> None:
        super().__init__(section.project, group=job_id, upload_timeout=_UPLOAD_S)
        self.keep(job_id, store, warn)
        self.section = section
        if section.mode == "offline":
            self._logger_actor_cls = _OfflineActor

    def setup(self, *arguments: Any, **info: Any) -> None:
        if self.section.mode == "online":  # Ray's set-up asks for a key
            super().setup(*arguments, **info)

    def _start_logging_actor(self, trial: Trial, exclude_results: list[str], **arguments: Any) -> None:
        name = f"{self.job_id}-{self.run_of(trial)}"
        arguments |= init_arguments(self.section, name, _directory(trial)) | {"name": name}
        arguments["config"] = dict(trial.config["params"])
        if self.section.mode == "offline":
            arguments["target"] = (self.store, self.job_id, self.run_of(trial))
        super()._start_logging_actor(trial, exclude_results, **arguments)

    def _cleanup_logging_actor(self, trial: Trial) -> None:
        try:
            ray.get(self._trial_logging_futures[trial], timeout=0)
        except Exception as error:  # noqa: BLE001  # of the actor: W&B's, or that it has not finished in time
            self.failed(error)
        super()._cleanup_logging_actor(trial)


class _OfflineActor(ray_wandb._WandbLoggingActor):
    """Ray's actor, which also copies the run's file into the store once it is complete."""

    def __init__(self, *arguments: Any, target: tuple[Store, str, str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._target, self._reached = target, 0

    def run(self) -> None:
        super().run()  # type: ignore[no-untyped-call]  # Ray is half typed
        self._wandb.teardown()  # as `wandb_run.finish_file`: the file is complete then
        store, job_id, run = self._target
        files.upload_offline_runs(store, Path(self._logdir), job_id, run, WandbTrials.tracker, self._reached)

    def _handle_result(self, result: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        self._reached = max(self._reached, int(result[TRAINING_ITERATION]))
        return super()._handle_result(result)
