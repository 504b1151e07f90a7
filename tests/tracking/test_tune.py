"""Ray Tune's callback for a search: a run a trial in every tracker, and nothing twice after a resumption."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.tracking import files, job_run
from ray_jobs.tracking.job_run import Writer
from ray_jobs.tracking.tracker import End, Point, Run
from ray_jobs.tracking.tune import TrialRuns, TrialTrackers, tune_callbacks
from tests.builders import make_spec
from tests.conftest import StoreServer
from tests.tracking import readers

JOB = "greeter-1234567890"


@pytest.fixture(scope="module")
def ray_here(store_server: StoreServer) -> Iterator[None]:
    """A small Ray cluster of this module's own, whose processes reach the store."""
    import ray

    environment = {"env_vars": store_server.environment("s3://unused")}
    ray.shutdown()  # other modules of this process may have left theirs
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


def search(spec: JobSpec, store: Workspace, directory: Path, *, until: int) -> list[str]:
    """Run two trials with `until` results each; returns the warnings."""
    from ray import tune

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
            callbacks=tune_callbacks(spec, JOB, store, warn, "d"),
            verbose=0,
        ),
    )
    results = tuner.fit()
    assert results.errors == []
    return warnings


def losses(trial: int, until: int) -> list[tuple[int, Any]]:
    return [(step, pytest.approx(trial + 1.0 / step)) for step in range(1, until + 1)]


class Server:
    """A tracker's server in memory: the steps and the last end of each run."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}
        self.losses: dict[str, list[float]] = {}
        self.ends: dict[str, End | None] = {}
        self.open: set[str] = set()
        self.failures: dict[str, int] = {}
        """Writes of each run that still fail."""
        self.failed = threading.Event()

    def run(self, run: Run) -> ServedRun:
        return ServedRun(self, run.name)


class ServedRun:
    """One run of it."""

    name = "Fake"

    def __init__(self, server: Server, run: str) -> None:
        self._server, self._run = server, run

    def open(self, began_at_step: int) -> int:
        self._server.open.add(self._run)
        return max(self._server.steps.setdefault(self._run, []), default=0)

    def write(self, points: Sequence[Point]) -> None:
        if self._server.failures.get(self._run, 0):
            self._server.failures[self._run] -= 1
            self._server.failed.set()
            raise ConnectionError("503")
        self._server.steps[self._run] += [point.step for point in points]
        self._server.losses.setdefault(self._run, []).extend(point.values["loss"] for point in points)

    def flush(self) -> None:
        pass

    def close(self, end: End | None) -> None:
        self._server.open.discard(self._run)
        self._server.ends[self._run] = end


def trackers_with(server: Server, warnings: list[str]) -> TrialTrackers:
    return TrialTrackers(JOB, "d", [Writer(TrialRuns("Fake", server.run), warnings.append)])


def report(trackers: TrialTrackers, number: int, iteration: int, **fields: Any) -> None:
    result = {"loss": 1.0 / iteration, "training_iteration": iteration, "done": False, "segment": "s"} | fields
    trackers.on_trial_result(iteration, [], trial_of(number), result)


def trial_of(number: int) -> Any:
    return SimpleNamespace(config={"trial": number, "params": {"lora.rank": 4}})


def test_a_paused_trial_has_its_results_and_no_open_run() -> None:
    """Tune reports no end of a trial that a spent budget stops."""
    server, warnings = Server(), list[str]()
    trackers = trackers_with(server, warnings)
    report(trackers, 0, 1)
    report(trackers, 1, 1, status="ok")
    report(trackers, 0, 2)
    trackers.on_experiment_end([])
    assert server.steps == {"trial-0": [1, 2], "trial-1": [1]}
    assert (server.open, set(server.ends.values()), warnings) == (set(), {"finished"}, [])


def test_a_resumed_search_repeats_no_result() -> None:
    server = Server()
    for until in (2, 3):
        trackers = trackers_with(server, [])
        for iteration in range(1, until + 1):
            report(trackers, 0, iteration)
        trackers.on_experiment_end([])
    assert server.steps == {"trial-0": [1, 2, 3]}


def test_a_failed_result_is_not_logged_and_fails_its_run() -> None:
    server = Server()
    trackers = trackers_with(server, [])
    report(trackers, 0, 1)
    report(trackers, 0, 2, status="out_of_memory", loss=1e9)
    report(trackers, 1, 1, status="failed", loss=1e9)
    report(trackers, 2, 1)
    trackers.on_trial_error(1, [], trial_of(2))
    trackers.on_experiment_end([])
    assert server.losses == {"trial-0": [1.0], "trial-2": [1.0]}
    assert server.ends == {"trial-0": "failed", "trial-2": "failed"}


def test_one_error_loses_no_result_and_holds_up_no_other_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_run, "RETRY_EVERY_S", 0.01)
    server, warnings = Server(), list[str]()
    server.failures = {"trial-0": 2, "trial-1": 10**6}
    trackers = trackers_with(server, warnings)
    report(trackers, 0, 1)
    assert server.failed.wait(60)
    report(trackers, 1, 1)
    for iteration in (1, 2):
        report(trackers, 2, iteration)
    report(trackers, 0, 2)
    while server.failures["trial-0"]:
        server.failed.wait(0.01)
    trackers.on_experiment_end([])
    assert server.steps == {"trial-0": [1, 2], "trial-1": [], "trial-2": [1, 2]}
    assert warnings == ["Fake fails, and the job continues without it: ConnectionError: 503"]


def test_a_server_that_hangs_holds_up_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()

    class Hanging(ServedRun):
        def open(self, began_at_step: int) -> int:
            answers.wait()
            return 0

    monkeypatch.setattr(job_run, "CLOSE_S", 0.01)
    warnings: list[str] = []
    runs = TrialRuns("Fake", lambda run: Hanging(Server(), run.name))
    trackers = TrialTrackers(JOB, "d", [Writer(runs, warnings.append)])
    for number in range(9):
        report(trackers, number, 1)
    trackers.on_experiment_end([])
    answers.set()
    assert [text.split(": ")[1] for text in warnings] == ["TimeoutError"]


def test_a_missing_package_ends_no_search(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    warnings: list[str] = []
    spec = make_spec(tracking={"tensorboard": False, "wandb": {"project": "p", "mode": "offline"}})
    (trackers,) = tune_callbacks(spec, JOB, store, warnings.append, "d")
    assert isinstance(trackers, TrialTrackers)
    report(trackers, 0, 1)
    trackers.on_experiment_end([])
    assert [text.split(": ")[1] for text in warnings] == ["ModuleNotFoundError"]


def test_event_files_of_trials_hold_each_result_once(store: Workspace, tmp_path: Path) -> None:
    for until in (2, 3):
        (trackers,) = tune_callbacks(make_spec(), JOB, store, print, "d")
        assert isinstance(trackers, TrialTrackers)
        for iteration in range(1, until + 1):
            report(trackers, 0, iteration)
        assert pickle.loads(pickle.dumps(trackers)).__dict__ == {}
        trackers.on_experiment_end([])
    (finals,) = tune_callbacks(make_spec(), JOB, store, print, "d")
    assert isinstance(finals, TrialTrackers)
    report(finals, 0, 3)  # a finalist reports its last rung again
    finals.on_experiment_end([])
    files.download(store, JOB, tmp_path)
    events = readers.events(tmp_path / "tensorboard/trial-0-d")
    assert events["loss"] == losses(0, 3)


@pytest.mark.heavy
def test_each_trial_is_a_run_and_a_resumed_search_writes_what_is_new(
    ray_here: None, store: Workspace, tmp_path: Path
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
    assert set(runs) == {f"{JOB}-trial-0", f"{JOB}-trial-1"}
    assert set(offline) == {f"{JOB}-trial-0-d", f"{JOB}-trial-1-d"}
    for trial in (0, 1):
        name = f"{JOB}-trial-{trial}"
        run, metrics = runs[name]
        assert run.info.status == "FINISHED"
        assert run.data.params == {"learning_rate": "0.001", "lora.rank": "4"}
        assert run.data.tags["kitae.job_id"] == JOB
        assert metrics["loss"] == losses(trial, 3)
        assert metrics["steps"] == [(1, 10.0), (2, 20.0), (3, 30.0)]
        assert offline[f"{name}-d"]["loss"] == losses(trial, 3)
        events = readers.events(target / "tensorboard" / f"trial-{trial}-d")
        assert events["loss"] == losses(trial, 3)


@pytest.mark.heavy
def test_trackers_that_fail_end_no_search(
    ray_here: None, store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracking = {"mlflow": {"tracking_uri": "http://127.0.0.1:9"}, "wandb": {"project": "p"}}
    warnings = search(make_spec(tracking=tracking), store, tmp_path, until=2)
    assert sorted(text.split(" fails")[0] for text in warnings) == ["MLflow", "W&B"]
    target = tmp_path / "fetched"
    files.download(store, JOB, target)
    assert readers.events(target / "tensorboard/trial-1-d")["loss"] == losses(1, 2)
