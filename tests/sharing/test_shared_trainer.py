"""A shared trainer: its passes and its process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from ray_jobs.sharing.adapters import SharedLora
from ray_jobs.sharing.segments import Result, TrialSegment
from ray_jobs.sharing.shared_trainer import SharedTrainer, TrialClock
from ray_jobs.sharing.trial_group import pass_tokens
from ray_jobs.spec import ComputeSection
from ray_jobs.storage import Workspace
from ray_jobs.training import ray_workers
from tests.sharing.trials import make_setting, segments

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


def test_passes_on_a_cpu_are_small(store: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    while any(trainer.state(run.name).result is None for run in runs):
        time.sleep(0.01)
    trainer.close()
    longest = max(setting.rows.lengths)
    assert sum(sizes) > 2 * 128
    assert 64 < max(sizes) <= max(128, longest)


def test_a_segment_that_does_not_share_reports_its_start_apart_from_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 13.0, 20.0])
    monkeypatch.setattr("ray_jobs.sharing.shared_trainer.time.monotonic", lambda: next(times))
    clock, run = TrialClock(), TrialSegment(trial=0, rung=0, params={}, until=2)
    clock.step()
    clock.step()
    timed = clock.timed(Result(run=run, status="ok"))
    assert (timed.start_s, timed.seconds) == (3.0, 7.0)
