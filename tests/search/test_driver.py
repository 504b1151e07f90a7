"""Whole searches on Ray Tune, in one process with a real Ray and a real store. Other schedulers: `test_schedulers`."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.exceptions import RayActorError

from ray_jobs import jobs
from ray_jobs.errors import JobPaused
from ray_jobs.search.driver import Search
from ray_jobs.search.progress import SearchProgress
from ray_jobs.search.records import Problem, SearchRecords
from ray_jobs.search.trainables import LIVES, SearchContext, SharedTrial
from ray_jobs.spec import parse_spec
from ray_jobs.spec.search import POPULATIONS
from ray_jobs.storage import Workspace
from ray_jobs.tracking import files
from ray_jobs.tracking.tune import tune_callbacks
from ray_jobs.training import checkpoint, ray_workers
from ray_jobs.training.lr_schedule import decay_start
from tests.sharing.trials import Setting, make_setting
from tests.tracking import readers

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("store_environment")]


def make_search(
    setting: Setting, *, compute: dict[str, Any] | None = None, tracking: dict[str, Any] | None = None, **section: Any
) -> Search:
    """A search of four trials in a shared trainer; a whole trial has 20 steps."""
    space = {"learning_rate": {"min": 1e-3, "max": 1e-1, "scale": "log"}, "weight_decay": [0.0, 0.01]}
    search = {"space": space, "trials": 4, "finalists": 1, **section}
    document = setting.inputs.spec.model_dump() | {"search": search}
    given = {"compute": compute, "tracking": tracking}
    spec = parse_spec(document | {name: values for name, values in given.items() if values})
    assert spec.search is not None
    job = jobs.start_attempt(setting.store, spec)
    records = SearchRecords(setting.store, f"jobs/{job.id}/search/x")
    problem = records.begin(Problem(spec=spec, space=dict(spec.search.space or {}), rows=len(setting.rows)))
    materials = {spec.base_model: setting.inputs}

    def loggers() -> list[tune.Callback]:
        return tune_callbacks(spec, job.id, setting.store, print, "x")

    return Search(job, records, problem, materials, lambda *_, **__: None, print, loggers)


@pytest.mark.parametrize(
    "section",
    [
        {"scheduler": "asha", "sampler": "gp"},
        {"scheduler": "pbt", "parallel": 2},
        {"scheduler": "pb2", "parallel": 2},
    ],
    ids=lambda section: section["scheduler"],
)
def test_a_search_ends_with_a_trained_winner(
    store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: dict[str, Any]
) -> None:
    setting = make_setting(store, tmp_path, "text_classification", method="frozen", epochs=4)
    ray_workers.connect()
    search, processes, called = make_search(setting, **section), dict[str, int](), SearchProgress.on_trial_result

    def count(
        self: SearchProgress, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        processes.setdefault(result["segment"], result["pid"])
        called(self, iteration, trials, trial, result, **info)

    monkeypatch.setattr(SearchProgress, "on_trial_result", count)
    now = search.run()
    sampled = search.records.stopped()
    assert sampled is not None
    used = {processes[name] for name in sampled.results}
    # They are reused; Tune may start another one before it knows that one is free.
    assert len(used) <= min(search.problem.search.parallel + 2, len(sampled.results) - 1)
    assert now.winner is not None
    results = search.records.results()
    winner = results[now.winner.name]
    assert winner.run.until == 20
    whole = [result.loss for result in results.values() if result.run.until == 20]
    assert winner.loss == min(loss for loss in whole if loss is not None)
    assert winner.checkpoint is not None
    assert checkpoint.load(store, winner.checkpoint) is not None
    assert len({result.run.trial for result in results.values()}) == len(search.records.points(results))
    moved = [r.run for r in results.values() if r.run.source and int(r.run.source[:4]) != r.run.trial]
    assert bool(moved) == (section["scheduler"] in POPULATIONS)
    for run in moved:  # it resumes from the other member
        source = results[run.source or ""]
        kept = decay_start(source.run.until)
        assert results[run.name].losses[:kept] == source.losses[:kept]
        assert run.params["weight_decay"] in (0.0, 0.01)
        assert 1e-3 <= run.params["learning_rate"] <= 1e-1
    assert_no_secrets(store, f"{search.records.prefix}/tune")


def test_each_trial_is_a_run_in_every_tracker(store: Workspace, tmp_path: Path) -> None:
    setting = make_setting(store, tmp_path, "text_classification", method="frozen", epochs=4)
    ray_workers.connect()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = {"mlflow": {"tracking_uri": uri}, "wandb": {"project": "p", "mode": "offline"}}
    grid: dict[str, Any] = {"space": {"learning_rate": [1e-3, 1e-2]}, "algorithm": "grid"}
    search = make_search(setting, tracking=tracking, **grid)
    assert search.run().winner is not None
    target = tmp_path / "fetched"
    files.download(store, search.job.id, target)
    runs, offline = readers.mlflow_runs(uri, setting.inputs.spec.name), readers.offline_runs(target / "wandb")
    names = {"0000-0": "trial-0", "0001-0": "trial-1"}
    assert set(runs) == {f"{search.job.id}-{name}" for name in names.values()}
    assert set(offline) == {f"{search.job.id}-{name}-x" for name in names.values()}
    for segment, result in search.records.results().items():
        name = f"{search.job.id}-{names[segment]}"
        recorded: list[Any] = [(1, pytest.approx(result.loss))]
        assert runs[name][1]["loss"] == recorded
        assert offline[f"{name}-x"]["loss"] == recorded
        assert readers.events(target / "tensorboard" / f"{names[segment]}-x")["loss"] == recorded
        assert runs[name][0].data.params == {"learning_rate": str(result.run.params["learning_rate"])}


def assert_no_secrets(store: Workspace, prefix: str) -> None:
    """Tune writes pickles of its parts, some of them as hexadecimal text; none has the store's credentials."""
    written = {info.key: store.get(info.key) for info in store.list(prefix)}
    assert any(key.endswith("tuner.pkl") for key in written)
    assert any("experiment_state" in key for key in written)
    settings = store._bucket.settings
    for key, data in written.items():
        hexadecimal = re.findall(r"(?:[0-9a-f]{2}){20,}", data.decode(errors="ignore"))
        text = data + b"".join(bytes.fromhex(part) for part in hexadecimal)
        for secret in (settings.access_key_id, settings.secret_access_key):
            assert secret is not None
            assert secret.encode() not in text, key


def test_a_spent_budget_ends_the_sampling_and_the_finalists_still_run(store: Workspace, tmp_path: Path) -> None:
    setting = make_setting(store, tmp_path, "text_classification", method="frozen", epochs=4)
    ray_workers.connect()
    budget = {"gpu_hours": 1.0}
    search = make_search(setting, trials=50, parallel=2, finalists=2, budget=budget)
    search.records.spend({"wall": 0.0, "worker": 1.0}, [])  # by an earlier attempt
    now = search.run()
    assert now.winner is not None
    assert now.why == "search.budget.gpu_hours 1 is spent, including the time the finalists need"
    results = search.records.results()
    assert len({result.run.trial for result in results.values()}) < 10
    assert sum(result.run.again for result in results.values()) == 2
    assert {result.run.until for result in results.values() if result.run.again} == {20}


def test_a_paused_search_ends_within_seconds_and_resumes_with_its_results(store: Workspace, tmp_path: Path) -> None:
    setting = make_setting(store, tmp_path, "text_classification", method="frozen", epochs=20, batch_size=2)
    ray_workers.connect()
    search = make_search(setting, trials=6)

    def pause() -> None:
        while not search.records.results():
            time.sleep(0.1)
        jobs.request_pause(store, search.job.id)

    thread = threading.Thread(target=pause)
    thread.start()
    with pytest.raises(JobPaused):
        search.run()
    thread.join()
    before = search.records.results()
    assert {result.status for result in before.values()} == {"ok"}
    assert search.records.stopped() is None
    resumed = make_search(setting, trials=6)
    assert resumed.job.attempt == 2
    assert resumed.run().winner is not None
    after = resumed.records.results()
    assert {name: after[name] for name in before} == before
    assert {result.status for result in after.values()} == {"ok"}


def trains(trainer: Any) -> bool:
    """Whether a shared trainer has a segment; not while it starts again."""
    with contextlib.suppress(RayActorError):
        return bool(ray.get(trainer.load.remote()))
    return False


def wait(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not done():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_segment_whose_process_dies_three_times_is_given_up(store: Workspace, tmp_path: Path) -> None:
    setting = make_setting(store, tmp_path, "text_classification", method="lora", epochs=50, batch_size=1)
    ray_workers.connect()
    search = make_search(setting, scheduler="none")
    said: list[str] = []
    search.note = said.append
    with search._context("shared") as context:

        class Client(SharedTrial):
            def setup(self, config: dict[str, Any], search: SearchContext = context) -> None:
                super().setup(config, search)

        client = Client({"trial": 0, "params": {"learning_rate": 1e-2, "weight_decay": 0.0}})
        with ThreadPoolExecutor(1) as pool:
            step = pool.submit(client.step)
            for _ in range(LIVES):
                wait(lambda: trains(context.trainers[0]))
                ray.kill(context.trainers[0], no_restart=False)
                wait(lambda: not trains(context.trainers[0]))
            reported = step.result(timeout=120)
    assert (reported["status"], reported["done"]) == ("lost", True)
    (result,) = search.records.results().values()
    assert "(3 times)" in (result.error or "")
    assert said
    assert "trial 0 resumes from its last checkpoint" in said[0]


def test_groups_of_workers_fill_the_cluster_and_copy_each_other(store: Workspace, tmp_path: Path) -> None:
    """Three members, each a group of two workers, on four logical CPUs: two at once, while the third waits."""
    setting = make_setting(store, tmp_path, "text_classification", method="full", epochs=2)
    ray.shutdown()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        section: dict[str, Any] = {"scheduler": "pbt", "trials": 3, "rungs": 2, "parallel": 3, "finalists": 1}
        search = make_search(setting, compute={"workers": 2, "threads_per_worker": 1}, **section)
        now = search.run()
    finally:
        ray.shutdown()
    results = search.records.results()
    assert now.winner is not None
    assert [result.status for result in results.values()] == ["ok"] * 6
    spans = [(r.ended_at - r.start_s - r.seconds, r.ended_at) for r in results.values()]
    assert max(sum(begin <= at < end for begin, end in spans) for at, _ in spans) == 2
    moved = [r for r in results.values() if r.run.source and int(r.run.source[:4]) != r.run.trial]
    assert moved
    for result in moved:
        source = results[result.run.source or ""]
        kept = decay_start(source.run.until)
        assert result.losses[:kept] == pytest.approx(source.losses[:kept])
