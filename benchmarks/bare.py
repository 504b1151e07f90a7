"""The bare PyTorch loop that the job is measured against: no DeepSpeed, no Ray, no store, no checkpoints.

    python -m benchmarks.bare SIDE.json

The same PEFT model and the same packed batches of the same plan. Of two kinds: `stock` computes as transformers and
PEFT do; `same` has the job's attention and adapter layers, so that what differs is the loop alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from benchmarks.turns import Turn
from benchmarks.workbench import Side
from ray_jobs.data.encoding import Encoded
from ray_jobs.models import attach, load_base, lora_linear, packed_attention
from ray_jobs.spec import parse_spec
from ray_jobs.tasks import TASKS
from ray_jobs.training.batching import batch_plan


def main() -> None:
    side = Side.read(Path(sys.argv[1]))
    torch.set_num_threads(side.threads)
    spec = parse_spec(side.spec)
    training, task = spec.training, TASKS[spec.task]
    peak_rate = training.learning_rate or 0.0
    rows = Encoded.load(Path(side.rows_file))
    plan = batch_plan(spec, rows)
    base = load_base(Path(side.model_dir), spec.task, (), torch.float32, seed=training.seed)
    if side.kind == "same":
        packed_attention.use(base)
    model = attach(base, training, spec.task)
    if side.kind == "same":
        lora_linear.use(model)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=peak_rate, weight_decay=0.0, fused=True)
    turn, total = Turn(side.port, side.name), None
    for step in range(plan.total_steps):
        turn.next(total)
        for parameters in optimizer.param_groups:
            parameters["lr"] = peak_rate * (1 - step / plan.total_steps)
        supervised, total = plan.supervised_in(step), 0.0
        for group in plan.groups_of(step, 1):
            batch = task.collate([rows[i] for i in group], packed=True, pad_id=0)
            logits_SV = model(**batch.inputs, use_cache=False).logits[0]
            loss = cross_entropy(logits_SV, batch.targets_S, reduction="sum") / supervised
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
