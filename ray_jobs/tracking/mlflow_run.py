"""A run in MLflow, found again by its tag `kitae.run`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ray_jobs.spec import MlflowSection
from ray_jobs.tracking.tracker import End, Point, Run

if TYPE_CHECKING:
    from mlflow import entities
    from mlflow.tracking import MlflowClient

JOB_TAG, RUN_TAG = "kitae.job_id", "kitae.run"
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_MOST_METRICS = 1000
"""MLflow's limit for one `log_batch`."""
_MOST_CHARACTERS = 500
"""Shortest limit of a parameter's value among MLflow's stores."""


def connect(tracking_uri: str) -> MlflowClient:
    """A client that gives up on a server after seconds instead of minutes, and sends no telemetry."""
    set_environment()
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri)


def set_environment() -> None:
    """Set defaults of MLflow's variables; those of the environment win. Call before mlflow is imported."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def experiment_id(client: MlflowClient, name: str) -> str:
    """Id of the experiment, which is created if it does not exist. Raises MlflowException."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:  # another job has created it since
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def find_run(client: MlflowClient, experiment: str, name: str) -> entities.Run | None:
    """The run whose tag `kitae.run` has this value; `experiment` is an id."""
    found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{name}'", order_by=["attributes.start_time ASC"])
    return found[0] if found else None


class MlflowRun:
    """One run."""

    name = "MLflow"

    def __init__(self, section: MlflowSection, model: str, run: Run) -> None:
        self._section, self._run = section, run
        self._experiment = section.experiment or model
        self._client: MlflowClient | None = None
        self._run_id = ""

    def open(self, began_at_step: int) -> int:
        client = connect(self._section.tracking_uri)
        experiment = experiment_id(client, self._experiment)
        run = find_run(client, experiment, self._run.id)
        last_step = 0
        if run is None:
            tags = {JOB_TAG: self._run.job_id, RUN_TAG: self._run.id}
            run = client.create_run(experiment, run_name=self._run.title, tags=tags)
        else:
            history = client.get_metric_history(run.info.run_id, "loss")
            last_step = max((metric.step for metric in history), default=0)
            client.update_run(run.info.run_id, status="RUNNING")
        self._client, self._run_id = client, run.info.run_id
        if not run.data.params:
            self._log_params()
        return last_step

    def write(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        assert self._client is not None
        metrics = [
            Metric(name, value, point.at_ms, point.step) for point in points for name, value in point.values.items()
        ]
        for start in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _MOST_METRICS])

    def flush(self) -> None:
        """Nothing waits: every write is a request."""

    def close(self, end: End | None) -> None:
        if self._client is not None and end is not None:
            self._client.set_terminated(self._run_id, _STATUS[end])

    def _log_params(self) -> None:
        from mlflow.entities import Param

        assert self._client is not None
        params = [Param(name, str(value)[:_MOST_CHARACTERS]) for name, value in self._run.params.items()]
        self._client.log_batch(self._run_id, params=params)
