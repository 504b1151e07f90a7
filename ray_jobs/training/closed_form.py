"""Training without steps: a task's `fit` sets the weights once, and one checkpoint holds them.

Knows no optimizer. Every worker computes the same weights and writes its share of the checkpoint.
"""

from __future__ import annotations

import os
import time

from ray_jobs import models
from ray_jobs.data.encoding import Encoded
from ray_jobs.storage import Store
from ray_jobs.tasks import TASKS
from ray_jobs.training import checkpoint
from ray_jobs.training.checkpoint import Position
from ray_jobs.training.inputs import HELD_OUT_FILE, TRAIN_FILE, TrainHooks, TrainInputs, TrainOutcome
from ray_jobs.training.machine_errors import peak_memory_bytes
from ray_jobs.training.scoring import score


def fit(inputs: TrainInputs, store: Store, hooks: TrainHooks) -> TrainOutcome:
    """Fit the model and write its checkpoint, unless the store has it. Counts as one step on all rows.

    Call on every process of the default process group.
    """
    import torch
    import torch.distributed as dist

    spec, task = inputs.spec, TASKS[inputs.spec.task]
    rank, workers = dist.get_rank(), dist.get_world_size()
    started = time.perf_counter()
    found = checkpoint.latest(store, inputs.checkpoints)
    stall_s = 0.0
    if found is None:
        tree = store.fetch(inputs.encoded_key)
        rows, held_out = Encoded.load(tree / TRAIN_FILE), Encoded.load(tree / HELD_OUT_FILE)
        model = models.build(spec, models.fetch_base(store, inputs.base_key), inputs.labels)
        task.fit(model, [rows[i] for i in range(len(rows))])
        device = torch.device("cpu")
        train, measured = (score(model, task, part, spec, device) for part in (rows, held_out))
        step = 1 if inputs.until is None else inputs.until.stop_at_step
        position = Position(
            step=step, tokens=sum(rows.lengths), seconds=time.perf_counter() - started, losses=(train.loss,)
        ).measured(measured.loss, measured.accuracy)
        start = [os.urandom(4).hex()]  # the same on all workers
        dist.broadcast_object_list(start, src=0)
        writer = checkpoint.Writer(store, inputs.checkpoints, start[0], rank, workers, keep=1)
        writer.on_commit = hooks.on_commit
        weights = models.trainable(model).items()
        writer.save(((name, {"weight": weight.detach().float().cpu()}) for name, weight in weights), position)
        writer.close()
        stall_s = writer.stall_s
        dist.barrier()
        found = checkpoint.latest(store, inputs.checkpoints)
        assert found is not None
    position = found.position
    return TrainOutcome(
        stopped="finished",
        step=position.step,
        best_step=position.step,
        best_loss=position.best_loss if position.best_loss is not None else 0.0,
        checkpoint=found.key,
        final_train_loss=position.losses[-1],
        tokens=position.tokens,
        seconds=position.seconds,
        tokens_per_s=position.tokens / max(position.seconds, 1e-9),
        checkpoint_stall_s=stall_s,
        peak_memory_bytes=peak_memory_bytes(),
        resumed_from_step=0,
        workers=workers,
    )
