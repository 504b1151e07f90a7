"""A search through the command line, on a real Ray cluster and a real store, with every part of it killed midway."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_jobs import jobs, registry
from ray_jobs.errors import TrainingError
from ray_jobs.local import processes
from ray_jobs.local.processes import Process
from ray_jobs.search import standing
from ray_jobs.search.records import SearchRecords, searches
from ray_jobs.search.standing import Standing
from ray_jobs.sharing.segments import Result
from ray_jobs.spec import DEFAULT_TEAM, JobSpec, parse_spec
from ray_jobs.storage import Store, Workspace
from tests.conftest import StoreServer
from tests.models import tiny_models
from tests.pipeline.live_service import Driver, Service, command_line, kill, wait_until

pytestmark = pytest.mark.heavy

CLOSE = 1e-3
"""Relative; fp32. After a resume other trials share the pass, and a diverging trial amplifies rounding."""


@dataclass(frozen=True)
class JobFile:
    path: Path
    spec: JobSpec


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("files")
    tiny_models.save_encoder(directory / "encoder")
    tiny_models.save_encoder(directory / "other", seed=1)
    rows = tiny_models.label_rows(400)
    for name, part in (("train", rows[:320]), ("held_out", rows[320:360]), ("test", rows[360:])):
        lines = [json.dumps(row, ensure_ascii=False) for row in part]
        (directory / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return directory


def job_file(directory: Path, name: str, **sections: dict[str, Any]) -> JobFile:
    """A search of nine trials; a complete one has 90 steps."""
    document: dict[str, Any] = {
        "name": name,
        "task": "text_classification",
        "base_model": str(directory / "encoder"),
        "data": {
            "train": str(directory / "train.jsonl"),
            "held_out": str(directory / "held_out.jsonl"),
            "test": str(directory / "test.jsonl"),
            "max_tokens": 32,
        },
        "training": {"method": "lora", "epochs": 9, "batch_size": 32, "micro_batch_tokens": 128, "precision": "fp32"},
        "search": {
            "space": {"learning_rate": {"min": 1e-4, "max": 1e-1, "scale": "log"}, "lora.rank": [2, 4]},
            "trials": 9,
            "parallel": 3,
        },
        "compute": {"workers": 1, "threads_per_worker": 1},
        "serving": {"deploy": False},
    }
    for section, values in sections.items():
        document[section] = {**document.get(section, {}), **values}
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    return JobFile(path, parse_spec(document))


@dataclass(frozen=True)
class Searched:
    """A job's search as its store shows it."""

    store: Workspace
    job_id: str

    def records(self) -> SearchRecords | None:
        found = searches(self.store, self.job_id)
        return found[-1] if found else None

    def results(self) -> dict[str, Result]:
        records = self.records()
        return records.results() if records is not None else {}

    def standing(self) -> Standing:
        records = self.records()
        assert records is not None
        return standing.read(records)[2]

    def wait_for(self, count: int, driver: Driver) -> dict[str, Result]:
        """Wait until `count` runs have results."""
        wait_until(lambda: len(self.results()) >= count, driver, f"{count} results")
        return self.results()


def shared_trainers(service: Service) -> list[Process]:
    """The processes in which trials share a base."""
    family = processes.family([service.ray], service.mark)
    return [process for process in family if "ray::Actor" in command_line(process)]


def test_a_killed_search_has_the_winner_of_an_undisturbed_one(
    ray_service: Service, store: Workspace, store_server: StoreServer, files: Path, tmp_path: Path
) -> None:
    """With one trial at a time: what proposes the next then sees the same results in the same order."""
    job = job_file(files, "searched", search={"parallel": 1, "trials": 6})
    calm = Workspace(Store("s3://kitae/calm-search", store_server.settings(), cache=tmp_path / "calm"), DEFAULT_TEAM)
    driver = ray_service.kitae(calm, "run", str(job.path))
    assert driver.wait() == 0, driver.output
    undisturbed = Searched(calm, job.spec.job_id)
    expected = undisturbed.results()

    searched = Searched(store, job.spec.job_id)
    driver = ray_service.kitae(store, "run", str(job.path))
    kept = searched.wait_for(3, driver)
    (trainer,) = shared_trainers(ray_service)
    kill(trainer)
    kept |= searched.wait_for(6, driver)
    assert driver.process.poll() is None

    ray_service.kill_ray()
    assert driver.wait() != 0
    assert "Traceback" not in driver.output
    assert "once it runs again" in driver.output
    ray_service.start_ray()

    driver = ray_service.kitae(store, "resume", job.spec.job_id)
    assert driver.wait() == 0, driver.output
    found = searched.results()
    assert set(found) == set(expected)
    for name, result in kept.items():
        assert found[name] == result, f"{name} ran again"
    for name, result in expected.items():
        assert found[name].status == "ok"
        assert found[name].run.params == result.run.params
        assert found[name].losses == pytest.approx(result.losses, rel=CLOSE)
        assert found[name].loss == pytest.approx(result.loss, rel=CLOSE)
    assert searched.standing().winner == undisturbed.standing().winner

    (version,) = registry.versions(store, "searched")
    winner = searched.standing().winner
    assert winner is not None
    assert version.lineage.trial == winner.name
    assert version.lineage.spec.training.learning_rate == winner.params["learning_rate"]
    assert version.metrics["loss"] == pytest.approx(found[winner.name].loss, rel=1e-3)
    assert version.lineage.job_id == job.spec.job_id
    assert "trials of" not in driver.output
    assert "worker-seconds" in driver.output
    left = {info.key.split("/")[-3] for info in store.list(f"jobs/{job.spec.job_id}/search") if "/step-" in info.key}
    assert winner.name in left
    assert len(left) <= 4


def test_a_search_over_methods_trains_some_trials_alone_and_reports_it(
    ray_service: Service, store: Workspace, files: Path
) -> None:
    """Full training without sharing, LoRA and a frozen backbone that share, in one search, through `kitae tune`."""
    space = {"method": ["full", "lora", "frozen"], "learning_rate": [1e-3, 1e30]}
    search = {"space": space, "algorithm": "grid", "finalists": 1}
    training = {"epochs": 1, "max_grad_norm": None, "warmup_fraction": 0.0}
    job = job_file(files, "mixed", search=search, training=training)
    driver = ray_service.kitae(store, "tune", str(job.path))
    assert driver.wait() == 0, driver.output
    results = Searched(store, job.spec.job_id).results()
    assert len(results) == 6
    sane, wild = (
        [result.status for result in results.values() if result.run.params["learning_rate"] == rate]
        for rate in (1e-3, 1e30)
    )
    assert sane == ["ok"] * 3
    assert "not_finite" in wild
    shared = {r.run.params["method"]: r.shared for r in results.values() if r.status == "ok"}
    assert shared == {"full": False, "lora": True, "frozen": True}
    messages = [event.message for _, event in jobs.events(store, job.spec.job_id)]
    assert any("trials run one after another: method: full leaves no base to share" in line for line in messages)
    assert "best: " in driver.output
    page = ray_service.root / "page.html"
    shown = ray_service.kitae(store, "trials", job.spec.job_id, "--html", str(page))
    assert shown.wait() == 0, shown.output
    assert "learning_rate" in page.read_text(encoding="utf-8")
    assert registry.names(store) == []


def test_trials_on_several_workers_are_worker_groups_and_a_slow_one_times_out(
    ray_service: Service, store: Workspace, files: Path
) -> None:
    """The second trial has fifty times the steps of the first. The start of a group does not count."""
    space = {"epochs": [1, 50]}
    search = {"space": space, "algorithm": "grid", "finalists": 1, "trial_minutes": 0.2, "parallel": 1}
    training = {
        "method": "full",
        "micro_batch_tokens": 32,
    }  # a row a pass: 500 steps take over a minute
    job = job_file(files, "slow", search=search, training=training, compute={"workers": 2})
    driver = ray_service.kitae(store, "tune", str(job.path))
    assert driver.wait() == 0, driver.output
    results = Searched(store, job.spec.job_id).results()
    assert {r.run.params["epochs"]: r.status for r in results.values()} == {1: "ok", 50: "timed_out"}
    assert not any(result.shared for result in results.values())
    assert "search.trial_minutes 0.2" in next(r.error or "" for r in results.values() if r.status == "timed_out")


def test_a_search_over_bases_registers_the_winner_on_its_base(
    ray_service: Service, store: Workspace, files: Path
) -> None:
    bases = [str(files / name) for name in ("encoder", "other")]
    search = {"space": {"base_model": bases}, "algorithm": "grid", "finalists": 1}
    job = job_file(files, "bases", search=search, training={"epochs": 2, "learning_rate": 1e-2})
    driver = ray_service.kitae(store, "run", str(job.path))
    assert driver.wait() == 0, driver.output
    searched = Searched(store, job.spec.job_id)
    results = searched.results()
    assert [result.status for result in results.values()] == ["ok", "ok"]
    winner = searched.standing().winner
    assert winner is not None
    best = min(results.values(), key=lambda result: result.loss or 1e9)
    assert winner.params["base_model"] == best.run.params["base_model"]
    (version,) = registry.versions(store, "bases")
    assert version.lineage.spec.base_model == winner.params["base_model"]
    assert version.metrics["loss"] == pytest.approx(best.loss, rel=1e-3)


def test_a_search_whose_trials_all_fail_reports_why(ray_service: Service, store: Workspace, files: Path) -> None:
    search = {"space": {"learning_rate": [1e29, 1e30]}, "algorithm": "grid"}
    training = {"epochs": 1, "max_grad_norm": None, "warmup_fraction": 0.0, "method": "lora"}
    job = job_file(files, "hopeless", search=search, training=training)
    driver = ray_service.kitae(store, "run", str(job.path))
    assert driver.wait() == TrainingError.exit_code, driver.output
    assert "all 2 trials of the search failed" in driver.output
    assert "lower training.learning_rate" in driver.output
    assert registry.names(store) == []
