"""A process that outlives trials: base models and rows stay in memory while trials come and go.

Owns which trials can share a base, and how the others run here one after another. Runs without Ray; `driver` puts it
into actors, whose clients are Ray Tune's trials (`trainables`).
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ray_jobs.data.encoding import Encoded
from ray_jobs.errors import KitaeError, LossNotFinite, MachineError, TrainingError
from ray_jobs.models import fetch_base, load_config, require_memory, resolve_precision
from ray_jobs.sharing.adapters import SharedLora
from ray_jobs.sharing.concurrent_passes import ConcurrentPasses
from ray_jobs.sharing.features import SharedFeatures, Unshareable
from ray_jobs.sharing.segments import Result, SegmentStatus, TrialSegment
from ray_jobs.sharing.trial_group import Sharing, TrialGroup, TrialTask, first_position, pass_tokens, result_of
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.training import checkpoint
from ray_jobs.training.batching import is_packed
from ray_jobs.training.inputs import TRAIN_FILE, VALIDATION_FILE, TrainHooks, TrainInputs, encoded_file
from ray_jobs.training.machine_errors import memory_errors
from ray_jobs.training.trainer import train

if TYPE_CHECKING:
    import torch

Mode = Literal["shared", "alone", "workers"]
_GROUPS_KEPT = 2
"""Base models that stay in memory without a trial."""


@dataclass(frozen=True)
class SegmentState:
    """A shared trainer's answer about one segment."""

    process: str
    """Another than at the submission: the process died since, and the segment must be submitted again."""
    result: Result | None
    step: int | None
    """Steps taken. None: it has ended, or it was given up."""
    waits: bool
    """Whether it has not started yet."""
    notes: tuple[str, ...]
    """Why trials do not share."""


def mode_of(spec: JobSpec) -> tuple[Mode, str]:
    """The mode in which a trial runs, and why it cannot share. Pure."""
    training, compute = spec.training, spec.compute
    if compute.zero_stage == 3 or compute.offload != "none":
        why = f"compute.zero_stage {compute.zero_stage} splits or moves the weights"
    elif training.method in ("full", "qlora"):
        why = f"method: {training.method} leaves no base to share"
    elif training.method == "lora" and training.lora.dropout:
        why = "lora.dropout draws differently in a shared pass"
    elif not TASKS[spec.task].shares_passes:
        why = f"task: {spec.task} computes its loss for a whole batch"
    else:
        return "shared", ""
    return ("workers" if compute.workers > 1 else "alone"), why


class SharedTrainer:
    """The trials of one process. Its methods may be called while it works."""

    def __init__(self, store: Workspace, device: str) -> None:
        import torch

        self._store, self._device = store, torch.device(device)
        # On a GPU a pass is as large as fits; on a CPU each thread has a pass.
        self._concurrent = ConcurrentPasses(torch.get_num_threads() if self._device.type == "cpu" else 1)
        self._groups: dict[str, TrialGroup] = {}
        self._process = uuid.uuid4().hex
        self._waiting: list[TrialTask] = []
        self._alone: set[str] = set()
        self._dropped: set[str] = set()
        self._results: dict[str, Result] = {}
        self._steps: dict[str, int] = {}
        self._notes: list[str] = []
        self._changed = threading.Condition()
        self._closed = False
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="trials", daemon=True)
        self._thread.start()

    def submit(self, task: TrialTask, *, alone: bool = False) -> str:
        """Queue a trial segment, once. Returns this process's name.

        `alone`: no other segment runs beside it, so that one that ends the process is known.
        """
        name = task.run.name
        with self._changed:
            if alone:
                self._alone.add(name)
            if name not in self._steps and name not in self._results:
                self._waiting.append(task)
                self._steps[name] = 0
                self._changed.notify()
        return self._process

    def drop(self, name: str) -> None:
        """Give a segment up; it gets no result."""
        with self._changed:
            self._waiting = [task for task in self._waiting if task.run.name != name]
            if self._steps.pop(name, None) is not None:
                self._dropped.add(name)

    def state(self, name: str) -> SegmentState:
        """The result and progress of a segment. Raises the error that ended the work, if any."""
        with self._changed:
            if self._broken is not None:
                raise self._broken
            waits = any(task.run.name == name for task in self._waiting)
            return SegmentState(
                self._process, self._results.get(name), self._steps.get(name), waits, tuple(self._notes)
            )

    def load(self) -> int:
        """Segments that run or wait here."""
        return len(self._steps)

    def end_if_broken(self) -> None:
        """End the process if its work ended by an error, so that Ray starts another."""
        if self._broken is not None:
            os._exit(1)

    def close(self) -> None:
        """End the work after the current round."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _work(self) -> None:
        import torch

        torch.set_num_threads(torch.get_num_threads())  # OpenMP keeps the number by thread
        try:
            with memory_errors():
                while not self._closed:
                    self._round()
        except BaseException as error:  # noqa: BLE001  # raised by `state`
            self._broken = error
        finally:
            self._concurrent.close()

    def _round(self) -> None:
        with self._changed:
            idle = not self._waiting and not any(group.trials for group in self._groups.values())
            if idle:
                self._changed.wait(0.5)
            tasks = self._due()
            dropped, self._dropped = self._dropped, set()
        for group in self._groups.values():
            for name in dropped & set(group.trials):
                group.drop(name)
        for task in tasks:
            if mode_of(task.inputs.spec)[0] != "shared" or not self._admit(task):
                self._end(task.run, self._train_alone(task))
        for group in self._groups.values():
            if group.trials:
                for result in group.round():
                    self._end(result.run, result)
                with self._changed:
                    self._steps |= {n: trial.state.step for n, trial in group.trials.items() if n in self._steps}

    def _due(self) -> list[TrialTask]:
        """Take the waiting segments that may start now."""
        running = {name for group in self._groups.values() for name in group.trials}
        due: list[TrialTask] = []
        for task in list(self._waiting):
            if running & self._alone or (running and task.run.name in self._alone):
                break  # the first in the queue starts first
            running.add(task.run.name)
            due.append(task)
            self._waiting.remove(task)
        return due

    def _end(self, run: TrialSegment, result: Result | None) -> None:
        with self._changed:
            if run.name in self._steps and result is not None:
                self._results[run.name] = result
            self._steps.pop(run.name, None)

    def _note(self, text: str) -> None:
        with self._changed:
            if text not in self._notes:
                self._notes.append(text)

    def _admit(self, task: TrialTask) -> bool:
        """Add a segment to the group of its base. Returns False when it cannot share after all."""
        started = time.monotonic()
        try:
            group = self._group(task.inputs)
            group.add(task)
        except Unshareable as why:
            self._note(f"trials run one after another: {why}")
            return False
        except KitaeError as error:
            self._end(task.run, failed(task.run, error))
            return True
        group.trials[task.run.name].start_s = time.monotonic() - started
        return True

    def _group(self, inputs: TrainInputs) -> TrialGroup:
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

    def _make_group(self, inputs: TrainInputs, depth: int) -> TrialGroup:
        spec, labels = inputs.spec, inputs.labels
        directory, encoded = self._store.fetch(inputs.base_key), self._store.fetch(inputs.encoded_key)
        require_memory(directory, resolve_precision(spec), self._device)
        rows, held_out = Encoded.load(encoded / TRAIN_FILE), Encoded.load(encoded_file(encoded, VALIDATION_FILE))
        sharing: Sharing
        if spec.training.method == "frozen":
            blocks = int(load_config(directory).get("num_hidden_layers", depth))
            sharing = SharedFeatures.load(spec, directory, labels, rows, held_out, self._device, min(depth, blocks))
        else:
            sharing = SharedLora.load(spec, directory, labels, rows, self._device)
        limit = pass_tokens(spec.training.micro_batch_tokens, self._device)
        return TrialGroup(self._store, sharing, rows, held_out, is_packed(spec), limit, self._concurrent)

    def _train_alone(self, task: TrialTask) -> Result | None:
        """Run the job's own loop in this process."""
        run = task.run
        if mode_of(task.inputs.spec)[1]:
            self._note(f"trials run one after another: {mode_of(task.inputs.spec)[1]}")
        ensure_process_group(self._device)
        clock = TrialClock()

        def progress(step: int) -> None:
            clock.step()
            with self._changed:
                if run.name in self._steps:
                    self._steps[run.name] = step

        try:
            base = fetch_base(self._store, task.inputs.base_key)
            if base is not None:
                require_memory(base, resolve_precision(task.inputs.spec), self._device)
            hooks = TrainHooks(
                on_progress=lambda now: progress(now.step),
                should_stop=lambda: self._closed or run.name not in self._steps,
            )
            train(task.inputs, self._store, hooks)
        except KitaeError as error:
            return failed(run, error)
        result = result_of_training(self._store, task)
        return result and clock.timed(result)


class TrialClock:
    """Times a segment that does not share: the start up to the end of its first step, and the rest."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._start_s: float | None = None

    def step(self) -> None:
        """Record the end of a step."""
        if self._start_s is None:
            self._start_s = time.monotonic() - self._started

    def trained_s(self) -> float:
        """Seconds since the end of the first step."""
        return time.monotonic() - self._started - (self._start_s or 0.0)

    def timed(self, result: Result) -> Result:
        """The result with its times. Call when the segment has ended."""
        return result.model_copy(update={"seconds": self.trained_s(), "start_s": self._start_s or 0.0})


def result_of_training(store: Workspace, task: TrialTask) -> Result | None:
    """The result of a segment that did not share, from its checkpoints. None: it was stopped before its end."""
    last = checkpoint.latest(store, task.inputs.checkpoints)
    if last is None or last.position.step < task.run.until:
        return None
    first = first_position(store, task.inputs)
    return result_of(store, task.run, task.inputs.checkpoints, last.position, first)


def failed(run: TrialSegment, error: KitaeError) -> Result:
    """The result of a segment that raised an error."""
    status: SegmentStatus = "failed"
    if isinstance(error, LossNotFinite):
        status = "not_finite"
    elif isinstance(error, TrainingError):
        status = "lost"
    elif isinstance(error, MachineError):
        status = "out_of_memory"
    return Result(run=run, status=status, error=str(error))


def ensure_process_group(device: torch.device) -> None:
    """Create the process group of one that the training loop needs."""
    import os

    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")
        backend = "nccl" if device.type == "cuda" else "gloo"
        alone = torch._C._distributed_c10d.HashStore()  # needs no port
        dist.init_process_group(backend, store=alone, rank=0, world_size=1)
