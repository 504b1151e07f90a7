"""Many trials in one process: a step of each in turn, their rows in the same forward passes.

Every trial has its own optimizer, schedule, data order, gradient norm and checkpoints, and comes to the losses that it
would have come to alone. Owns the loop; how the forward pass is shared is `adapters`' and `features`'. Runs without
Ray.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from ray_jobs import models
from ray_jobs.data.encoding import Encoded
from ray_jobs.errors import KitaeError, TrainingError
from ray_jobs.search.adapters import Share
from ray_jobs.search.at_once import AtOnce
from ray_jobs.search.records import Result, Run
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store
from ray_jobs.tasks.base import Example, Scores, loss_sum, scores_of
from ray_jobs.training import checkpoint, deepspeed_engine
from ray_jobs.training.batching import BatchPlan
from ray_jobs.training.checkpoint import Position, State, Writer
from ray_jobs.training.lr_schedule import learning_rate_at, trunk_end
from ray_jobs.training.trainer import Stretch, batch_plan, is_out_of_memory, not_finite, out_of_memory

if TYPE_CHECKING:
    import torch

_CPU_PASS_TOKENS = 128


class Sharing(Protocol):
    """How the trials of a process share their base. On a CPU `logits` may be called by several threads at once."""

    mixes: bool
    """Whether rows of several trials in one pass are computed together, and not trial by trial."""

    def add(self, name: str, spec: JobSpec) -> dict[str, torch.nn.Parameter]: ...

    def remove(self, name: str) -> None: ...

    def tokens(self, example: Example) -> int:
        """What a row takes of a pass."""
        ...

    def logits(self, parts: Sequence[Share]) -> list[tuple[torch.Tensor, torch.Tensor]]: ...


@dataclass
class Trial:
    """One run on its way."""

    run: Run
    spec: JobSpec
    plan: BatchPlan
    weights: dict[str, torch.nn.Parameter]
    masters: list[torch.nn.Parameter]
    """What the optimizer steps: the weights themselves, or, in bf16, their fp32 originals."""
    optimizer: torch.optim.AdamW
    writer: Writer
    first: Position
    """Where the run begins, whoever has done a part of it before."""
    position: Position
    seconds: float = 0.0
    """Its share of the rounds, by tokens."""
    start_s: float = 0.0

    @property
    def step(self) -> int:
        return self.position.step

    def rate(self, step: int) -> float:
        return learning_rate_at(step, self.plan.total_steps, self.spec, rung=self.run.until)

    def gather(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """As `zero.gather_state`."""
        for name, master in zip(self.weights, self.masters, strict=True):
            whole = {"weight": master} | {key: self.optimizer.state[master][key] for key in deepspeed_engine.MOMENTS}
            yield name, {key: tensor.detach().float().cpu().clone() for key, tensor in whole.items()}


@dataclass
class Together:
    """The trials of one process on one base."""

    store: Store
    sharing: Sharing
    rows: Encoded
    held_out: Encoded
    packed: bool
    limit: int
    """Most tokens of a forward pass."""
    at_once: AtOnce = field(default_factory=AtOnce)
    """Where passes run; more than one at a time only on a CPU."""
    trials: dict[str, Trial] = field(default_factory=dict)

    def add(self, run: Run, spec: JobSpec, checkpoints: str, stretch: Stretch) -> None:
        """Take a run in: from its own last checkpoint, its source, or the base. Raises what `Sharing.add` does."""
        started = time.monotonic()
        weights = self.sharing.add(run.name, spec)
        source = checkpoint.load(self.store, stretch.source) if stretch.source is not None else None
        first = source.position if source is not None else Position()
        found = checkpoint.latest(self.store, checkpoints) or source
        state = None if found is None else checkpoint.load_state(self.store, found)
        masters = _masters(weights, spec)
        optimizer = deepspeed_engine.adamw(masters, spec.training.weight_decay, 0.0)
        position = found.position if found is not None else Position()
        if state is not None:
            _restore(weights, masters, optimizer, state, steps=position.step)
        writer = Writer(self.store, checkpoints, f"{time.time_ns():x}", 0, 1, spec.training.checkpoints_to_keep)
        writer.pinned = frozenset({trunk_end(run.until)})
        trial = Trial(run, spec, batch_plan(spec, self.rows), weights, masters, optimizer, writer, first, position)
        trial.start_s = time.monotonic() - started
        self.trials[run.name] = trial

    def drop(self, name: str) -> None:
        """Let a run go."""
        trial = self.trials.pop(name)
        trial.writer.close()
        self.sharing.remove(name)

    def round(self) -> list[Result]:
        """A step of every trial. What ended with it: each run's result, whose checkpoints are in the store."""
        started = time.monotonic()
        due = [trial for trial in self.trials.values() if trial.step < trial.run.until]
        sums, failed = self._losses(due)
        for trial in due:
            if trial.run.name not in failed:
                self._take_step(trial, sums[trial.run.name])
        tokens = {trial.run.name: trial.plan.tokens_in(trial.step - 1) for trial in due if trial.step}
        spent, whole = time.monotonic() - started, sum(tokens.values()) or 1
        for trial in due:
            trial.seconds += spent * tokens.get(trial.run.name, 0) / whole
        going = [trial for trial in self.trials.values() if trial.run.name not in failed]
        for trial in going:
            if trial in due and trial.step == trunk_end(trial.run.until):
                trial.writer.save(trial.gather(), trial.position)
        ended = [trial for trial in going if trial.step >= trial.run.until]
        for trial in ended:  # while one is scored, those before it are uploaded
            try:
                self._finish(trial)
            except TrainingError as error:
                failed[trial.run.name] = error
        results = [self._failed(name, error) for name, error in failed.items()]
        results += [self._committed(trial) for trial in ended if trial.run.name not in failed]
        for result in results:
            self.drop(result.run.name)
        return results

    def _losses(self, trials: Sequence[Trial]) -> tuple[dict[str, float], dict[str, KitaeError]]:
        """Each trial's loss sum, with its gradients where they belong; and what failed.

        A pass that does not fit into memory is tried again in halves, down to a row each, and one at a time; then the
        trial that came last goes. Where a loss is no number, each trial has passes of its own, since a kernel may carry
        it over.
        """
        failed: dict[str, KitaeError] = {}
        due = list(trials)
        while True:
            try:
                sums = self._passes(due)
                break
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                _forget(due)
                longest = max(self.sharing.tokens(example) for trial in due for example in self._rows_of(trial))
                if self.limit > longest:
                    self.limit = max(longest, self.limit // 2)
                    continue
                if self.at_once.threads > 1:
                    self.at_once = AtOnce()
                    continue
                last = due.pop()
                failed[last.run.name] = out_of_memory(last.spec)
                if not due:
                    return {}, failed
        wrong = [trial for trial in due if not math.isfinite(sums[trial.run.name])]
        if wrong and len(due) > 1:
            _forget(due)
            sums = self._passes(due, mixed=False)
        for trial in due:
            mean = sums[trial.run.name] / trial.plan.supervised_in(trial.step)
            if not math.isfinite(mean):
                failed[trial.run.name] = not_finite(mean, trial.step, trial.run.until, trial.rate(trial.step))
        return sums, failed

    def _rows_of(self, trial: Trial) -> list[Example]:
        return [self.rows[i] for i in trial.plan.rows_of(trial.step)]

    def _passes(self, trials: Sequence[Trial], *, mixed: bool = True) -> dict[str, float]:
        """Forward and backward: each trial's loss sum.

        A trial's passes all run in one thread, one after another, so that its gradients add up in one order.
        """
        if mixed and self.sharing.mixes:
            tokens = [trial.plan.tokens_in(trial.step) for trial in trials]
            shares = [[trials[i] for i in share] for share in spread(tokens, self.at_once.threads)]
            # While one thread has its longest rows the next has its shortest, so that not all need most memory at once.
            jobs = [partial(self._passes_of, share, longest_first=i % 2 == 0) for i, share in enumerate(shares)]
        else:
            jobs = [partial(self._passes_of, [trial]) for trial in trials]
        return {name: total for sums in self.at_once.run(jobs) for name, total in sums.items()}

    def _passes_of(self, trials: Sequence[Trial], *, longest_first: bool = True) -> dict[str, float]:
        sums = {trial.run.name: 0.0 for trial in trials}
        supervised = {trial.run.name: trial.plan.supervised_in(trial.step) for trial in trials}
        examples = [(trial.run.name, example) for trial in trials for example in self._rows_of(trial)]
        groups = self._fill([example for _, example in examples])
        for group in groups if longest_first else reversed(groups):
            parts: dict[str, list[Example]] = {}
            for i in sorted(group):  # the examples are in the trials' order
                parts.setdefault(examples[i][0], []).append(examples[i][1])
            for name, loss in self._backward(parts, supervised).items():
                sums[name] += loss
        return sums

    def _backward(self, parts: Mapping[str, Sequence[Example]], supervised: Mapping[str, int]) -> dict[str, float]:
        """One pass: each trial's loss sum, and its gradients of the mean. What it held is free when it returns."""
        losses = [loss_sum(*part) for part in self.sharing.logits(list(parts.items()))]
        total = sum(loss / supervised[name] for name, loss in zip(parts, losses, strict=True))
        total.backward()  # type: ignore[union-attr]  # there is at least one part
        return {name: float(loss.detach()) for name, loss in zip(parts, losses, strict=True)}

    def _take_step(self, trial: Trial, total: float) -> None:
        """Clip, step, and account for it."""
        import torch

        step, training = trial.step, trial.spec.training
        for weight, master in zip(trial.weights.values(), trial.masters, strict=True):
            if weight is not master:
                master.grad = None if weight.grad is None else weight.grad.float()
        if training.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(trial.masters, training.max_grad_norm)
        for group in trial.optimizer.param_groups:
            group["lr"] = trial.rate(step)
        trial.optimizer.step()
        _forget([trial])
        with torch.no_grad():
            for weight, master in zip(trial.weights.values(), trial.masters, strict=True):
                if weight is not master:
                    weight.copy_(master)
        trial.position = replace(
            trial.position,
            step=step + 1,
            tokens=trial.position.tokens + trial.plan.tokens_in(step),
            losses=(*trial.position.losses, total / trial.plan.supervised_in(step)),
            held_out_loss=None,
            held_out_accuracy=None,
        )

    def _finish(self, trial: Trial) -> None:
        """Score a run and begin to save it. Raises TrainingError where its held-out loss is no number."""
        started = time.monotonic()
        scores = self._score(trial.run.name)
        trial.position = trial.position.measured(scores.loss, scores.accuracy)
        trial.writer.save(trial.gather(), trial.position)
        trial.seconds += time.monotonic() - started

    def _committed(self, trial: Trial) -> Result:
        started = time.monotonic()
        trial.writer.wait()
        trial.seconds += time.monotonic() - started
        return self._result(trial, status="ok")

    def _score(self, name: str) -> Scores:
        """The held-out rows through one trial's model, which has no dropout to switch off."""
        import torch

        examples = [self.held_out[i] for i in range(len(self.held_out))]

        def score(group: Sequence[int]) -> Scores:
            with torch.no_grad():  # of this thread
                ((logits, targets),) = self.sharing.logits([(name, [examples[i] for i in group])])
                return scores_of(logits, targets)

        return sum(self.at_once.run([partial(score, group) for group in self._fill(examples)]), Scores())

    def _fill(self, examples: Sequence[Example]) -> list[list[int]]:
        return fill([self.sharing.tokens(example) for example in examples], self.limit, packed=self.packed)

    def _failed(self, name: str, error: KitaeError) -> Result:
        status = "not_finite" if isinstance(error, TrainingError) else "out_of_memory"
        return self._result(self.trials[name], status=status, error=str(error))

    def _result(self, trial: Trial, **facts: object) -> Result:
        return result_of(self.store, trial.run, trial.writer.prefix, trial.position, trial.first).model_copy(
            update={"seconds": trial.seconds, "start_s": trial.start_s, "shared": True, **facts}
        )


def result_of(store: Store, run: Run, checkpoints: str, position: Position, first: Position) -> Result:
    """What a run's last position and its checkpoints say."""
    whole = {found.position.step: found for found in checkpoint.committed(store, checkpoints)}
    trunk, end = whole.get(trunk_end(run.until)), whole.get(run.until)
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
    """Most tokens of a forward pass, whoever's. Pure.

    A CPU computes a token hardly faster in a larger pass than in one of 128, and the activations of the passes that run
    at the same time add up.
    """
    return min(micro_batch_tokens, _CPU_PASS_TOKENS) if device.type == "cpu" else micro_batch_tokens


def fill(lengths: Sequence[int], limit: int, *, packed: bool) -> list[list[int]]:
    """Share rows out over passes of at most `limit` tokens, padding counted: neighbours in length together.

    A row that is longer has a pass of its own.
    """
    groups: list[list[int]] = []
    cost = limit + 1
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        widest = lengths[groups[-1][0]] if groups else 0
        cost = cost + (lengths[i] if packed else widest)
        if cost > limit:
            groups.append([])
            cost = lengths[i]
        groups[-1].append(i)
    return groups


def spread(sizes: Sequence[int], shares: int) -> list[list[int]]:
    """Deal out what is of these sizes, the largest first, each to the share that has least so far; in order. Pure."""
    groups: list[list[int]] = [[] for _ in range(min(shares, len(sizes)))]
    totals = [0] * len(groups)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = totals.index(min(totals))
        groups[least].append(i)
        totals[least] += sizes[i]
    return [sorted(group) for group in groups]


def _masters(weights: dict[str, torch.nn.Parameter], spec: JobSpec) -> list[torch.nn.Parameter]:
    import torch

    if models.resolve_precision(spec) is torch.float32:
        return list(weights.values())
    masters = [torch.nn.Parameter(weight.detach().float().clone()) for weight in weights.values()]
    for weight in weights.values():
        weight.data = weight.data.to(torch.bfloat16)
    return masters


def _restore(
    weights: dict[str, torch.nn.Parameter],
    masters: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.AdamW,
    state: State,
    *,
    steps: int,
) -> None:
    import torch

    with torch.no_grad():
        for (name, weight), master in zip(weights.items(), masters, strict=True):
            saved = state[name]
            master.copy_(saved["weight"])
            weight.copy_(master)
            moments = {key: saved[key].to(master.device).clone() for key in deepspeed_engine.MOMENTS}
            optimizer.state[master] = {"step": torch.tensor(float(steps), device=master.device), **moments}


def _forget(trials: Sequence[Trial]) -> None:
    """Drop the gradients."""
    for trial in trials:
        for weight in trial.weights.values():
            weight.grad = None
        for master in trial.masters:
            master.grad = None
