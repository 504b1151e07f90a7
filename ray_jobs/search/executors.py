"""Trials on Ray: shared trainers in actors, and Ray Train groups for trials that need several workers.

Owns the actors, how many run, and what happens when one dies. Does not decide which trial runs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.errors import KitaeError, MachineError, TrainingError
from ray_jobs.search.records import Result
from ray_jobs.search.shared_trainer import (
    SharedTrainer,
    SharedTrainerState,
    TrialClock,
    failed,
    mode_of,
    result_of_training,
)
from ray_jobs.search.trial_group import TrialTask
from ray_jobs.spec import ComputeSection
from ray_jobs.storage import Store
from ray_jobs.training import ray_train, ray_workers

_LIVES = 3
"""Process deaths after which a segment is given up. After the first it has a process to itself, so that the segment
that kills is found."""
_ANSWER_S = 0.2
"""Wait for the answer to a poll; a process that has not started yet answers a later one."""
_CLUSTER_EVERY_S = 5.0
_END_S = 60.0
"""Time for stopped worker groups to end their step and release their workers."""


@dataclass
class _Placed:
    task: TrialTask
    trainer: int
    since: float


@dataclass
class _WorkerGroup:
    task: TrialTask
    since: float
    thread: threading.Thread


@dataclass
class Executor:
    """Runs the trial segments of a search on Ray."""

    store: Store
    compute: ComputeSection
    parallel: int
    job_id: str
    attempt: int
    note: Callable[[str], None]
    _actors: dict[int, Any] = field(default_factory=dict)
    _placed: dict[str, _Placed] = field(default_factory=dict)
    _groups: dict[str, _WorkerGroup] = field(default_factory=dict)
    _dropped: set[str] = field(default_factory=set)
    """Worker groups that were given up and have not ended yet; they still hold their workers."""
    _group_results: list[Result] = field(default_factory=list)
    _polls: dict[int, Any] = field(default_factory=dict)
    _cluster_seen_s: float = 0.0
    _deaths: Counter[str] = field(default_factory=Counter)
    steps: dict[str, int] = field(default_factory=dict)
    """Steps taken by the running segments."""

    def running(self) -> dict[str, float]:
        """Names of the running segments, and when each started (monotonic clock)."""
        groups = {name: group.since for name, group in self._groups.items() if name not in self._dropped}
        return {name: on.since for name, on in self._placed.items()} | groups

    def busy_workers(self) -> int:
        """Training workers in use."""
        trainers = len({on.trainer for on in self._placed.values()})
        return trainers * (1 if self.compute.gpus_per_worker else self.compute.workers) + (
            len(self._groups) * self.compute.workers
        )

    def has_room(self, task: TrialTask) -> bool:
        """Whether a segment can start now."""
        mode = mode_of(task.inputs.spec)[0]
        if mode == "workers":
            return len(self._groups) < self._group_places() and not self._placed
        if self._groups:
            return False
        suspects = [name for name in self._placed if self._deaths[name]]
        if self._deaths[task.run.name] or suspects:
            return not self._placed  # alone, to find the segment that kills
        if mode == "alone":
            return any(self._load(trainer) == 0 for trainer in range(self._trainers()))
        return len(self._placed) < self.parallel

    def start(self, task: TrialTask) -> None:
        """Start a segment, or resume it from its last checkpoint. Call only if `has_room`."""
        if mode_of(task.inputs.spec)[0] == "workers":
            thread = threading.Thread(target=self._run_group, args=(task,), daemon=True)
            self._groups[task.run.name] = _WorkerGroup(task, time.monotonic(), thread)
            thread.start()
            return
        trainer = min(range(self._trainers()), key=self._load)
        self._placed[task.run.name] = _Placed(task, trainer, time.monotonic())
        self._actor(trainer).submit.remote(task)

    def drop(self, name: str) -> None:
        """Give a segment up. One that does not share ends at its next step."""
        on = self._placed.pop(name, None)
        self.steps.pop(name, None)
        if name in self._groups:
            self._dropped.add(name)
            ray_train.stop_training(self.store, self._groups[name].task.inputs)
        if on is not None:
            with contextlib.suppress(Exception):  # a dead process has dropped it already
                self._actors[on.trainer].drop.remote(name)

    def poll(self) -> list[Result]:
        """Results of the segments that ended since the last poll."""
        import ray

        ended, self._group_results = self._group_results, []
        for result in ended:
            self._groups.pop(result.run.name, None)
        results = [result for result in ended if result.run.name not in self._dropped]
        self._dropped -= {result.run.name for result in ended}
        for trainer in {on.trainer for on in self._placed.values()}:
            if trainer not in self._polls:
                self._polls[trainer] = self._actors[trainer].poll.remote()
            try:
                if not ray.wait([self._polls[trainer]], timeout=_ANSWER_S)[0]:
                    if time.monotonic() - self._cluster_seen_s > _CLUSTER_EVERY_S:
                        ray_workers.check_cluster(self.job_id)
                        self._cluster_seen_s = time.monotonic()
                    continue
                state: SharedTrainerState = ray.get(self._polls.pop(trainer))
            except KitaeError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever ended the process, its segments start again
                results += self._bury(trainer, error)
                continue
            self.steps |= state.steps
            for text in state.notes:
                self.note(text)
            for result in state.results:
                if self._placed.pop(result.run.name, None) is not None:
                    self.steps.pop(result.run.name, None)
                    results.append(result)
        return results

    def close(self) -> None:
        """Release all workers. Waits for its threads: one in a call of Ray would crash the interpreter at its end."""
        import ray

        for name, group in self._groups.items():
            if name not in self._dropped and group.thread.is_alive():
                with contextlib.suppress(KitaeError):  # the error that ends the search is raised by its caller
                    ray_train.stop_training(self.store, group.task.inputs)
        until = time.monotonic() + _END_S
        for group in self._groups.values():
            group.thread.join(max(0.0, until - time.monotonic()))
        for actor in self._actors.values():
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self._actors.clear()

    def _trainers(self) -> int:
        if not self.compute.gpus_per_worker:
            return 1  # more would share the same cores
        gpus = int(ray_workers.cluster_resources().get("GPU", 0.0))
        return max(1, min(self.parallel, gpus))

    def _group_places(self) -> int:
        """Most Ray Train groups in the cluster at a time."""
        have, compute = ray_workers.cluster_resources(), self.compute
        places = have.get("CPU", 0.0) / (compute.cpus_per_worker * compute.workers)
        if compute.gpus_per_worker:
            places = min(places, have.get("GPU", 0.0) / (compute.gpus_per_worker * compute.workers))
        return max(1, min(self.parallel, int(places)))

    def _load(self, trainer: int) -> int:
        return sum(on.trainer == trainer for on in self._placed.values())

    def _actor(self, trainer: int) -> Any:
        if trainer not in self._actors:
            device = "cuda" if self.compute.gpus_per_worker else "cpu"
            self._actors[trainer] = ray_workers.start_actor(SharedTrainer, self.store, device, compute=self.compute)
        return self._actors[trainer]

    def _bury(self, trainer: int, error: Exception) -> list[Result]:
        """Free a dead process. Its segments start again from their checkpoints, up to `_LIVES` deaths.

        Raises TrainingError when the whole cluster is gone.
        """
        import ray

        ray_workers.check_cluster(self.job_id)
        with contextlib.suppress(Exception):
            ray.kill(self._actors[trainer])
        self._actors.pop(trainer, None)
        self._polls.pop(trainer, None)
        lost = [on.task for on in self._placed.values() if on.trainer == trainer]
        why = ray_workers.explain(error, "a process of the search ended")
        self.note(f"{why}; {len(lost)} run(s) resume from their last checkpoints")
        results = []
        for task in lost:
            name = task.run.name
            del self._placed[name]
            self.steps.pop(name, None)
            self._deaths[name] += 1
            if self._deaths[name] >= _LIVES:
                status = "out_of_memory" if isinstance(why, MachineError) else "lost"
                results.append(Result(run=task.run, status=status, error=f"{why} ({_LIVES} times)"))
        return results

    def _run_group(self, task: TrialTask) -> None:
        clock = TrialClock()

        def report(done: float, *_: object) -> None:
            clock.step()
            self.steps[task.run.name] = int(done)

        try:
            ray_train.train_on_workers(task.inputs, self.store, job_id=self.job_id, attempt=self.attempt, report=report)
            result = result_of_training(self.store, task) or failed(
                task.run, TrainingError("it was stopped before its end")
            )
            result = clock.timed(result)
        except KitaeError as error:
            result = failed(task.run, error)
        except Exception as error:  # noqa: BLE001  # becomes the segment's result
            result = Result(run=task.run, status="failed", error=repr(error))
        self.steps.pop(task.run.name, None)
        self._group_results.append(result)
