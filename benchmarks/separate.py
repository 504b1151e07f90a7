"""Baseline for trials that share a process: Ray Tune with a process for each trial, which runs the job's own loop."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from ray_jobs.sharing.shared_trainer import SharedTrainer
from ray_jobs.storage import Workspace
from ray_jobs.training.inputs import TrainHooks, TrainInputs


class MeasuredTrainer(SharedTrainer):
    """A shared trainer that reports its memory."""

    def peak_memory_bytes(self) -> int:
        """Peak resident memory so far."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_separately(store: Workspace, inputs: Sequence[TrainInputs], *, at_once: int, threads: int) -> dict[str, Any]:
    """Run trainings as trials of Ray Tune. Returns wall-clock seconds, and for each trial the seconds from its turn to
    its first step and to its end."""
    from ray import tune

    def trainable(config: dict[str, Any]) -> None:
        import torch

        from ray_jobs.sharing.shared_trainer import ensure_process_group
        from ray_jobs.training.trainer import train

        torch.set_num_threads(threads)
        ensure_process_group(torch.device("cpu"))
        first: list[float] = []
        train(inputs[config["trial"]], store, TrainHooks(on_progress=lambda _: first.append(time.time())))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        tune.report({"first_step_at": first[0], "peak_memory_bytes": peak})

    started = time.time()
    with tempfile.TemporaryDirectory(prefix="kitae-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 4 / at_once}),
            param_space={"trial": tune.grid_search(list(range(len(inputs))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
            run_config=tune.RunConfig(storage_path=scratch, verbose=0),
        )
        grid = tuner.fit()
        results: list[Any] = sorted((grid[i] for i in range(len(grid))), key=lambda result: result.config["trial"])
    wall_s = time.time() - started
    failed = [result.error for result in results if result.error is not None]
    if failed:
        raise failed[0]
    ends = [result.metrics["timestamp"] for result in results]
    # A trial's turn starts when an earlier trial has ended.
    turns = [started] * at_once + sorted(ends)
    return {
        "wall_s": wall_s,
        "trial_s": [end - turn for end, turn in zip(ends, turns, strict=False)],
        "start_s": [r.metrics["first_step_at"] - turn for r, turn in zip(results, turns, strict=False)],
        "peak_memory_bytes": [result.metrics["peak_memory_bytes"] for result in results],
    }
