"""A shared trainer: its passes, its process, and whole searches in it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from ray_jobs import jobs
from ray_jobs.search.adapters import SharedLora
from ray_jobs.search.decide import trial_spec
from ray_jobs.search.records import Problem, Result, SearchRecords, TrialSegment
from ray_jobs.search.runner import Search
from ray_jobs.search.shared_trainer import SharedTrainer, TrialClock
from ray_jobs.search.trial_group import pass_tokens
from ray_jobs.spec import ComputeSection, parse_spec
from ray_jobs.storage import Store
from ray_jobs.training import checkpoint, ray_workers
from ray_jobs.training.inputs import TrainInputs
from ray_jobs.training.lr_schedule import decay_start
from tests.search.trials import InProcess, make_setting, segments

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("store_environment")]


def test_an_actor_on_a_cpu_uses_the_allocator_of_ray() -> None:
    class Mapped:
        def files(self) -> str:
            return Path("/proc/self/maps").read_text()

    ray_workers.connect()
    actor = ray_workers.start_actor(Mapped, compute=ComputeSection())
    try:
        assert "libjemalloc" in ray.get(actor.files.remote())
    finally:
        ray.kill(actor)


def test_passes_on_a_cpu_are_small(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pass_tokens(4096, torch.device("cuda")) == 4096
    assert pass_tokens(64, torch.device("cpu")) == 64
    setting = make_setting(store, tmp_path, "chat", method="lora", micro_batch_tokens=4096, batch_size=16)
    sizes, whole = [], SharedLora.logits

    def seen(self: SharedLora, parts: Any) -> Any:
        sizes.append(sum(len(example.input_ids) for _, share in parts for example in share))
        return whole(self, parts)

    monkeypatch.setattr(SharedLora, "logits", seen)
    trainer = SharedTrainer(store, "cpu")
    runs = segments([{}, {}], 1)
    for run in runs:
        trainer.submit(setting.task(run, "shared"))
    results: list[Result] = []
    while len(results) < len(runs):
        results += trainer.poll().results
        time.sleep(0.01)
    trainer.close()
    longest = max(setting.rows.lengths)
    assert sum(sizes) > 2 * 128
    assert 64 < max(sizes) <= max(128, longest)


def test_a_segment_that_does_not_share_reports_its_start_apart_from_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 13.0, 20.0])
    monkeypatch.setattr("ray_jobs.search.shared_trainer.time.monotonic", lambda: next(times))
    clock, run = TrialClock(), TrialSegment(trial=0, rung=0, params={}, until=2)
    clock.step()
    clock.step()
    timed = clock.timed(Result(run=run, status="ok"))
    assert (timed.start_s, timed.seconds) == (3.0, 7.0)


@pytest.mark.parametrize("algorithm", ["asha", "pbt"])
def test_a_search_ends_with_a_trained_winner(store: Store, tmp_path: Path, algorithm: str) -> None:
    setting = make_setting(store, tmp_path, "text_classification", method="frozen", epochs=4)
    section = {
        "space": {"learning_rate": {"min": 1e-3, "max": 1e-1, "scale": "log"}, "weight_decay": [0.0, 0.01]},
        "algorithm": algorithm,
        "trials": 4,
        "finalists": 1,
    }
    spec = parse_spec(setting.inputs.spec.model_dump() | {"search": section})
    assert spec.search is not None
    job = jobs.start_attempt(store, spec)
    records = SearchRecords(store, f"jobs/{job.id}/search/x")
    problem = records.begin(Problem(spec=spec, space=dict(spec.search.space or {}), rows=len(setting.rows)))
    trainer = SharedTrainer(store, "cpu")

    def inputs(run: TrialSegment) -> TrainInputs:
        return setting.inputs.model_copy(update={"spec": trial_spec(problem, run)})

    try:
        schedule = Search(job, records, problem, inputs, InProcess(trainer, 4), lambda *_, **__: None).run()
    finally:
        trainer.close()
    assert schedule.winner is not None
    winner = records.results()[schedule.winner.name]
    assert winner.run.until == 20
    whole = [result.loss for result in records.results().values() if result.run.until == 20]
    assert winner.loss == min(loss for loss in whole if loss is not None)
    assert winner.checkpoint is not None
    assert checkpoint.load(store, winner.checkpoint) is not None
    if algorithm == "pbt":
        moved = [r.run for r in records.results().values() if r.run.source and int(r.run.source[:4]) != r.run.trial]
        assert moved
        for run in moved:  # it resumes from the other member
            source = records.results()[run.source or ""]
            kept = decay_start(source.run.until)
            assert records.results()[run.name].losses[:kept] == source.losses[:kept]
