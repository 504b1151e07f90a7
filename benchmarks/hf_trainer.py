"""`transformers.Trainer` with PEFT on the rows of the same plan.

    python -m benchmarks.hf_trainer SIDE.json

Of three kinds: `defaults` pads each batch to its longest row; `grouped` puts rows of like length together
(`group_by_length`); `flat` puts a batch into one sequence without padding (`DataCollatorWithFlattening`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.turns import Turn
from benchmarks.workbench import Side
from ray_jobs.data.encoding import Encoded
from ray_jobs.models import attach, load_base, load_processor
from ray_jobs.spec import parse_spec
from ray_jobs.training.batching import batch_plan


class Rows(Dataset[dict[str, list[int]]]):
    """The plan's rows in the plan's order, so that the steps of both sides have the same rows."""

    def __init__(self, encoded: Encoded, order: list[int]) -> None:
        self._examples = [encoded[i] for i in order]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        example = self._examples[i]
        return {"input_ids": list(example.input_ids), "labels": list(example.labels)}


class Listening(Trainer):
    """Stores the last step's loss."""

    loss: float | None = None

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        loss = super().training_step(*arguments, **options)
        self.loss = float(loss)
        return loss


class Turning(TrainerCallback):
    """Waits for its turn before each step."""

    def __init__(self, side: Side) -> None:
        self._turn = Turn(side.port, side.name)
        self.trainer: Listening | None = None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._turn.next(self.trainer.loss if self.trainer else None)


def main() -> None:
    side = Side.read(Path(sys.argv[1]))
    torch.set_num_threads(side.threads)
    spec = parse_spec(side.spec)
    training = spec.training
    encoded = Encoded.load(Path(side.rows_file))
    plan = batch_plan(spec, encoded)
    tokenizer = load_processor(Path(side.model_dir), spec.task)
    base = load_base(Path(side.model_dir), spec.task, (), torch.float32, seed=training.seed)
    order = [i for step in range(plan.total_steps) for i in plan.rows_of(step)]
    if side.kind == "grouped":
        # Trainer chooses its batches from the rows of the measured steps.
        order = [i for step in range(1, plan.total_steps - 1) for i in plan.rows_of(step)]
    collator: Any = DataCollatorForSeq2Seq(tokenizer)
    if side.kind == "flat":
        collator = DataCollatorWithFlattening()  # type: ignore[no-untyped-call]  # transformers has no type for it
    arguments = TrainingArguments(
        output_dir=f"{sys.argv[1]}.trainer",  # deleted with the workbench's directory
        use_cpu=True,
        max_steps=plan.total_steps,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate or 0.0,
        seed=training.seed,
        # The default is "random"; both sides need the same rows in each step.
        train_sampling_strategy="group_by_length" if side.kind == "grouped" else "sequential",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    turning = Turning(side)
    trainer = Listening(
        model=attach(base, training, spec.task),
        args=arguments,
        train_dataset=Rows(encoded, order),
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[turning],
    )
    turning.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main()
