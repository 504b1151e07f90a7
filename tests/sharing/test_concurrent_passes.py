"""Passes of trials in several threads: the same losses, and one thread's failure leaves the others right."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs.models import lora_linear
from ray_jobs.sharing.adapters import SharedLora
from ray_jobs.sharing.concurrent_passes import ConcurrentPasses
from ray_jobs.sharing.features import SharedFeatures
from ray_jobs.sharing.trial_group import spread
from ray_jobs.storage import Workspace
from tests.sharing.trials import DIVERGES, LORA_TRIALS, Params, assert_same, features, lora, make_setting, segments

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("store_environment")]


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[ConcurrentPasses]:
    """Two threads that interleave within their passes."""
    whole = lora_linear.linear

    def slow(*given: Any) -> torch.Tensor:
        time.sleep(1e-4)
        return whole(*given)

    monkeypatch.setattr(lora_linear, "linear", slow)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    concurrent = ConcurrentPasses(2)
    yield concurrent
    concurrent.close()
    torch.set_num_threads(before)


@pytest.mark.parametrize("task", ["chat", "text_classification"])
@pytest.mark.parametrize("method", ["lora", "frozen"])
def test_concurrent_passes_give_the_same_losses_each_time(
    store: Workspace, tmp_path: Path, two_threads: ConcurrentPasses, task: str, method: str
) -> None:
    setting = make_setting(store, tmp_path, task, method=method, gradient_checkpointing=method == "lora")
    depth: Params = {} if method == "lora" else {"trainable_blocks": 2}
    shared = ("learning_rate", "batch_size", "seed", "lora.rank", "lora.alpha")
    every = [{k: v for k, v in params.items() if method == "lora" and k in shared} | depth for params in LORA_TRIALS]
    runs = segments([{"seed": i, **params} for i, params in enumerate(every)], 4)
    kind: Any = SharedLora if method == "lora" else SharedFeatures
    made, names, whole = lora if method == "lora" else features, set(), kind.logits

    def seen(self: Any, parts: Any) -> Any:
        name = threading.current_thread().name
        if name.startswith("pass"):  # a single pass has all threads
            names.add(name)
            assert torch.get_num_threads() == 1
        return whole(self, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "logits", seen)
        results = setting.run(made(setting), runs, prefix="once", concurrent=two_threads)
        again = setting.run(made(setting), runs, prefix="again", concurrent=two_threads)
    assert len(names) == 2
    assert torch.get_num_threads() == 2
    for run in runs:
        assert (again[run.name].losses, again[run.name].loss) == (results[run.name].losses, results[run.name].loss)
    assert_same(setting, runs, results)


def test_a_failure_in_one_thread_leaves_the_others_right(
    store: Workspace, tmp_path: Path, two_threads: ConcurrentPasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial diverges; the passes of another do not fit until they are halved."""
    setting = make_setting(store, tmp_path, "chat", method="lora")
    runs = segments([*LORA_TRIALS[:2], DIVERGES, LORA_TRIALS[3]], 4)
    whole, failures = SharedLora.logits, []

    def small(self: SharedLora, parts: Any) -> Any:
        tokens = sum(len(example.input_ids) for _, share in parts for example in share)
        if tokens > 64 and runs[1].name in dict(parts):
            failures.append(threading.current_thread().name)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, parts)

    monkeypatch.setattr(SharedLora, "logits", small)
    results = setting.run(lora(setting), runs, prefix="shared", concurrent=two_threads)
    assert failures
    assert results[runs[2].name].status == "not_finite"
    assert_same(setting, [runs[0], runs[1], runs[3]], results)


def test_passes_that_do_not_fit_together_run_one_at_a_time(
    store: Workspace, tmp_path: Path, two_threads: ConcurrentPasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = make_setting(store, tmp_path, "chat", method="lora")
    runs = segments(LORA_TRIALS[:2], 2)
    whole = SharedLora.logits

    def one(self: SharedLora, parts: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError
        return whole(self, parts)

    monkeypatch.setattr(SharedLora, "logits", one)
    assert_same(setting, runs, setting.run(lora(setting), runs, prefix="shared", concurrent=two_threads))


def test_all_concurrent_passes_end_before_the_first_error_is_raised(two_threads: ConcurrentPasses) -> None:
    ended, both = [], threading.Barrier(2, timeout=30)

    def job(i: int) -> int:
        if i < 2:
            both.wait()  # passes only if two run at the same time
        if i in (1, 2):
            raise ValueError(i)
        time.sleep(0.05)
        ended.append(i)
        return torch.get_num_threads()

    with pytest.raises(ValueError, match="1"):
        two_threads.run([lambda i=i: job(i) for i in range(4)])  # type: ignore[misc]
    assert sorted(ended) == [0, 3]
    assert two_threads.run([lambda: job(4), lambda: job(5)]) == [1, 1]
    assert two_threads.run([lambda: job(6)]) == [2]
    assert torch.get_num_threads() == 2


def test_trials_are_shared_out_evenly() -> None:
    assert spread([5, 9, 3, 9, 20, 1], 2) == [[2, 4, 5], [0, 1, 3]]
    assert spread([5, 9], 4) == [[1], [0]]
    assert spread([], 2) == []
    assert spread([3, 1], 1) == [[0, 1]]
