"""Ray Tune's logger callbacks for a search: a run for each trial, in one group for the job.

The callbacks are Ray's own. Added here: the runs' names (`{job id}-trial-{n}`), the store, and two properties that a
search needs. A resumed search replays its trials from committed results, so a result that the run holds already is left
out. An error of a tracker is one warning and ends nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
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

_UPLOAD_S = 60.0
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


class _TrialRuns(LoggerCallback):
    """Stands before one of Ray's callbacks: leaves out what a run holds, and turns errors into one warning."""

    tracker: str

    def keep(self, job_id: str, store: Store, warn: Warn) -> None:
        """Set what `__init__` of Ray's callbacks does not take."""
        self.job_id, self.store, self.warn = job_id, store, warn
        self._held: dict[Trial, int] = {}
        """Last iteration that each trial's run holds."""
        self._lost: set[Trial] = set()
        """Trials whose run failed; the tracker gets no more of them."""
        self._failures = 0

    def run_of(self, trial: Trial) -> str:
        """Name of a trial's run within the job."""
        return files.trial_run(trial.config["trial"])

    def begin(self, trial: Trial) -> int:
        """Find or create the run of a trial. Returns the last iteration that it holds."""
        super().log_trial_start(trial)
        held = files.last_step(self.store, self.job_id, self.run_of(trial), self.tracker)
        return max(held, self._held.get(trial, 0))  # Tune starts a paused trial again

    def wrote(self, trial: Trial, iteration: int) -> None:
        """Called after a result was written."""

    def ended(self, trial: Trial) -> None:
        """Called after a trial's end was written."""

    def setup(self, *arguments: Any, **info: Any) -> None:
        self._try(None, lambda: super(_TrialRuns, self).setup(*arguments, **info))

    def log_trial_start(self, trial: Trial) -> None:
        def start() -> None:
            self._held[trial] = self.begin(trial)

        self._try(trial, start)

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        reached = int(result[TRAINING_ITERATION])
        if reached <= self._held.get(trial, 0):
            return

        def write() -> None:
            metrics = {
                name: value for name, value in result.items() if isinstance(value, Real) and name not in _BOOKKEEPING
            }
            super(_TrialRuns, self).log_trial_result(iteration, trial, metrics)
            self._held[trial] = reached
            self.wrote(trial, reached)

        self._try(trial, write)

    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        def end() -> None:
            super(_TrialRuns, self).log_trial_end(trial, failed)
            self.ended(trial)

        if trial in self._held:
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
        directory = Path(trial.local_path)
        files.upload(self.store, directory, "events.out.*", self.job_id, "tensorboard", self.run_of(trial))


class MlflowTrials(_TrialRuns, ray_mlflow.MLflowLoggerCallback):
    """A run of each trial, found again by its tag."""

    tracker = "MLflow"

    def __init__(self, job_id: str, store: Store, warn: Warn, section: MlflowSection, model: str) -> None:
        set_environment()
        super().__init__(section.tracking_uri, experiment_name=section.experiment or model)
        self.keep(job_id, store, warn)

    def begin(self, trial: Trial) -> int:
        util, name = self.mlflow_util, f"{self.job_id}-{self.run_of(trial)}"
        client = util._get_client()
        found = find_run(client, util.experiment_id, name)
        if found is not None:
            self._trial_runs[trial] = found.info.run_id
            client.update_run(found.info.run_id, status="RUNNING")
            return int(found.data.metrics.get(TRAINING_ITERATION, 0))
        run = util.start_run(run_name=name, tags={JOB_TAG: self.job_id, RUN_TAG: name})
        self._trial_runs[trial] = run.info.run_id
        util.log_params(dict(trial.config["params"]), run_id=run.info.run_id)
        return 0


class WandbTrials(_TrialRuns, ray_wandb.WandbLoggerCallback):
    """A run of each trial, written by Ray's actor for it. W&B itself leaves out the iterations that a run holds."""

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
        arguments |= init_arguments(self.section, name, Path(trial.local_path)) | {"name": name}
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
        super().run()
        store, job_id, run = self._target
        part = f"{run}/{secrets.token_hex(4)}"
        files.upload(store, Path(self._logdir) / "wandb", "offline-run-*/*.wandb", job_id, "wandb", part)
        files.write_last_step(store, job_id, run, WandbTrials.tracker, self._reached)

    def _handle_result(self, result: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        self._reached = max(self._reached, int(result[TRAINING_ITERATION]))
        return super()._handle_result(result)
