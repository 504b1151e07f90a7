"""A training's runs in TensorBoard, MLflow and W&B: what they hold, after restarts, and when a tracker fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import jobs
from ray_jobs.errors import JobCancelled, JobPaused, JobSuperseded, MachineError
from ray_jobs.jobs import Job
from ray_jobs.spec import JobSpec, WandbSection
from ray_jobs.storage import Workspace
from ray_jobs.tracking import event_files, files, job_run, mlflow_run, wandb_run
from ray_jobs.tracking.job_run import Record, end_of, params_of, reason, track
from ray_jobs.tracking.packages import require_packages
from ray_jobs.tracking.tracker import End, Point, Run
from tests.builders import make_spec
from tests.tracking import readers

EVERY = {"loss", "learning_rate", "tokens_per_s"}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes long to import the trackers' packages."""
    monkeypatch.setattr(job_run, "CLOSE_S", 600.0)


def spec_with(tmp_path: Path) -> JobSpec:
    """A job with every tracker, none of which needs a server."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    return make_spec(
        "greeter",
        tracking={"mlflow": {"tracking_uri": uri}, "wandb": {"project": "p", "mode": "offline"}},
        training={"learning_rate": 1e-3, "lora": {"rank": 4}},
    )


def report(record: Record, steps: Sequence[int], *, began_at_step: int = 0, evaluated: Sequence[int] = ()) -> None:
    for step in steps:
        metrics: dict[str, float | str] = {
            "loss": 1.0 / step, "learning_rate": 1e-3, "tokens_per_s": 50.0, "began_at_step": began_at_step,
        }  # fmt: skip
        if step in evaluated:
            metrics |= {"held_out_loss": 2.0 / step, "held_out_accuracy": 0.5}
        record(step, metrics)


def end_by(error: BaseException, job: Job, spec: JobSpec, *reports: Callable[[Record], None]) -> None:
    """Track a training that reports these steps and ends by this error."""

    def train() -> None:
        with track(job, spec, spec.tracking, "d") as record:
            for each in reports:
                each(record)
            raise error

    with pytest.raises(type(error)):
        train()


def warnings_of(job: Job) -> list[str]:
    return [event.message for _, event in jobs.events(job.store, job.id) if event.level == "warning"]


def stored(store: Workspace, job_id: str, tmp_path: Path) -> tuple[readers.Series, dict[str, readers.Series]]:
    """The event files and the offline runs in the store."""
    target = tmp_path / "fetched"
    files.download(store, job_id, target)
    return readers.events(target / "tensorboard"), readers.offline_runs(target / "wandb")


def losses(steps: Sequence[int]) -> list[tuple[int, Any]]:
    return [(step, pytest.approx(1.0 / step)) for step in steps]


def test_a_training_and_its_resumption_are_one_run_that_repeats_no_step(store: Workspace, tmp_path: Path) -> None:
    spec = spec_with(tmp_path)
    job = jobs.start_attempt(store, spec)
    end_by(
        RuntimeError("killed"),
        job,
        spec,
        lambda record: report(record, [1, 2, 3, 4], evaluated=[4]),
        lambda record: report(record, [3, 4, 5], began_at_step=2),  # restarted workers
    )
    uri = str(spec.tracking.mlflow and spec.tracking.mlflow.tracking_uri)
    ((run, _),) = readers.mlflow_runs(uri, "greeter").values()
    assert run.info.status == "FAILED"

    job = jobs.start_attempt(store, spec)
    with track(job, spec, spec.tracking, "d") as record:
        report(record, [3, 4, 5, 6, 7], began_at_step=2, evaluated=[4, 7])
    assert warnings_of(job) == []

    runs = readers.mlflow_runs(uri, "greeter")
    run, metrics = runs[job.id]
    assert list(runs) == [job.id]
    assert run.info.status == "FINISHED"
    assert (run.data.tags["kitae.job_id"], run.data.params["lora.rank"]) == (job.id, "4")
    assert run.data.params == {name: str(value) for name, value in params_of(spec).items()}
    events, offline = stored(store, job.id, tmp_path)
    assert list(offline) == [f"{job.id}-training-d"]
    for series in (events, metrics, offline[f"{job.id}-training-d"]):
        assert set(series) == {*EVERY, "held_out_loss", "held_out_accuracy"}
        assert series["loss"] == losses(range(1, 8))
        assert series["held_out_loss"] == [(4, 0.5), (7, pytest.approx(2 / 7))]


def test_event_files_of_an_attempt_replace_the_steps_that_it_repeats(store: Workspace, tmp_path: Path) -> None:
    """Also if its training differs, so that the last loss is the record's."""
    spec = make_spec()
    for losses_of in ({1: 3.0, 2: 2.0, 3: 9.0}, {3: 1.0}):
        job = jobs.start_attempt(store, spec)
        with track(job, spec, spec.tracking, "d") as record:
            for step, loss in losses_of.items():
                record(step, {"loss": loss, "began_at_step": 0 if len(losses_of) == 3 else 2})
    events, _ = stored(store, job.id, tmp_path)
    assert events["loss"] == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_a_resumption_without_a_step_left_ends_the_run(store: Workspace, tmp_path: Path) -> None:
    spec = spec_with(tmp_path)
    job = jobs.start_attempt(store, spec)
    end_by(JobPaused("paused"), job, spec, lambda record: report(record, [1, 2], evaluated=[2]))
    uri = str(spec.tracking.mlflow and spec.tracking.mlflow.tracking_uri)
    assert readers.mlflow_runs(uri, "greeter")[job.id][0].info.status == "KILLED"
    with track(jobs.start_attempt(store, spec), spec, spec.tracking, "d"):
        pass
    assert readers.mlflow_runs(uri, "greeter")[job.id][0].info.status == "FINISHED"
    assert stored(store, job.id, tmp_path)[0]["loss"] == losses([1, 2])


def test_a_training_of_other_rows_is_another_run(store: Workspace, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    spec = make_spec("greeter", tracking={"mlflow": {"tracking_uri": uri, "experiment": "e"}})
    for digest, step in (("d", 5), ("e", 3)):
        job = jobs.start_attempt(store, spec)
        with track(job, spec, spec.tracking, digest) as record:
            report(record, range(1, step + 1))
    client = mlflow_run.connect(uri)
    found = mlflow_run.find_run(client, mlflow_run.experiment_id(client, "e"), f"{job.id}-training-e")
    assert found is not None
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "loss")] == [1, 2, 3]
    target = tmp_path / "fetched"
    files.download(store, job.id, target)
    for digest, step in (("d", 5), ("e", 3)):
        assert readers.events(target / f"tensorboard/training-{digest}")["loss"] == losses(range(1, step + 1))


def test_an_event_file_ends_at_its_size_and_is_sent_no_more(
    store: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(event_files, "FILE_BYTES", 1)
    run = event_files.EventFiles(store, Run("j", files.TRAINING, "d", "j"))
    run.open(0)
    for step in (1, 2):
        run.write([Point(step, 0, {"loss": 1.0 / step})])
        run.flush()
    run.close("finished")
    assert len(list(store.list("jobs/j/tensorboard/"))) == 2
    files.download(store, "j", tmp_path)
    assert readers.events(tmp_path)["loss"] == losses([1, 2])


def test_files_are_in_the_store_before_the_training_ends(store: Workspace, tmp_path: Path) -> None:
    spec = make_spec()
    job = jobs.start_attempt(store, spec)
    seen = threading.Event()

    class Watched(Workspace):
        def put(self, key: str, *arguments: Any, **options: Any) -> str:
            etag = super().put(key, *arguments, **options)
            if "/tensorboard/" in key:
                seen.set()
            return etag

    job.store.__class__ = Watched
    with track(job, spec, spec.tracking, "d") as record:
        report(record, [1, 2], evaluated=[2])
        assert seen.wait(60)
    assert stored(store, job.id, tmp_path)[0]["loss"] == losses([1, 2])


def test_an_offline_run_is_in_the_store_before_the_training_ends(
    store: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In files that are complete: what a killed job has lost is written again from its checkpoint."""
    monkeypatch.setattr(wandb_run, "PART_S", 0.0)
    section, of = WandbSection(project="p", mode="offline"), Run("j", files.TRAINING, "d", "j")
    run = wandb_run.WandbRun(section, store, of)
    assert run.open(0) == 0
    for steps in ([1, 2], [3]):
        run.write([Point(step, 0, {"loss": 1.0 / step}) for step in steps])
        run.flush()
    run.write([Point(4, 0, {"loss": 0.25})])  # killed here
    files.download(store, "j", tmp_path)
    assert readers.offline_runs(tmp_path)[of.id]["loss"] == losses([1, 2, 3])
    assert wandb_run.WandbRun(section, store, of).open(2) == 3
    assert wandb_run.WandbRun(section, store, replace(of, digest="e")).open(0) == 0
    run.close("stopped")


def test_tracking_can_be_off(store: Workspace) -> None:
    spec = make_spec(tracking={"tensorboard": False})
    job = jobs.start_attempt(store, spec)
    with track(job, spec, spec.tracking, "d") as record:
        report(record, [1], evaluated=[1])
    assert list(store.list(f"jobs/{job.id}/tensorboard/")) == []


class Broken:
    """A tracker whose method `at` fails the first `times` times."""

    name = "Broken"

    def __init__(self, at: str, times: int) -> None:
        self.at, self.times = at, times
        self.steps: list[int] = []
        self.end: End | None = None
        self.failed = threading.Event()

    def _call(self, name: str) -> None:
        if name == self.at and self.times > 0:
            self.times -= 1
            self.failed.set()
            raise ConnectionError("401: key sesame-12345 is wrong\nbody")

    def open(self, began_at_step: int) -> int:
        self._call("open")
        return 0

    def write(self, points: Sequence[Point]) -> None:
        self._call("write")
        self.steps += [point.step for point in points]

    def flush(self) -> None:
        self._call("flush")

    def close(self, end: End | None) -> None:
        self._call("close")
        self.end = end


@pytest.mark.parametrize("at", ["open", "write", "flush", "close"])
@pytest.mark.parametrize("times", [1, 99])
def test_a_tracker_that_fails_is_one_warning_and_ends_nothing(
    store: Workspace, monkeypatch: pytest.MonkeyPatch, at: str, times: int
) -> None:
    tracker = Broken(at, times)
    monkeypatch.setattr(job_run, "trackers_of", lambda *_: {"Broken": lambda _: tracker})
    monkeypatch.setattr(job_run, "RETRY_EVERY_S", 0.01)
    monkeypatch.setenv("WANDB_API_KEY", "sesame-12345")
    spec = make_spec()
    job = jobs.start_attempt(store, spec)
    with track(job, spec, spec.tracking, "d") as record:
        report(record, [1, 2], evaluated=[2])
        if at != "close":
            assert tracker.failed.wait(60)
        report(record, [3, 4], evaluated=[4])
    (warning,) = warnings_of(job)
    assert warning == "Broken fails, and the job continues without it: ConnectionError: 401: key *** is wrong"
    if times == 1 and at != "close":
        assert tracker.steps == [1, 2, 3, 4]
        assert tracker.end == "finished"


def test_a_tracker_that_does_not_answer_holds_up_no_job(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()

    class Silent(Broken):
        def open(self, began_at_step: int) -> int:
            answers.wait()
            return 0

    monkeypatch.setattr(job_run, "trackers_of", lambda *_: {"Silent": lambda _: Silent("", 0)})
    monkeypatch.setattr(job_run, "CLOSE_S", 0.01)
    spec = make_spec()
    job = jobs.start_attempt(store, spec)
    with track(job, spec, spec.tracking, "d") as record:
        report(record, [1, 2], evaluated=[2])
    answers.set()
    (warning,) = warnings_of(job)
    assert warning.endswith("TimeoutError: it was not done 0.01 s after the end")


def test_a_server_that_is_away_and_a_missing_key_are_warnings(
    store: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = {"tracking_uri": "http://127.0.0.1:9", "experiment": "e"}
    spec = make_spec(tracking={"mlflow": server, "wandb": {"project": "p"}})
    job = jobs.start_attempt(store, spec)
    with track(job, spec, spec.tracking, "d") as record:
        report(record, [1, 2], evaluated=[2])
    mlflow, wandb = sorted(warnings_of(job))
    assert mlflow.startswith("MLflow fails, and the job continues without it: MlflowException")
    assert wandb.endswith("MachineError: WANDB_API_KEY is not set where the job runs")
    assert stored(store, job.id, tmp_path)[0]["loss"] == losses([1, 2])


def test_how_a_job_ends_its_run() -> None:
    stops = (JobPaused, JobCancelled, KeyboardInterrupt, SystemExit)
    assert [end_of(error("x")) for error in stops] == ["stopped"] * len(stops)
    assert [end_of(error("x")) for error in (RuntimeError, JobSuperseded)] == ["failed", None]


def test_a_reason_is_one_line_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    assert reason(ValueError("bad t0ken\nsecond line")) == "ValueError: bad ***"
    assert reason(ValueError()) == "ValueError"


def test_a_missing_package_is_an_error_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = make_spec(tracking={"mlflow": {"tracking_uri": "sqlite://"}, "wandb": {"project": "p"}}).tracking
    require_packages(tracking)
    monkeypatch.setattr("ray_jobs.tracking.packages.find_spec", lambda name: None if name == "wandb" else True)
    with pytest.raises(MachineError, match=r"make setup[^\0]*tracking\.wandb: the package wandb is missing") as caught:
        require_packages(tracking)
    assert len(caught.value.details) == 1
    require_packages(make_spec().tracking)
