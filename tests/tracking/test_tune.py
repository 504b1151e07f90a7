"""Ray Tune's callbacks for a search: a run a trial in every tracker, and nothing twice after a resumption."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store
from ray_jobs.tracking import files
from tests.builders import make_spec
from tests.conftest import StoreServer
from tests.tracking import readers

JOB = "greeter-1234567890"


@pytest.fixture(scope="module")
def ray_here(store_server: StoreServer) -> Iterator[None]:
    """A small Ray cluster of this module's own, whose processes reach the store."""
    import ray

    environment = {"env_vars": store_server.environment("s3://unused")}
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False,
        runtime_env=environment,
    )  # fmt: skip
    yield
    ray.shutdown()


def train_trial(config: dict[str, Any]) -> None:
    """A trial that replays its committed results: always from the first one."""
    from ray import tune

    for step in range(1, config["until"] + 1):
        tune.report({"loss": config["trial"] + 1.0 / step, "tokens_per_s": 9.0, "steps": 10 * step, "losses": [1.0]})


def search(spec: JobSpec, store: Store, directory: Path, *, until: int) -> list[str]:
    """Run two trials with `until` results each; returns the warnings."""
    from ray import tune

    from ray_jobs.tracking.tune import tune_callbacks

    warnings: list[str] = []
    lock = threading.Lock()  # a job's too: the callbacks must not be pickled

    def warn(text: str) -> None:
        with lock:
            warnings.append(text)

    space = {"trial": tune.grid_search([0, 1]), "until": until, "params": {"learning_rate": 1e-3, "lora.rank": 4}}
    tuner = tune.Tuner(
        tune.with_resources(train_trial, {"CPU": 1}),
        param_space=space,
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(directory),
            callbacks=tune_callbacks(spec, JOB, store, warn),
            verbose=0,
        ),
    )
    results = tuner.fit()
    assert results.errors == []
    return warnings


def losses(trial: int, until: int) -> list[tuple[int, Any]]:
    return [(step, pytest.approx(trial + 1.0 / step)) for step in range(1, until + 1)]


@pytest.mark.heavy
def test_each_trial_is_a_run_and_a_resumed_search_writes_what_is_new(
    ray_here: None, store: Store, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = {"mlflow": {"tracking_uri": uri}, "wandb": {"project": "p", "mode": "offline", "tags": ["t"]}}
    spec = make_spec(tracking=tracking)
    assert search(spec, store, tmp_path / "first", until=2) == []
    assert search(spec, store, tmp_path / "second", until=3) == []
    assert search(spec, store, tmp_path / "third", until=3) == []

    target = tmp_path / "fetched"
    files.download(store, JOB, target)
    runs, offline = readers.mlflow_runs(uri, "greeter"), readers.offline_runs(target / "wandb")
    assert set(runs) == set(offline) == {f"{JOB}-trial-0", f"{JOB}-trial-1"}
    for trial in (0, 1):
        name = f"{JOB}-trial-{trial}"
        run, metrics = runs[name]
        assert run.info.status == "FINISHED"
        assert run.data.params == {"learning_rate": "0.001", "lora.rank": "4"}
        assert run.data.tags["kitae.job_id"] == JOB
        assert metrics["loss"] == losses(trial, 3)
        assert metrics["steps"] == [(1, 10.0), (2, 20.0), (3, 30.0)]
        assert offline[name]["loss"] == losses(trial, 3)
        events = readers.events(target / "tensorboard" / f"trial-{trial}")
        assert events["ray/tune/loss"] == losses(trial, 3)


@pytest.mark.heavy
def test_trackers_that_fail_end_no_search(
    ray_here: None, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracking = {"mlflow": {"tracking_uri": "http://127.0.0.1:9"}, "wandb": {"project": "p"}}
    warnings = search(make_spec(tracking=tracking), store, tmp_path, until=2)
    assert [text.split(" fails")[0] for text in warnings] == ["MLflow", "W&B"]
    target = tmp_path / "fetched"
    files.download(store, JOB, target)
    assert readers.events(target / "tensorboard/trial-1")["ray/tune/loss"] == losses(1, 2)
