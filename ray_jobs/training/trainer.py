"""The training of a job: one loop for every task and method, with DeepSpeed on one process or many; or `fit`, once.

Runs wherever a torch process group exists: `ray_train.py` starts it under Ray Train,
`torchrun --nproc-per-node 2 -m ray_jobs.training.trainer INPUTS.json` without Ray.

The loss of a step is the sum over its supervised labels divided by their number, over all workers: how rows are shared
out over workers and forward passes changes nothing but rounding.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ray_jobs import models
from ray_jobs.data.encoding import Encoded
from ray_jobs.errors import KitaeError
from ray_jobs.storage import Workspace
from ray_jobs.tasks import TASKS
from ray_jobs.training import checkpoint
from ray_jobs.training.batching import batch_plan
from ray_jobs.training.checkpoint import Checkpoint, Position
from ray_jobs.training.deepspeed_engine import DeepSpeedOptimizer
from ray_jobs.training.inputs import (
    TRAIN_FILE,
    VALIDATION_FILE,
    TrainHooks,
    TrainInputs,
    TrainOutcome,
    TrainProgress,
    encoded_file,
)
from ray_jobs.training.machine_errors import memory_errors, out_of_memory, peak_memory_bytes
from ray_jobs.training.scoring import all_reduced, run_sample, score
from ray_jobs.training.step import TrainingState, rate_of, restored, to_resume


def train(inputs: TrainInputs, store: Workspace, hooks: TrainHooks | None = None) -> TrainOutcome:
    """Train to the end, resuming from the last checkpoint. Call on every process of the default process group.

    Raises LossNotFinite, MachineError when memory runs out, and what the base model, the rows or the store raise.
    """
    hooks = hooks or TrainHooks()
    try:
        with memory_errors():
            if TASKS[inputs.spec.task].trains_by_steps:
                return Trainer(inputs, store, hooks).run()
            return _fit(inputs, store, hooks)
    except MemoryError as error:
        raise out_of_memory(inputs.spec) from error


class Trainer:
    """One start of the loop on one process."""

    def __init__(self, inputs: TrainInputs, store: Workspace, hooks: TrainHooks) -> None:
        import torch
        import torch.distributed as dist

        self._inputs, self._store, self._hooks, self._spec = inputs, store, hooks, inputs.spec
        self._rank, self._workers = dist.get_rank(), dist.get_world_size()
        on_gpu = self._spec.compute.gpus_per_worker > 0
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self._task = TASKS[self._spec.task]
        self._rows, self._held_out = _load_rows(inputs, store)
        self._plan = batch_plan(self._spec, self._rows)
        writer = _start_writer(inputs, store, hooks, self._spec.training.checkpoints_to_keep)
        found = to_resume(store, inputs.checkpoints, inputs.until)
        self.optimizer = self._build_optimizer(found)
        position = found.position if found is not None else Position()
        self.state = TrainingState(self._spec, self._plan, inputs.until, self.optimizer, writer, position)

    def _build_optimizer(self, found: Checkpoint | None) -> DeepSpeedOptimizer:
        import torch

        spec = self._spec
        dtype = models.resolve_precision(spec)
        module = models.build(
            spec,
            models.fetch_base(self._store, self._inputs.base_key),
            self._inputs.labels,
            by_row=self._plan.packed and self._device.type == "cpu",
            run_sample=None if found is not None else lambda model: run_sample(model, spec, self._rows),
        )
        self._reference = models.reference_of(module, self._task)
        module.train()
        rate = rate_of(spec, self._plan, self._inputs.until, 0)
        optimizer = restored(
            self._store,
            found,
            models.trainable(module),
            lambda: DeepSpeedOptimizer(module, spec, rate, bf16=dtype is torch.bfloat16),
        )
        step = found.position.step if found is not None else 0
        if found is None or not checkpoint.restore_random_state(
            self._store, found, rank=self._rank, workers=self._workers
        ):
            torch.manual_seed(hash((spec.training.seed, step, self._rank)) & 0x7FFF_FFFF)
        return optimizer

    def run(self) -> TrainOutcome:
        """Take the remaining steps; evaluate, save and report when due."""
        state, writer, first = self.state, self.state.writer, self._rank == 0
        first_step, steady_tokens, steady_s = state.step, 0, 0.0
        stopped: Literal["finished", "early", "on_request"] = "early" if self._is_out_of_patience() else "finished"
        while stopped == "finished" and state.step < state.end:
            step, started = state.step, time.perf_counter()
            loss, stop, save = self.passes(
                step, first and self._hooks.should_stop(), first and self._hooks.should_save(step)
            )
            state.take(loss)
            writer.deletes_older = not stop
            seconds, tokens = time.perf_counter() - started, self._plan.tokens_in(step)
            if step > first_step:
                steady_tokens, steady_s = steady_tokens + tokens, steady_s + seconds
            state.position = replace(state.position, seconds=state.position.seconds + seconds)
            if self._is_evaluation_due():
                model = self.optimizer.module
                state.measured(score(model, self._task, self._held_out, self._spec, self._device, self._reference))
            if first:
                self._report(first_step, steady_tokens / steady_s if steady_s else tokens / seconds)
            stopped = "on_request" if stop else "early" if self._is_out_of_patience() else "finished"
            if stop or save or self._is_checkpoint_due():
                state.save()
        writer.close()
        found = checkpoint.committed(self._store, self._inputs.checkpoints) if first else []
        best = next((each.key for each in found if each.position.step == state.position.best_step), "")
        outcome = _outcome(state.position, best, self._workers)
        return outcome.model_copy(
            update={
                "stopped": stopped,
                "tokens_per_s": steady_tokens / steady_s if steady_s else outcome.tokens_per_s,
                "checkpoint_stall_s": writer.stall_s,
                "resumed_from_step": first_step,
            }
        )

    def passes(self, step: int, stop: bool, save: bool) -> tuple[float, bool, bool]:
        """Forward and backward passes of a step, and whether any worker wants to stop or to save after it.

        Returns the sum of the step's loss over all workers.
        """
        import torch

        supervised = self._plan.supervised_in(step)
        total = torch.zeros((), dtype=torch.float32, device=self._device)
        for group in self._plan.groups_of(step, self._workers)[self._rank :: self._workers]:
            batch = self._task.collate([self._rows[i] for i in group], packed=self._plan.packed, pad_id=0)
            batch = batch.to(self._device)
            loss = self._task.loss(self.optimizer.engine, batch, self._reference)
            self.optimizer.backward(loss, supervised)
            total += loss.detach()
        sums = torch.tensor([float(total), float(stop), float(save)], dtype=torch.float64)
        sums = all_reduced(sums, self._device)
        return float(sums[0]), bool(sums[1]), bool(sums[2])

    def _is_evaluation_due(self) -> bool:
        every = self._spec.training.eval_every_steps or self._plan.steps_per_epoch
        due = self.state.step % every == 0 and self._inputs.until is None
        return due or self.state.step == self.state.end

    def _is_checkpoint_due(self) -> bool:
        every = self._spec.training.checkpoint_every_steps
        position = self.state.position
        kept = position.held_out_loss is not None or position.step in self.state.writer.pinned
        return kept or (every is not None and position.step % every == 0)

    def _is_out_of_patience(self) -> bool:
        patience = self._spec.training.early_stopping_patience
        return patience is not None and self.state.position.evaluations_without_better >= patience

    def _report(self, first_step: int, tokens_per_s: float) -> None:
        position = self.state.position
        metrics: dict[str, float | str] = {
            "loss": position.losses[-1],
            "tokens_per_s": tokens_per_s,
            "learning_rate": self.state.rate(position.step - 1),
            "began_at_step": first_step,
        }
        if position.held_out_loss is not None and position.held_out_accuracy is not None:
            metrics |= {"held_out_loss": position.held_out_loss, "held_out_accuracy": position.held_out_accuracy}
        self._hooks.on_progress(TrainProgress(position.step, self.state.end, metrics))


def _fit(inputs: TrainInputs, store: Workspace, hooks: TrainHooks) -> TrainOutcome:
    """Set the weights by the task's `fit` and write their checkpoint, unless the store has it.

    Counts as one step on all rows. Every worker computes the same weights and writes its share.
    """
    import torch
    import torch.distributed as dist

    spec, task = inputs.spec, TASKS[inputs.spec.task]
    found, stall_s = checkpoint.latest(store, inputs.checkpoints), 0.0
    if found is None:
        started = time.perf_counter()
        rows, held_out = _load_rows(inputs, store)
        model = models.build(spec, models.fetch_base(store, inputs.base_key), inputs.labels)
        task.fit(model, [rows[i] for i in range(len(rows))])
        train, measured = (score(model, task, part, spec, torch.device("cpu")) for part in (rows, held_out))
        step = 1 if inputs.until is None else inputs.until.stop_at_step
        seconds = time.perf_counter() - started
        position = Position(step=step, tokens=sum(rows.lengths), seconds=seconds, losses=(train.loss,))
        position = position.measured(measured.loss, measured.accuracy)
        writer = _start_writer(inputs, store, hooks, keep=1)
        weights = models.trainable(model).items()
        writer.save(((name, {"weight": weight.detach().float().cpu()}) for name, weight in weights), position)
        writer.close()
        stall_s = writer.stall_s
        dist.barrier()
        found = checkpoint.latest(store, inputs.checkpoints)
        assert found is not None
    outcome = _outcome(found.position, found.key, dist.get_world_size())
    return outcome.model_copy(update={"checkpoint_stall_s": stall_s})


def _load_rows(inputs: TrainInputs, store: Workspace) -> tuple[Encoded, Encoded]:
    """The training rows and the validation rows."""
    encoded = store.fetch(inputs.encoded_key)
    return Encoded.load(encoded / TRAIN_FILE), Encoded.load(encoded_file(encoded, VALIDATION_FILE))


def _start_writer(inputs: TrainInputs, store: Workspace, hooks: TrainHooks, keep: int) -> checkpoint.Writer:
    """The writer of this start's checkpoints. A collective."""
    import torch.distributed as dist

    run = [os.urandom(4).hex()]  # the same on all workers
    dist.broadcast_object_list(run, src=0)
    writer = checkpoint.Writer(store, inputs.checkpoints, run[0], dist.get_rank(), dist.get_world_size(), keep)
    writer.on_commit = hooks.on_commit
    return writer


def _outcome(position: Position, best: str, workers: int) -> TrainOutcome:
    """The outcome of a finished training. `best`: key of its best checkpoint."""
    return TrainOutcome(
        stopped="finished",
        step=position.step,
        best_step=position.best_step or 0,
        best_loss=position.best_loss or 0.0,
        checkpoint=best,
        final_train_loss=position.losses[-1],
        tokens=position.tokens,
        seconds=position.seconds,
        tokens_per_s=position.tokens / max(position.seconds, 1e-9),
        checkpoint_stall_s=0.0,
        peak_memory_bytes=peak_memory_bytes(),
        resumed_from_step=0,
        workers=workers,
    )


def main() -> int:
    """Train without Ray, on the store that the environment names."""
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
        outcome = train(inputs, Workspace.from_env(), TrainHooks(on_progress=lambda p: print(p, flush=True)))
    except KitaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        dist.destroy_process_group()
    print(outcome.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
