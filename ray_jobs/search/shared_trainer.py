"""A process that outlives trials: bases and rows stay in memory, trials come and go.

Owns which trials can share and how the others run here, one after another. Runs without Ray; `executors` puts it into
actors.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from ray_jobs.data.encoding import Encoded
from ray_jobs.errors import KitaeError, MachineError, TrainingError
from ray_jobs.models import load_config, require_memory, resolve_precision
from ray_jobs.search.adapters import SharedLora
from ray_jobs.search.at_once import AtOnce
from ray_jobs.search.features import SharedFeatures, Unshareable
from ray_jobs.search.records import Result, Run, Status
from ray_jobs.search.together import Sharing, Together, pass_tokens, result_of
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store
from ray_jobs.training import checkpoint
from ray_jobs.training.checkpoint import Position
from ray_jobs.training.trainer import HELD_OUT_FILE, TRAIN_FILE, TrainInputs, is_packed, train

if TYPE_CHECKING:
    import torch

Mode = Literal["shared", "alone", "workers"]
_GROUPS_KEPT = 2
"""Bases that stay in memory while no trial is on them."""


class Task(BaseModel):
    """A run, and all it needs by its place in the store."""

    model_config = ConfigDict(frozen=True)

    run: Run
    inputs: TrainInputs
    """With its stretch."""


@dataclass(frozen=True)
class State:
    """What a host says of itself."""

    results: tuple[Result, ...]
    """Since the last time it was asked."""
    steps: dict[str, int]
    """Of the runs on their way."""
    notes: tuple[str, ...]
    """Why trials do not share, each told once."""


def mode_of(spec: JobSpec) -> tuple[Mode, str]:
    """Where a trial can run, and why no better. Pure."""
    training, compute = spec.training, spec.compute
    if compute.zero_stage == 3 or compute.offload != "none":
        why = f"compute.zero_stage {compute.zero_stage} splits or moves the weights"
    elif training.method in ("full", "qlora"):
        why = f"method: {training.method} leaves no base to share"
    elif training.method == "lora" and training.lora.dropout:
        why = "lora.dropout draws differently in a shared pass"
    else:
        return "shared", ""
    return ("workers" if compute.workers > 1 else "alone"), why


class Host:
    """The trials of one process. `submit`, `drop` and `poll` may be called while it works."""

    def __init__(self, store: Store, device: str) -> None:
        import torch

        self._store, self._device = store, torch.device(device)
        # A GPU's passes are as large as fits; a CPU has one a thread.
        self._at_once = AtOnce(torch.get_num_threads() if self._device.type == "cpu" else 1)
        self._groups: dict[str, Together] = {}
        self._waiting: list[Task] = []
        self._dropped: set[str] = set()
        self._results: list[Result] = []
        self._steps: dict[str, int] = {}
        self._notes: list[str] = []
        self._told: set[str] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="trials", daemon=True)
        self._thread.start()

    def submit(self, task: Task) -> None:
        with self._changed:
            self._waiting.append(task)
            self._steps[task.run.name] = 0
            self._changed.notify()

    def drop(self, name: str) -> None:
        """Give a run up; it gets no result."""
        with self._changed:
            self._waiting = [task for task in self._waiting if task.run.name != name]
            self._steps.pop(name, None)
            self._dropped.add(name)

    def poll(self) -> State:
        """Raises what ended the work, if something unforeseen did."""
        with self._changed:
            if self._broken is not None:
                raise self._broken
            state = State(tuple(self._results), dict(self._steps), tuple(self._notes))
            self._results, self._notes = [], []
        return state

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _work(self) -> None:
        import torch

        torch.set_num_threads(torch.get_num_threads())  # OpenMP keeps it a thread
        try:
            while not self._closed:
                self._round()
        except BaseException as error:  # noqa: BLE001  # told to whoever polls
            self._broken = error
        finally:
            self._at_once.close()

    def _round(self) -> None:
        with self._changed:
            idle = not self._waiting and not any(group.trials for group in self._groups.values())
            if idle:
                self._changed.wait(0.5)
            tasks, self._waiting = self._waiting, []
            dropped, self._dropped = self._dropped, set()
        for group in self._groups.values():
            for name in dropped & set(group.trials):
                group.drop(name)
        for task in tasks:
            if mode_of(task.inputs.spec)[0] != "shared" or not self._admit(task):
                self._tell(task.run, self._alone(task))
        for group in self._groups.values():
            if group.trials:
                for result in group.round():
                    self._tell(result.run, result)
                with self._changed:
                    self._steps |= {n: trial.step for n, trial in group.trials.items() if n in self._steps}

    def _tell(self, run: Run, result: Result | None) -> None:
        with self._changed:
            if run.name in self._steps and result is not None:
                self._results.append(result)
            self._steps.pop(run.name, None)

    def _note(self, text: str) -> None:
        with self._changed:
            if text not in self._told:
                self._told.add(text)
                self._notes.append(text)

    def _admit(self, task: Task) -> bool:
        """Let a run join those on the same base. False: it cannot share after all."""
        started = time.monotonic()
        try:
            group = self._group(task.inputs)
            stretch = task.inputs.stretch
            assert stretch is not None
            group.add(task.run, task.inputs.spec, task.inputs.checkpoints, stretch)
        except Unshareable as why:
            self._note(f"trials run one after another: {why}")
            return False
        except KitaeError as error:
            self._tell(task.run, failed(task.run, error))
            return True
        group.trials[task.run.name].start_s = time.monotonic() - started
        return True

    def _group(self, inputs: TrainInputs) -> Together:
        spec = inputs.spec
        training = spec.training
        frozen = training.method == "frozen"
        depth = training.trainable_blocks if frozen else 0
        alike = (
            training.method, depth, training.micro_batch_tokens, training.packing, training.precision,
            training.gradient_checkpointing,
        )  # fmt: skip
        key = repr((inputs.base_key, inputs.encoded_key, alike))
        if key not in self._groups:
            for other in [k for k, group in self._groups.items() if not group.trials]:
                if len(self._groups) >= _GROUPS_KEPT:
                    del self._groups[other]
            self._groups[key] = self._make_group(inputs, depth)
        return self._groups[key]

    def _make_group(self, inputs: TrainInputs, depth: int) -> Together:
        spec, labels = inputs.spec, inputs.labels
        directory, encoded = self._store.fetch(inputs.base_key), self._store.fetch(inputs.encoded_key)
        require_memory(directory, resolve_precision(spec), self._device)
        rows, held_out = Encoded.load(encoded / TRAIN_FILE), Encoded.load(encoded / HELD_OUT_FILE)
        sharing: Sharing
        if spec.training.method == "frozen":
            blocks = int(load_config(directory).get("num_hidden_layers", depth))
            sharing = SharedFeatures.load(spec, directory, labels, rows, held_out, self._device, min(depth, blocks))
        else:
            sharing = SharedLora.load(spec, directory, labels, rows, self._device)
        limit = pass_tokens(spec.training.micro_batch_tokens, self._device)
        return Together(self._store, sharing, rows, held_out, is_packed(spec), limit, self._at_once)

    def _alone(self, task: Task) -> Result | None:
        """The job's own loop, in this process."""
        run = task.run
        if mode_of(task.inputs.spec)[1]:
            self._note(f"trials run one after another: {mode_of(task.inputs.spec)[1]}")
        ensure_group(self._device)
        clock = Clock()

        def progress(step: int) -> None:
            clock.step()
            with self._changed:
                if run.name in self._steps:
                    self._steps[run.name] = step

        try:
            base = self._store.fetch(task.inputs.base_key)
            require_memory(base, resolve_precision(task.inputs.spec), self._device)
            train(
                task.inputs,
                self._store,
                on_progress=lambda now: progress(now.step),
                should_stop=lambda: self._closed or run.name not in self._steps,
            )
        except KitaeError as error:
            return failed(run, error)
        result = alone_result(self._store, task)
        return result and clock.timed(result)


class Clock:
    """Times a run by itself: its start, up to the end of its first step, and the rest."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._start_s: float | None = None

    def step(self) -> None:
        """A step has ended."""
        if self._start_s is None:
            self._start_s = time.monotonic() - self._started

    def timed(self, result: Result) -> Result:
        """The run has ended."""
        start_s = self._start_s or 0.0
        seconds = time.monotonic() - self._started - start_s
        return result.model_copy(update={"seconds": seconds, "start_s": start_s})


def alone_result(store: Store, task: Task) -> Result | None:
    """What a run by itself came to, by its checkpoints. None: it was stopped before its end."""
    stretch = task.inputs.stretch
    assert stretch is not None
    before = checkpoint.load(store, stretch.source) if stretch.source else None
    last = checkpoint.latest(store, task.inputs.checkpoints)
    if last is None or last.position.step < stretch.rung:
        return None
    first = before.position if before is not None else Position()
    return result_of(store, task.run, task.inputs.checkpoints, last.position, first)


def failed(run: Run, error: KitaeError) -> Result:
    """The result of a run that raised."""
    status: Status = "failed"
    if isinstance(error, TrainingError):
        status = "not_finite" if "loss is" in error.message else "lost"
    elif isinstance(error, MachineError):
        status = "out_of_memory"
    return Result(run=run, status=status, error=str(error))


def ensure_group(device: torch.device) -> None:
    """The process group of one that the job's loop needs."""
    import os

    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")
        backend = "nccl" if device.type == "cuda" else "gloo"
        alone = torch._C._distributed_c10d.HashStore()  # no port to be taken
        dist.init_process_group(backend, store=alone, rank=0, world_size=1)
