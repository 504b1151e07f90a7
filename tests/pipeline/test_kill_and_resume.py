"""Kill and resume: a job whose store, workers, driver or cluster is killed ends with the losses of an undisturbed job.

A real Ray cluster, a real store and the real command line; only the model is tiny. Its encoder has dropout, so that a
random state that is lost or used twice shows in the losses.

Over 400 lines: every test compares with the same undisturbed run.
"""

from __future__ import annotations

import csv
import json
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from ray_jobs import jobs, registry
from ray_jobs.__main__ import cli
from ray_jobs.errors import JobCancelled, JobError, TrainingError
from ray_jobs.spec import DEFAULT_TEAM, JobSpec, parse_spec
from ray_jobs.storage import Store, Workspace
from ray_jobs.training import checkpoint
from ray_jobs.training.inputs import TrainInputs
from ray_jobs.training.trainer import train
from tests.conftest import StoreServer
from tests.models import tiny_models
from tests.pipeline.live_service import PATIENCE_S, Driver, Service, Watched, kill, sender_of, wait_until
from tests.storage.gateway import Hold
from tests.training.harness import on_workers

pytestmark = pytest.mark.heavy

EQUAL = 1e-6
"""Relative; fp32, at the same number of workers."""
STEPS = 80
EVERY = 5
"""Steps from one checkpoint to the next."""


@dataclass(frozen=True)
class JobFile:
    """A job file and its content."""

    path: Path
    spec: JobSpec


@dataclass(frozen=True)
class Undisturbed:
    """The result of the job when nothing is killed."""

    losses: tuple[float, ...]
    metrics: dict[str, float]
    output: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with base models and rows."""
    directory = tmp_path_factory.mktemp("files")
    tiny_models.save_encoder(directory / "encoder")
    still = tiny_models.save_encoder(directory / "encoder-without-dropout")
    config = json.loads((still / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(config))
    rows = tiny_models.label_rows(400)
    for name, part in (("train", rows[:320]), ("held_out", rows[320:360]), ("test", rows[360:])):
        lines = [json.dumps(row, ensure_ascii=False) for row in part]
        (directory / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return directory


def job_file(directory: Path, name: str, *, base: str = "encoder", **sections: dict[str, Any]) -> JobFile:
    """A job of 80 steps of 32 rows, about 0.1 s each; sections are merged into it."""
    document: dict[str, Any] = {
        "name": name,
        "task": "text_classification",
        "base_model": str(directory / base),
        "data": {
            "train": str(directory / "train.jsonl"),
            "held_out": str(directory / "held_out.jsonl"),
            "test": str(directory / "test.jsonl"),
            "max_tokens": 32,
        },
        "training": {
            "method": "full",
            "epochs": 8,
            "batch_size": 32,
            "micro_batch_tokens": 32,  # a row a pass, so that steps take a while
            "learning_rate": 1e-3,
            "precision": "fp32",
            "checkpoint_every_steps": EVERY,
        },
        "compute": {"workers": 2, "threads_per_worker": 1},
        "serving": {"deploy": False},
    }
    for section, values in sections.items():
        document[section] = {**document.get(section, {}), **values}
    path = directory / f"{name}-{abs(hash(repr(document)))}.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return JobFile(path, parse_spec(document))


@pytest.fixture(scope="module")
def job(files: Path) -> JobFile:
    return job_file(files, "tiny")


@pytest.fixture(scope="module")
def undisturbed(
    ray_service: Service, job: JobFile, store_server: StoreServer, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    store = Workspace(
        Store("s3://kitae/undisturbed", store_server.settings(), cache=tmp_path_factory.mktemp("cache")), DEFAULT_TEAM
    )
    driver = ray_service.kitae(store, "run", str(job.path))
    assert driver.wait() == 0, driver.output
    return Undisturbed(*outcome(store, job), driver.output)


def outcome(store: Workspace, job: JobFile) -> tuple[tuple[float, ...], dict[str, float]]:
    """The losses of every step, and the metrics of the registered version."""
    (name,) = registry.names(store)
    (version,) = registry.versions(store, name)
    return Watched(store, job.spec.job_id).committed()[-1].position.losses, dict(version.lineage.metrics)


def same(losses: tuple[float, ...], expected: tuple[float, ...], within: float = EQUAL) -> None:
    """Compare step by step; a row that is skipped or trained twice changes every later loss."""
    assert len(losses) == len(expected)
    worst = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
    assert worst <= within, f"{worst:.1e} apart"


def ended_well(driver: Driver, store: Workspace, job: JobFile, undisturbed: Undisturbed) -> None:
    """Assert that the job has the undisturbed run's losses and metrics, and left no half-written checkpoint."""
    assert driver.wait() == 0, driver.output
    assert "Traceback" not in driver.output
    losses, metrics = outcome(store, job)
    same(losses, undisturbed.losses)
    assert metrics == pytest.approx(undisturbed.metrics, rel=EQUAL)
    watched = Watched(store, job.spec.job_id)
    assert watched.half_written() == []
    assert watched.status() == "succeeded"


def test_the_output_of_a_run_is_readable(undisturbed: Undisturbed) -> None:
    """A line when a stage starts, progress at most every 5 s, the table; nothing of Ray, torch or DeepSpeed."""
    lines = [line for line in undisturbed.output.splitlines() if line]
    stages = ("dataset", "base", "encode", "train", "evaluate", "register")
    end = next(i for i, line in enumerate(lines) if line.startswith("tiny@1"))
    assert all(line.split()[0] in stages for line in lines[:end]), undisturbed.output
    assert [line.split()[0] for line in lines[:end] if line.endswith("started")] == list(stages)
    assert any(f"{STEPS}/{STEPS} steps" in line and "loss" in line and "took" in line for line in lines[:end])
    assert any(line.startswith("evaluate") and "5/5 steps" in line for line in lines[:end])


def test_the_store_workers_and_the_driver_are_killed(
    ray_service: Service, store: Workspace, job: JobFile, undisturbed: Undisturbed
) -> None:
    """Each in the middle of training and of an upload. The job resumes automatically, in the same attempt; after its
    driver is killed, `kitae resume` continues with the first run's spec."""
    watched = Watched(store, job.spec.job_id)
    driver = ray_service.kitae(store, "run", str(job.path))

    watched.wait_for_step(EVERY, driver)
    ray_service.server.kill()
    ray_service.server.start()

    with ray_service.gateway.hold_upload("/state-00001"):
        before = watched.step()
        ray_service.server.kill()
    ray_service.server.start()
    watched.wait_for_step(before + EVERY, driver)

    workers = ray_service.workers()
    assert len(workers) == 2
    kill(workers[0])
    assert watched.step() < STEPS, "the job ended too early: nothing was killed in the middle"
    wait_until(lambda: bool(ray_service.workers()) and workers[1] not in ray_service.workers(), driver, "new workers")

    with ray_service.gateway.hold_upload("/state-00001") as held:
        torn = _half_of(watched, held, driver)
        at = watched.step()
        kill(sender_of(held.client_port, ray_service.workers()))
    assert watched.step() == at < STEPS
    assert torn in watched.half_written()
    watched.wait_for_step(at + EVERY, driver)
    assert "attempt 1" in _events(store, job)[0]
    assert not any("attempt 2" in event for event in _events(store, job))

    with ray_service.gateway.hold_upload("/state-00001"):
        driver.kill()
    assert watched.status() == "running"  # a killed driver writes nothing
    assert at + EVERY <= watched.step() < STEPS
    ended_well(ray_service.kitae(store, "resume", job.spec.job_id), store, job, undisturbed)


def _half_of(watched: Watched, hold: Hold, driver: Driver) -> str:
    """Name of the checkpoint whose upload is held, once another of its files has arrived."""
    name = str(hold.path).split("/")[-2]
    wait_until(lambda: name in watched.half_written(), driver, f"a part of {name}")
    return name


def _reports_the_lost_cluster(driver: Driver, job: JobFile) -> None:
    assert driver.wait() == TrainingError.exit_code
    assert f"the Ray cluster was lost; once it runs again, `kitae resume {job.spec.job_id}`" in driver.last_line
    assert "Traceback" not in driver.output


def _events(store: Workspace, job: JobFile) -> list[str]:
    return [event.message for _, event in jobs.events(store, job.spec.job_id)]


@pytest.mark.usefixtures("store_environment")
def test_a_checkpoint_is_written_on_request_and_another_number_of_workers_resumes(
    ray_service: Service, store: Workspace, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job writes a checkpoint at its end only, except when one is requested: by `kitae notice` before its cluster
    is killed; on one worker by SIGTERM to the driver, as Ray stops a job. It is then cancelled and ends on two."""
    monkeypatch.setenv("KITAE_CACHE", str(files / "cache"))
    training = {"checkpoint_every_steps": None, "eval_every_steps": STEPS}
    job = job_file(files, "noticed", base="encoder-without-dropout", training=training)
    watched = Watched(store, job.spec.job_id)

    driver = ray_service.kitae(store, "run", str(job.path))
    _wait_for_another_step(store, job, driver)
    output = _in_process("notice", job.spec.job_id, "--wait-s", "60")
    ray_service.kill_ray()
    noticed_at = watched.step()
    assert 0 < noticed_at < STEPS
    assert f"checkpoint of step {noticed_at}" in output
    _reports_the_lost_cluster(driver, job)
    assert watched.status() == "running", "the end of the machines does not end the job"
    ray_service.start_ray()

    driver = ray_service.kitae(store, "resume", job.spec.job_id, "--workers", "1", RAY_JOB_STOP_WAIT_TIME_S="100")
    _wait_for_another_step(store, job, driver)
    driver.process.send_signal(signal.SIGTERM)
    assert driver.wait() != 0
    _no_workers(ray_service)  # a worker that sees the pause before its cluster's driver has ended saves once more
    at = watched.step()
    assert noticed_at < at < STEPS
    assert watched.status() == "paused"
    saved = [f"SIGTERM: checkpoint of step {step} committed" for step in range(noticed_at + 1, at + 1)]
    assert any(message.startswith(tuple(saved)) for message in _events(store, job))

    driver = ray_service.kitae(store, "resume", job.spec.job_id, "--workers", "2")
    wait_until(lambda: bool(ray_service.workers()), driver, "the training processes")
    _cancelled(watched, driver, ray_service)
    cancelled_at = watched.step()
    assert at <= cancelled_at < STEPS
    assert jobs.load(store, job.spec.job_id).paused_at is None

    driver = ray_service.kitae(store, "run", str(job.path))
    assert driver.wait() == 0, driver.output
    losses, _ = outcome(store, job)
    same(losses, alone(store, job), within=1e-4)
    assert watched.half_written() == []
    record = jobs.load(store, job.spec.job_id)
    assert (record.status, record.attempt) == ("succeeded", 4)
    events = [event for _, event in jobs.events(store, job.spec.job_id)]
    assert [event.data["from_step"] for event in events if "from_step" in event.data] == [noticed_at, at, cancelled_at]


def _no_workers(service: Service) -> None:
    """Wait until the training processes are gone."""
    deadline = time.monotonic() + PATIENCE_S
    while service.workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert service.workers() == []


def _cancelled(watched: Watched, driver: Driver, service: Service) -> None:
    """Cancel a job that has training processes: it ends, and its workers too."""
    _in_process("cancel", watched.job_id)
    assert driver.wait() == JobCancelled.exit_code
    _no_workers(service)
    assert driver.last_line.startswith(f"error: job {watched.job_id}")
    assert "Traceback" not in driver.output
    assert watched.status() == "cancelled"


def _in_process(*arguments: str) -> str:
    """Output of a `kitae` command in this process: one of its own takes as long to start as many steps take."""
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def _wait_for_another_step(store: Workspace, job: JobFile, driver: Driver) -> None:
    before = len(_steps(store, job))
    wait_until(lambda: len(_steps(store, job)) > before, driver, "a step")


def _steps(store: Workspace, job: JobFile) -> list[int]:
    """Steps that all attempts have reported so far."""
    try:
        events = [event for _, event in jobs.events(store, job.spec.job_id)]
    except JobError:
        return []
    return [event.data["step"] for event in events if event.kind == "metrics"]


def test_training_metrics_are_events_and_a_csv_file(
    ray_service: Service, store: Workspace, job: JobFile, undisturbed: Undisturbed, store_server: StoreServer
) -> None:
    """The undisturbed run has an event for every evaluation and a line for every step."""
    calm = Workspace(Store("s3://kitae/undisturbed", store_server.settings()), DEFAULT_TEAM)
    record = jobs.load(calm, job.spec.job_id)
    assert record.result is not None
    events = [event for _, event in jobs.events(calm, job.spec.job_id) if event.kind == "metrics"]
    steps = [event.data["step"] for event in events]
    assert steps == sorted(set(steps))
    measured = {event.data["step"]: event.data for event in events if "valid_loss" in event.data}
    assert list(measured) == list(range(10, STEPS + 1, 10))  # after each epoch
    rows = list(csv.DictReader(calm.get(record.result["metrics_csv"]).decode().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert [float(row["train_loss"]) for row in rows] == pytest.approx(undisturbed.losses)
    for row in rows:
        data = measured.get(int(row["step"]))
        assert row["valid_loss"] == ("" if data is None else str(data["valid_loss"]))
        assert row["valid_mean_token_accuracy"] == ("" if data is None else str(data["valid_mean_token_accuracy"]))
    assert all(event.data["total_steps"] == STEPS and event.data["tokens_per_s"] > 0 for event in events)
    assert 0 <= events[-1].data["learning_rate"] < 1e-4  # the cosine's end
    (trained,) = [stage for stage in jobs.stages(calm, job.spec.job_id) if stage.name == "train"]
    assert record.result["trained_tokens"] == trained.outputs["tokens"] > 0
    assert record.result["checkpoints"] == []


def alone(store: Workspace, job: JobFile) -> tuple[float, ...]:
    """The losses of the same training in one process, without Ray."""
    base = next(record for record in jobs.stages(store, job.spec.job_id) if record.name == "base")
    encoded = next(record for record in jobs.stages(store, job.spec.job_id) if record.name == "encode")
    inputs = TrainInputs(
        spec=job.spec,
        labels=("a", "b"),
        encoded_key=encoded.outputs["key"],
        base_key=base.outputs["key"],
        checkpoints="alone",
    )
    on_workers(1, train_alone, [(inputs, store)])
    return checkpoint.committed(store, "alone")[-1].position.losses


def train_alone(case: tuple[TrainInputs, Workspace]) -> None:
    train(*case)


def test_a_loss_that_is_not_a_number_stops_the_job(ray_service: Service, store: Workspace, files: Path) -> None:
    training = {"learning_rate": 1e30, "warmup_fraction": 0.0}
    job = job_file(files, "diverges", training=training, compute={"workers": 1})
    driver = ray_service.kitae(store, "run", str(job.path))
    assert driver.wait() == TrainingError.exit_code, driver.output
    reason = r"error: the training loss is (nan|inf) at step \d of 80 \(learning rate \S+e\+\d+\): lower"
    assert re.match(reason, driver.last_line)
    assert "Traceback" not in driver.output
    failed(store, job)


def failed(store: Workspace, job: JobFile) -> None:
    """Assert that the job failed in its first attempt and registered nothing."""
    record = jobs.load(store, job.spec.job_id)
    assert (record.status, record.attempt) == ("failed", 1)
    assert registry.names(store) == []
