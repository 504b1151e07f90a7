"""The one training loop, for every task and method: DeepSpeed on one process or many.

Runs wherever a torch process group exists: `ray_workers.py` starts it under Ray Train,
`torchrun --nproc-per-node 2 -m ray_jobs.training.trainer INPUTS.json` without Ray.

The loss of a step is the sum over its supervised labels divided by their number, over all workers: how rows are shared
out over workers and forward passes changes nothing but rounding.

A little over 400 lines: the loop, its inputs and its outcome are read together.
"""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from ray_jobs import models
from ray_jobs.data.encoding import Encoded
from ray_jobs.errors import KitaeError, MachineError, TrainingError
from ray_jobs.models import heads, lora_linear, packed_attention
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Store
from ray_jobs.tasks import TASKS
from ray_jobs.tasks.base import Scores, Task
from ray_jobs.training import checkpoint, deepspeed_engine
from ray_jobs.training.batching import BatchPlan, split
from ray_jobs.training.checkpoint import Position
from ray_jobs.training.lr_schedule import learning_rate_at, trunk_end

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine

TRAIN_FILE = "train.safetensors"
HELD_OUT_FILE = "held_out.safetensors"


class Stretch(BaseModel):
    """The part of a training that a search has done at a time: up to a rung."""

    model_config = ConfigDict(frozen=True)

    rung: int
    """The step it ends at, after a decay."""
    source: str | None = None
    """The checkpoint it begins at, of an earlier stretch's trunk. None: the base."""


class TrainInputs(BaseModel):
    """Everything the workers need, by its place in the store."""

    model_config = ConfigDict(frozen=True)

    spec: JobSpec
    labels: tuple[str, ...]
    encoded_key: str
    """Tree with the encoded rows."""
    base_key: str
    checkpoints: str
    """Prefix of this training's checkpoints."""
    stretch: Stretch | None = None
    """None: from the base to the end."""


@dataclass(frozen=True)
class TrainProgress:
    """What a step came to."""

    step: int
    total_steps: int
    loss: float
    learning_rate: float
    tokens_per_s: float
    held_out_loss: float | None
    held_out_accuracy: float | None
    began_at_step: int
    """Where this start went on: its checkpoint's step, or 0."""


class TrainOutcome(BaseModel):
    """What training came to."""

    model_config = ConfigDict(frozen=True)

    stopped: Literal["finished", "early", "on_request"]
    step: int
    best_step: int
    best_loss: float
    """Held-out loss of the best checkpoint."""
    checkpoint: str
    """The best one's place in the store."""
    final_train_loss: float
    tokens: int
    seconds: float
    """Spent on steps."""
    tokens_per_s: float
    """Steady state: the first step of each start, which warms up, is left out."""
    checkpoint_stall_s: float
    """Time the loop waited for checkpoints in this start."""
    peak_memory_bytes: int
    """Of the first worker: its GPU's, or its resident memory."""
    resumed_from_step: int
    workers: int


def batch_plan(spec: JobSpec, encoded: Encoded) -> BatchPlan:
    """How a job walks its training rows."""
    training = spec.training
    return BatchPlan(
        lengths=encoded.lengths,
        supervised=encoded.supervised,
        batch_size=training.batch_size,
        micro_batch_tokens=training.micro_batch_tokens,
        epochs=training.epochs,
        seed=training.seed,
        packed=is_packed(spec),
        max_steps=training.max_steps,
    )


def is_packed(spec: JobSpec) -> bool:
    """Whether rows share sequences."""
    return spec.training.packing and TASKS[spec.task].packs


def train(
    inputs: TrainInputs,
    store: Store,
    *,
    on_progress: Callable[[TrainProgress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    should_save: Callable[[int], bool] = lambda _: False,
    on_checkpoint: Callable[[Position], None] = lambda _: None,
    on_commit: Callable[[int], None] = lambda _: None,
) -> TrainOutcome:
    """Train to the end, or on from the last checkpoint. Call on every process of the default process group.

    `should_save` is asked before each step, with the number of steps taken, whether a checkpoint is wanted after it;
    `on_commit` is told of every checkpoint that is committed. These, `on_progress` and `should_stop` are used by the
    first process alone. Raises TrainingError for a loss that is not finite, MachineError for memory, and whatever the
    base model, the rows or the store raise.
    """
    try:
        run = _Run(inputs, store)
        run.writer.on_commit = on_commit
        return run.loop(on_progress, should_stop, should_save, on_checkpoint)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(inputs.spec) from error


def score(model: torch.nn.Module, task: Task[Any], encoded: Encoded, spec: JobSpec, device: torch.device) -> Scores:
    """Score encoded rows; the rows are shared out over the process group, if there is one, and the sums added up.

    Leaves the model in the mode it was in.
    """
    import torch
    import torch.distributed as dist

    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    packed, was_training = is_packed(spec), model.training
    groups = split(range(len(encoded)), encoded.lengths, workers, spec.training.micro_batch_tokens, packed=packed)
    sums = torch.zeros(3, dtype=torch.float64)
    model.eval()
    with torch.no_grad():
        for group in groups[rank::workers]:
            batch = task.collate([encoded[i] for i in group], packed=packed, pad_id=0).to(device)
            part = task.scores(model, batch)
            sums += torch.tensor((part.loss_sum, part.count, part.correct), dtype=torch.float64)
    model.train(was_training)
    if dist.is_initialized():
        sums = _summed(sums, device)
    return Scores(float(sums[0]), int(sums[1]), int(sums[2]))


def run_sample(model: torch.nn.Module, spec: JobSpec, rows: Encoded) -> None:
    """Some training rows through a model that is not wrapped yet; the same on every worker. A new classifier's pooler
    is standardised over them."""
    task = TASKS[spec.task]
    size = max(1, spec.training.micro_batch_tokens // spec.data.max_tokens)
    device = next(model.parameters()).device
    for at in range(0, min(heads.SAMPLE_ROWS, len(rows)), size):
        examples = [rows[i] for i in range(at, min(at + size, len(rows)))]
        task.logits(model, task.collate(examples, packed=False, pad_id=0).to(device))


def not_finite(loss: float, step: int, steps: int, rate: float) -> TrainingError:
    """What to do about a training loss that is no number. Pure; `step` is 0-based."""
    return TrainingError(
        f"the training loss is {loss} at step {step + 1} of {steps} (learning rate {rate:.3g}): lower "
        "training.learning_rate, or set training.max_grad_norm; the weights of this step are not kept"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the GPU or the CPU."""
    import torch

    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text


def out_of_memory(spec: JobSpec) -> MachineError:
    """What to change when training does not fit. Pure."""
    training, compute = spec.training, spec.compute
    advice = [
        f"training.micro_batch_tokens is {training.micro_batch_tokens}: lower it, down to data.max_tokens "
        f"{spec.data.max_tokens} (the result stays the same)"
    ]
    if not training.gradient_checkpointing:
        advice.append("training.gradient_checkpointing is off: set it to true")
    if compute.zero_stage < 3 and compute.workers > 1:
        advice.append(f"compute.zero_stage is {compute.zero_stage}: raise it")
    if compute.offload == "none" and compute.gpus_per_worker:
        advice.append("compute.offload is none: set optimizer, with zero_stage 2 or 3")
    if training.method == "full":
        advice.append("training.method is full: lora needs a fraction of it")
    return MachineError("training ran out of memory; any of these helps:", details=advice)


class _Run:
    """One start of the loop on one process."""

    def __init__(self, inputs: TrainInputs, store: Store) -> None:
        import torch
        import torch.distributed as dist

        self.inputs, self.store, self.spec = inputs, store, inputs.spec
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        on_gpu = self.spec.compute.gpus_per_worker > 0
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self.task = TASKS[self.spec.task]
        encoded = store.fetch(inputs.encoded_key)
        self.rows, self.held_out = Encoded.load(encoded / TRAIN_FILE), Encoded.load(encoded / HELD_OUT_FILE)
        self.plan = batch_plan(self.spec, self.rows)
        # One name for this start on all workers.
        name = [os.urandom(4).hex()]
        dist.broadcast_object_list(name, src=0)
        self.writer = checkpoint.Writer(
            store, inputs.checkpoints, name[0], self.rank, self.workers, self.spec.training.checkpoints_to_keep
        )
        self.stretch = inputs.stretch
        self.end = self.stretch.rung if self.stretch else self.plan.total_steps
        if self.stretch:
            self.writer.pinned = frozenset({trunk_end(self.end)})
        self.found = checkpoint.latest(store, inputs.checkpoints)
        if self.found is None and self.stretch and self.stretch.source:
            self.found = checkpoint.load(store, self.stretch.source)
        self.position = self.found.position if self.found else Position()
        self.engine = self._build_engine()

    def _build_engine(self) -> DeepSpeedEngine:
        import torch

        spec = self.spec
        dtype = models.resolve_precision(spec)
        base = models.load_base(
            self.store.fetch(self.inputs.base_key), spec.task, self.inputs.labels, dtype,
            seed=spec.training.seed, four_bit=spec.training.method == "qlora",
            dropout=models.has_dropout(spec.training),
        )  # fmt: skip
        if self.found is None:
            heads.standardise_new_pooler(
                base, self.store.fetch(self.inputs.base_key), lambda model: run_sample(model, spec, self.rows)
            )
        if self.plan.packed and self.device.type == "cpu":
            packed_attention.use(base)
        module = models.attach(base, spec.training, spec.task)
        lora_linear.use(module)
        state = checkpoint.load_state(self.store, self.found) if self.found else None
        if state is not None:
            for name, parameter in models.trainable(module).items():
                parameter.data.copy_(state[name]["weight"])
        module.train()
        engine = deepspeed_engine.build_engine(module, spec, self._rate(0), bf16=dtype is torch.bfloat16)
        if self.found and state is not None:
            deepspeed_engine.restore_state(engine, state, steps=self.position.step)
        restored = self.found and checkpoint.restore_random_state(
            self.store, self.found, rank=self.rank, workers=self.workers
        )
        if not restored:
            torch.manual_seed(hash((spec.training.seed, self.position.step, self.rank)) & 0x7FFF_FFFF)
        return engine

    def loop(
        self,
        on_progress: Callable[[TrainProgress], None],
        should_stop: Callable[[], bool],
        should_save: Callable[[int], bool],
        on_checkpoint: Callable[[Position], None],
    ) -> TrainOutcome:
        first_step, steady_tokens, steady_s = self.position.step, 0, 0.0
        stopped: Literal["finished", "early", "on_request"] = "finished"
        if self._is_out_of_patience():
            stopped = "early"
        while stopped == "finished" and self.position.step < self.end:
            step = self.position.step
            started = time.perf_counter()
            first = self.rank == 0
            stop, save = self._step(step, first and should_stop(), first and should_save(step))
            if stop:
                self.writer.tidies = False
            seconds = time.perf_counter() - started
            tokens = self.plan.tokens_in(step)
            if step > first_step:
                steady_tokens, steady_s = steady_tokens + tokens, steady_s + seconds
            self.position = replace(
                self.position,
                tokens=self.position.tokens + tokens,
                seconds=self.position.seconds + seconds,
                held_out_loss=None,
                held_out_accuracy=None,
            )
            if self._is_evaluation_due():
                self._evaluate()
            if self.rank == 0:
                self._tell(on_progress, first_step, steady_tokens / steady_s if steady_s else tokens / seconds)
            stopped = "on_request" if stop else "early" if self._is_out_of_patience() else "finished"
            if stop or save or self._is_checkpoint_due():
                self.writer.save(deepspeed_engine.gather_state(self.engine), self.position)
                on_checkpoint(self.position)
        self.writer.close()
        return self._outcome(stopped, first_step, steady_tokens / steady_s if steady_s else 0.0)

    def _rate(self, step: int) -> float:
        rung = self.stretch.rung if self.stretch else None
        return learning_rate_at(step, self.plan.total_steps, self.spec, rung=rung)

    def _step(self, step: int, stop: bool, save: bool) -> tuple[bool, bool]:
        """One optimizer step; whether all workers are to stop after it, and to save."""
        import torch

        supervised = self.plan.supervised_in(step)
        deepspeed_engine.set_learning_rate(self.engine, self._rate(step))
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        for group in self.plan.groups_of(step, self.workers)[self.rank :: self.workers]:
            batch = self.task.collate([self.rows[i] for i in group], packed=self.plan.packed, pad_id=0)
            batch = batch.to(self.device)
            loss = self.task.loss(self.engine, batch)
            # DeepSpeed averages over the workers; the sum over them is wanted, a label's mean.
            self.engine.backward(loss * (self.workers / supervised))
            total += loss.detach()
        sums = _summed(torch.tensor([float(total), float(stop), float(save)], dtype=torch.float64), self.device)
        mean = float(sums[0]) / supervised
        if not math.isfinite(mean):
            raise not_finite(mean, step, self.end, self._rate(step))
        self.engine.step()
        self.position = replace(self.position, step=step + 1, losses=(*self.position.losses, mean))
        return bool(sums[1]), bool(sums[2])

    def _is_evaluation_due(self) -> bool:
        every = self.spec.training.eval_every_steps or self.plan.steps_per_epoch
        due = self.position.step % every == 0 and self.stretch is None
        return due or self.position.step == self.end

    def _is_checkpoint_due(self) -> bool:
        every = self.spec.training.checkpoint_every_steps
        measured = self.position.held_out_loss is not None or self.position.step in self.writer.pinned
        return measured or (every is not None and self.position.step % every == 0)

    def _is_out_of_patience(self) -> bool:
        patience = self.spec.training.early_stopping_patience
        return patience is not None and self.position.evaluations_without_better >= patience

    def _evaluate(self) -> None:
        scores = score(self.engine.module, self.task, self.held_out, self.spec, self.device)
        self.position = self.position.measured(scores.loss, scores.accuracy)

    def _tell(self, on_progress: Callable[[TrainProgress], None], first_step: int, tokens_per_s: float) -> None:
        position = self.position
        on_progress(
            TrainProgress(
                step=position.step,
                total_steps=self.end,
                loss=position.losses[-1],
                learning_rate=self._rate(position.step - 1),
                tokens_per_s=tokens_per_s,
                held_out_loss=position.held_out_loss,
                held_out_accuracy=position.held_out_accuracy,
                began_at_step=first_step,
            )
        )

    def _outcome(
        self, stopped: Literal["finished", "early", "on_request"], first_step: int, tokens_per_s: float
    ) -> TrainOutcome:
        whole = checkpoint.committed(self.store, self.inputs.checkpoints) if self.rank == 0 else []
        best = next((c.key for c in whole if c.position.step == self.position.best_step), "")
        return TrainOutcome(
            stopped=stopped,
            step=self.position.step,
            best_step=self.position.best_step or 0,
            best_loss=self.position.best_loss if self.position.best_loss is not None else 0.0,
            checkpoint=best,
            final_train_loss=self.position.losses[-1],
            tokens=self.position.tokens,
            seconds=self.position.seconds,
            tokens_per_s=tokens_per_s or self.position.tokens / max(self.position.seconds, 1e-9),
            checkpoint_stall_s=self.writer.stall_s,
            peak_memory_bytes=_peak_memory_bytes(),
            resumed_from_step=first_step,
            workers=self.workers,
        )


def _summed(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The sum over all workers, back on the CPU."""
    import torch.distributed as dist

    on_device = values.to(device)
    dist.all_reduce(on_device)
    return on_device.cpu()


def _peak_memory_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """`torchrun -m ray_jobs.training.trainer INPUTS.json`: the loop without Ray, on the store of the environment."""
    import torch
    import torch.distributed as dist

    inputs = TrainInputs.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    on_gpu = inputs.spec.compute.gpus_per_worker > 0
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        outcome = train(inputs, Store.from_env(), on_progress=lambda p: print(p, flush=True))
    except KitaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        dist.destroy_process_group()
    print(outcome.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
