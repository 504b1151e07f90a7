"""Trials on Ray: long-lived processes that trials share, and Ray Train groups for trials that need several workers.

Owns the actors, how many there are, and what happens when one dies. Does not decide which trial runs.
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
from ray_jobs.search.shared_trainer import Clock, Host, State, Task, alone_result, failed, mode_of
from ray_jobs.spec import ComputeSection
from ray_jobs.storage import Store
from ray_jobs.training import ray_workers

_LIVES = 3
"""How often a run may be on a process that dies before it is given up. The second time on it has it to itself, so that
the one that kills is found."""
_ANSWER_S = 0.2
"""How long is waited for an answer; it comes with a later call: a process may not have started yet."""
_CLUSTER_EVERY_S = 5.0
_END_S = 60.0
"""For groups that were told to stop: to end their step and let go of their workers."""


@dataclass
class _OnHost:
    task: Task
    host: int
    since: float


@dataclass
class _Group:
    task: Task
    since: float
    thread: threading.Thread


@dataclass
class Executor:
    """Where the runs of a search run."""

    store: Store
    compute: ComputeSection
    parallel: int
    job_id: str
    attempt: int
    note: Callable[[str], None]
    _actors: dict[int, Any] = field(default_factory=dict)
    _on_host: dict[str, _OnHost] = field(default_factory=dict)
    _groups: dict[str, _Group] = field(default_factory=dict)
    _dropped: set[str] = field(default_factory=set)
    """Groups that were given up and have not ended yet: they still have their place."""
    _group_results: list[Result] = field(default_factory=list)
    _polls: dict[int, Any] = field(default_factory=dict)
    _cluster_seen_s: float = 0.0
    _deaths: Counter[str] = field(default_factory=Counter)
    steps: dict[str, int] = field(default_factory=dict)
    """Of the runs on their way."""

    def running(self) -> dict[str, float]:
        """Runs on their way, and since when (monotonic clock)."""
        groups = {name: group.since for name, group in self._groups.items() if name not in self._dropped}
        return {name: on.since for name, on in self._on_host.items()} | groups

    def busy_workers(self) -> int:
        """Training workers that are paid for now."""
        hosts = len({on.host for on in self._on_host.values()})
        return hosts * (1 if self.compute.gpus_per_worker else self.compute.workers) + (
            len(self._groups) * self.compute.workers
        )

    def has_room(self, task: Task) -> bool:
        """Whether a run can begin now."""
        mode = mode_of(task.inputs.spec)[0]
        if mode == "workers":
            return len(self._groups) < self._group_places() and not self._on_host
        if self._groups:
            return False
        suspects = [name for name in self._on_host if self._deaths[name]]
        if self._deaths[task.run.name] or suspects:
            return not self._on_host  # alone, to find the one that kills
        if mode == "alone":
            return any(self._load(host) == 0 for host in range(self._hosts()))
        return len(self._on_host) < self.parallel

    def start(self, task: Task) -> None:
        """Begin a run, or go on with it from its last checkpoint. Call where `has_room`."""
        if mode_of(task.inputs.spec)[0] == "workers":
            thread = threading.Thread(target=self._run_group, args=(task,), daemon=True)
            self._groups[task.run.name] = _Group(task, time.monotonic(), thread)
            thread.start()
            return
        host = min(range(self._hosts()), key=self._load)
        self._on_host[task.run.name] = _OnHost(task, host, time.monotonic())
        self._actor(host).submit.remote(task)

    def drop(self, name: str) -> None:
        """Give a run up. One that is being trained by itself ends at its next step."""
        on = self._on_host.pop(name, None)
        self.steps.pop(name, None)
        if name in self._groups:
            self._dropped.add(name)
            ray_workers.stop_training(self.store, self._groups[name].task.inputs)
        if on is not None:
            with contextlib.suppress(Exception):  # a dead process has dropped it already
                self._actors[on.host].drop.remote(name)

    def poll(self) -> list[Result]:
        """What has ended since the last time."""
        import ray

        ended, self._group_results = self._group_results, []
        for result in ended:
            self._groups.pop(result.run.name, None)
        results = [result for result in ended if result.run.name not in self._dropped]
        self._dropped -= {result.run.name for result in ended}
        for host in {on.host for on in self._on_host.values()}:
            if host not in self._polls:
                self._polls[host] = self._actors[host].poll.remote()
            try:
                if not ray.wait([self._polls[host]], timeout=_ANSWER_S)[0]:
                    self._check_cluster()
                    continue
                state: State = ray.get(self._polls.pop(host))
            except KitaeError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever ended it: its runs are begun again
                results += self._bury(host, error)
                continue
            self.steps |= state.steps
            for text in state.notes:
                self.note(text)
            for result in state.results:
                if self._on_host.pop(result.run.name, None) is not None:
                    self.steps.pop(result.run.name, None)
                    results.append(result)
        return results

    def _check_cluster(self) -> None:
        if time.monotonic() - self._cluster_seen_s > _CLUSTER_EVERY_S:
            ray_workers.check_cluster(self.job_id)
            self._cluster_seen_s = time.monotonic()

    def close(self) -> None:
        """Let go of all workers. A thread that was still in Ray when the interpreter ends would take it down."""
        import ray

        for name, group in self._groups.items():
            if name not in self._dropped and group.thread.is_alive():
                with contextlib.suppress(KitaeError):  # the store is away: whatever ends the search says so
                    ray_workers.stop_training(self.store, group.task.inputs)
        until = time.monotonic() + _END_S
        for group in self._groups.values():
            group.thread.join(max(0.0, until - time.monotonic()))
        for actor in self._actors.values():
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self._actors.clear()

    def _hosts(self) -> int:
        if not self.compute.gpus_per_worker:
            return 1  # more would only share the same cores
        gpus = int(ray_workers.cluster_resources().get("GPU", 0.0))
        return max(1, min(self.parallel, gpus))

    def _group_places(self) -> int:
        """How many Ray Train groups the cluster holds at once."""
        have, compute = ray_workers.cluster_resources(), self.compute
        places = have.get("CPU", 0.0) / (compute.cpus_per_worker * compute.workers)
        if compute.gpus_per_worker:
            places = min(places, have.get("GPU", 0.0) / (compute.gpus_per_worker * compute.workers))
        return max(1, min(self.parallel, int(places)))

    def _load(self, host: int) -> int:
        return sum(on.host == host for on in self._on_host.values())

    def _actor(self, host: int) -> Any:
        if host not in self._actors:
            device = "cuda" if self.compute.gpus_per_worker else "cpu"
            self._actors[host] = ray_workers.start_actor(Host, self.store, device, compute=self.compute)
        return self._actors[host]

    def _bury(self, host: int, error: Exception) -> list[Result]:
        """A process died: its runs have no place, and begin again where they were; a run seen too often does not.

        Raises TrainingError where all of Ray is gone.
        """
        import ray

        ray_workers.check_cluster(self.job_id)
        with contextlib.suppress(Exception):
            ray.kill(self._actors[host])
        self._actors.pop(host, None)
        self._polls.pop(host, None)
        lost = [on.task for on in self._on_host.values() if on.host == host]
        why = ray_workers.explain(error, "a process of the search ended")
        self.note(f"{why}; {len(lost)} run(s) go on from their last checkpoints")
        results = []
        for task in lost:
            name = task.run.name
            del self._on_host[name]
            self.steps.pop(name, None)
            self._deaths[name] += 1
            if self._deaths[name] >= _LIVES:
                status = "out_of_memory" if isinstance(why, MachineError) else "lost"
                results.append(Result(run=task.run, status=status, error=f"{why} ({_LIVES} times)"))
        return results

    def _run_group(self, task: Task) -> None:
        clock = Clock()

        def report(done: float, *_: object) -> None:
            clock.step()
            self.steps[task.run.name] = int(done)

        try:
            ray_workers.train_on_workers(
                task.inputs, self.store, job_id=self.job_id, attempt=self.attempt, report=report
            )
            result = alone_result(self.store, task) or failed(task.run, TrainingError("it was stopped before its end"))
            result = clock.timed(result)
        except KitaeError as error:
            result = failed(task.run, error)
        except Exception as error:  # noqa: BLE001  # told as the run's end
            result = Result(run=task.run, status="failed", error=repr(error))
        self.steps.pop(task.run.name, None)
        self._group_results.append(result)
