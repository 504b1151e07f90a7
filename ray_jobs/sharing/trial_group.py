"""Trials that share a process and a base model: one step of each in turn, their rows in the same forward passes.

Each trial has its own optimizer, schedule, data order, gradient norm and checkpoints, and reaches the losses of a
training of its own. Owns which rows share a pass and what happens to a trial that fails; `adapters` and `features` own
how the forward pass is shared, `training.step` what a step is. Runs without Ray.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict

from ray_jobs.data.encoding import Encoded
from ray_jobs.errors import KitaeError, LossNotFinite
from ray_jobs.sharing.adapters import TrialRows
from ray_jobs.sharing.concurrent_passes import ConcurrentPasses
from ray_jobs.sharing.segments import Result, TrialSegment
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.tasks.base import Example, Scores, loss_sum, scored
from ray_jobs.training import checkpoint
from ray_jobs.training.adamw import MasterWeights
from ray_jobs.training.batching import Group, batch_plan, split
from ray_jobs.training.checkpoint import Position, Writer
from ray_jobs.training.inputs import TrainInputs
from ray_jobs.training.lr_schedule import decay_start
from ray_jobs.training.machine_errors import memory_errors, out_of_memory
from ray_jobs.training.step import TrainingState, restored, to_resume

if TYPE_CHECKING:
    import torch

_CPU_PASS_TOKENS = 128


class Sharing(Protocol):
    """How trials share their base model. On a CPU several threads may call `logits` at once."""

    mixes: bool
    """Whether one pass computes rows of several trials together, rather than trial by trial."""

    def add(self, name: str, spec: JobSpec) -> dict[str, torch.nn.Parameter]: ...

    def remove(self, name: str) -> None: ...

    def tokens(self, example: Example) -> int:
        """Tokens of a row that a pass computes."""
        ...

    def logits(self, parts: Sequence[TrialRows]) -> list[tuple[torch.Tensor, torch.Tensor]]: ...


class TrialTask(BaseModel):
    """A trial segment, and what it trains on."""

    model_config = ConfigDict(frozen=True)

    run: TrialSegment
    inputs: TrainInputs
    """With `until`."""


@dataclass
class Trial:
    """A trial segment in progress."""

    run: TrialSegment
    state: TrainingState
    optimizer: MasterWeights
    first: Position
    """Position at the segment's start, even if it resumes from a later checkpoint."""
    seconds: float = 0.0
    """Its share of the rounds, by tokens."""
    start_s: float = 0.0

    @property
    def name(self) -> str:
        return self.run.name


@dataclass
class TrialGroup:
    """The trials of one process on one base model."""

    store: Workspace
    sharing: Sharing
    rows: Encoded
    held_out: Encoded
    packed: bool
    limit: int
    """Most tokens of a forward pass."""
    concurrent: ConcurrentPasses = field(default_factory=ConcurrentPasses)
    """Runs the passes; several at a time only on a CPU."""
    trials: dict[str, Trial] = field(default_factory=dict)

    def add(self, task: TrialTask) -> None:
        """Start a trial segment from its last checkpoint, its source or the base. Raises what `Sharing.add` raises."""
        started = time.monotonic()
        run, inputs, spec = task.run, task.inputs, task.inputs.spec
        found = to_resume(self.store, inputs.checkpoints, inputs.until)
        weights = self.sharing.add(run.name, spec)
        optimizer = restored(self.store, found, weights, lambda: MasterWeights(weights, spec))
        writer = Writer(self.store, inputs.checkpoints, f"{time.time_ns():x}", 0, 1, spec.training.checkpoints_to_keep)
        position = found.position if found is not None else Position()
        state = TrainingState(spec, batch_plan(spec, self.rows), inputs.until, optimizer, writer, position)
        trial = Trial(run, state, optimizer, first_position(self.store, inputs))
        trial.start_s = time.monotonic() - started
        self.trials[run.name] = trial

    def drop(self, name: str) -> None:
        """Give a trial segment up."""
        trial = self.trials.pop(name)
        trial.state.writer.close()
        self.sharing.remove(name)

    def round(self) -> list[Result]:
        """Take one step of every trial. Returns the results of the segments that ended; their checkpoints are saved."""
        started = time.monotonic()
        due = [trial for trial in self.trials.values() if trial.state.step < trial.state.end]
        sums, failed = self._losses(due)
        tokens = {trial.name: trial.state.plan.tokens_in(trial.state.step) for trial in due}
        for trial in due:
            try:
                if trial.name not in failed:
                    trial.state.take(sums[trial.name])
            except LossNotFinite as error:
                failed[trial.name] = error
        spent, whole = time.monotonic() - started, sum(tokens.values()) or 1
        for trial in due:
            trial.seconds += spent * tokens[trial.name] / whole
        going = [trial for trial in self.trials.values() if trial.name not in failed]
        for trial in going:
            if trial in due and trial.state.step == decay_start(trial.state.end):
                trial.state.save()
        ended = [trial for trial in going if trial.state.step >= trial.state.end]
        for trial in ended:  # uploads run while the next trial is scored
            try:
                self._finish(trial)
            except LossNotFinite as error:
                failed[trial.name] = error
        results = [self._failed(name, error) for name, error in failed.items()]
        results += [self.committed(trial) for trial in ended if trial.name not in failed]
        for result in results:
            self.drop(result.run.name)
        return results

    def _losses(self, trials: Sequence[Trial]) -> tuple[dict[str, float], dict[str, KitaeError]]:
        """Each trial's loss sum, with its gradients computed; and the errors of the trials that ran out of memory.

        A pass that does not fit into memory is tried again in halves, down to a row each, and one at a time; then the
        newest trial fails. When a loss is not finite, each trial gets passes of its own, since a kernel may carry it
        over to the others.
        """
        failed: dict[str, KitaeError] = {}
        due = list(trials)
        while True:
            try:
                with memory_errors():
                    sums = self._passes(due)
                break
            except MemoryError:
                _clear_gradients(due)
                longest = max(self.sharing.tokens(example) for trial in due for example in self._rows_of(trial))
                if self.limit > longest:
                    self.limit = max(longest, self.limit // 2)
                    continue
                if self.concurrent.threads > 1:
                    self.concurrent = ConcurrentPasses()
                    continue
                last = due.pop()
                failed[last.name] = out_of_memory(last.state.spec)
                if not due:
                    return {}, failed
        if len(due) > 1 and not all(math.isfinite(sums[trial.name]) for trial in due):
            _clear_gradients(due)
            sums = self._passes(due, mixed=False)
        return sums, failed

    def _rows_of(self, trial: Trial) -> list[Example]:
        return [self.rows[i] for i in trial.state.plan.rows_of(trial.state.step)]

    def _passes(self, trials: Sequence[Trial], *, mixed: bool = True) -> dict[str, float]:
        """Forward and backward passes: each trial's loss sum.

        All passes of a trial run in one thread, so that its gradients add up in one order.
        """
        if mixed and self.sharing.mixes:
            tokens = [trial.state.plan.tokens_in(trial.state.step) for trial in trials]
            shares = [[trials[i] for i in share] for share in spread(tokens, self.concurrent.threads)]
            # Every other thread begins with its shortest rows, so that not all need most memory at once.
            jobs = [partial(self._passes_of, share, longest_first=i % 2 == 0) for i, share in enumerate(shares)]
        else:
            jobs = [partial(self._passes_of, [trial]) for trial in trials]
        return {name: total for sums in self.concurrent.run(jobs) for name, total in sums.items()}

    def _passes_of(self, trials: Sequence[Trial], *, longest_first: bool = True) -> dict[str, float]:
        sums = {trial.name: 0.0 for trial in trials}
        supervised = {trial.name: trial.state.plan.supervised_in(trial.state.step) for trial in trials}
        examples = [(trial.name, example) for trial in trials for example in self._rows_of(trial)]
        groups = self._groups([example for _, example in examples])
        for group in groups if longest_first else reversed(groups):
            parts: dict[str, list[Example]] = {}
            for i in sorted(group):  # in the order of the trials
                parts.setdefault(examples[i][0], []).append(examples[i][1])
            for name, loss in self._backward(parts, supervised).items():
                sums[name] += loss
        return sums

    def _backward(self, parts: Mapping[str, Sequence[Example]], supervised: Mapping[str, int]) -> dict[str, float]:
        """One pass: each trial's loss sum, with the gradients of its mean. Frees the pass's memory when it returns."""
        losses = [loss_sum(*part) for part in self.sharing.logits(list(parts.items()))]
        total = sum(loss / supervised[name] for name, loss in zip(parts, losses, strict=True))
        total.backward()  # type: ignore[union-attr]  # there is at least one part
        return {name: float(loss.detach()) for name, loss in zip(parts, losses, strict=True)}

    def _finish(self, trial: Trial) -> None:
        """Score a trial and begin to save it. Raises LossNotFinite."""
        started = time.monotonic()
        trial.state.measured(self.score(trial.name))
        trial.state.save()
        trial.seconds += time.monotonic() - started

    def committed(self, trial: Trial) -> Result:
        """Wait for a trial's checkpoint. Returns its result."""
        started = time.monotonic()
        trial.state.writer.wait()
        trial.seconds += time.monotonic() - started
        return self._result(trial, status="ok")

    def score(self, name: str) -> Scores:
        """Score one trial's model, which has no dropout to switch off, on the held-out rows."""
        import torch

        examples = [self.held_out[i] for i in range(len(self.held_out))]

        def part(group: Sequence[int]) -> Scores:
            with torch.no_grad():  # by thread
                ((logits, targets),) = self.sharing.logits([(name, [examples[i] for i in group])])
                return scored(logits, targets).total()

        return sum(self.concurrent.run([partial(part, group) for group in self._groups(examples)]), Scores())

    def _groups(self, examples: Sequence[Example]) -> tuple[Group, ...]:
        lengths = [self.sharing.tokens(example) for example in examples]
        return split(range(len(examples)), lengths, 1, self.limit, packed=self.packed)

    def _failed(self, name: str, error: KitaeError) -> Result:
        status = "not_finite" if isinstance(error, LossNotFinite) else "out_of_memory"
        return self._result(self.trials[name], status=status, error=str(error))

    def _result(self, trial: Trial, **facts: object) -> Result:
        state = trial.state
        return result_of(self.store, trial.run, state.writer.prefix, state.position, trial.first).model_copy(
            update={"seconds": trial.seconds, "start_s": trial.start_s, "shared": True, **facts}
        )


def first_position(store: Workspace, inputs: TrainInputs) -> Position:
    """Position at a segment's start: of its source's checkpoint, or of the base model."""
    until = inputs.until
    source = checkpoint.load(store, until.resume_from) if until is not None and until.resume_from is not None else None
    return source.position if source is not None else Position()


def result_of(store: Workspace, run: TrialSegment, checkpoints: str, position: Position, first: Position) -> Result:
    """The result of a segment, from its last position and its checkpoints."""
    whole = {found.position.step: found for found in checkpoint.committed(store, checkpoints)}
    trunk, end = whole.get(decay_start(run.until)), whole.get(run.until)
    return Result(
        run=run,
        status="ok",
        loss=position.held_out_loss,
        accuracy=position.held_out_accuracy,
        steps=position.step - first.step,
        tokens=position.tokens - first.tokens,
        trunk=trunk.key if trunk else None,
        checkpoint=end.key if end else None,
        losses=position.losses,
        stored_bytes=sum(found.size_bytes for found in whole.values()),
    )


def pass_tokens(micro_batch_tokens: int, device: torch.device) -> int:
    """Most tokens of a forward pass. Pure.

    A CPU computes a token hardly faster in a larger pass than in one of 128, and the activations of concurrent passes
    add up.
    """
    return min(micro_batch_tokens, _CPU_PASS_TOKENS) if device.type == "cpu" else micro_batch_tokens


def spread(sizes: Sequence[int], shares: int) -> list[list[int]]:
    """Share items out by size, the largest first, each to the smallest share; indices in order. Pure."""
    groups: list[list[int]] = [[] for _ in range(min(shares, len(sizes)))]
    totals = [0] * len(groups)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = totals.index(min(totals))
        groups[least].append(i)
        totals[least] += sizes[i]
    return [sorted(group) for group in groups]


def _clear_gradients(trials: Sequence[Trial]) -> None:
    for trial in trials:
        trial.optimizer.clear_gradients()
