"""Two small tasks that use everything a task can say beyond the text tasks, and their predictors' import paths.

`ToyPreference` trains by steps with a loss of its own against a frozen reference, on pairs of vectors; `ToyPopularity`
counts items in closed form. Both train from scratch on named tensors, and have several measures.

Shapes: B rows, F features, C labels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional

from ray_jobs.tasks.base import Baseline, Batch, Column, LabelScores, Reference, Row, Task, TensorExample

FEATURES = 3
_BETA = 0.5


class _Linear(torch.nn.Module):
    """A score of each vector."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(FEATURES, 1)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.linear(vectors).squeeze(-1)
        return scores


class _Shares(torch.nn.Module):
    """The logarithm of each label's share."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.log_shares = torch.nn.Parameter(torch.zeros(labels))

    def forward(self) -> torch.Tensor:
        return self.log_shares


class ToyPreference(Task[TensorExample]):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) of a linear score of a vector."""

    name: ClassVar[str] = "toy_preference"
    columns: ClassVar[tuple[Column, ...]] = (Column("chosen", "a vector"), Column("rejected", "a vector"))
    measures: ClassVar[tuple[str, ...]] = ("preference_accuracy", "mean_gap")
    route: ClassVar[str] = "/v1/toys/preferences"
    pipeline_tag: ClassVar[str] = "reinforcement-learning"
    predictor: ClassVar[str | None] = "tests.tasks.toy_task:build"
    uses_reference: ClassVar[bool] = True

    def check_row(self, row: Row) -> list[str]:
        return [f"{name} must be {FEATURES} numbers" for name in ("chosen", "rejected") if len(row[name]) != FEATURES]

    def normalise(self, row: Row) -> Row:
        return {name: [float(value) for value in row[name]] for name in ("chosen", "rejected")}

    def encode(self, row: Row, processor: Any, labels: Sequence[str]) -> list[TensorExample]:
        assert processor is None
        return [TensorExample({name: np.asarray([row[name]], dtype=np.float32) for name in ("chosen", "rejected")})]

    def collate(self, examples: Sequence[TensorExample], *, packed: bool = False, pad_id: int = 0) -> Batch:
        def stacked_BF(name: str) -> torch.Tensor:
            rows = [example.tensors[name] for example in examples] or [np.zeros((0, FEATURES), np.float32)]
            return torch.from_numpy(np.concatenate(rows))

        pairs = len(examples)
        inputs = {"vectors": torch.cat([stacked_BF("chosen"), stacked_BF("rejected")])}
        return Batch(inputs, torch.zeros(pairs), extras={"sign": torch.ones(pairs)})

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Score of each chosen vector above that of its rejected one, (B,)."""
        scores_2B: torch.Tensor = model(**batch.inputs)
        chosen_B, rejected_B = scores_2B.chunk(2)
        return (chosen_B - rejected_B) * batch.extras["sign"]

    def loss(self, model: torch.nn.Module, batch: Batch, reference: Reference | None = None) -> torch.Tensor:
        losses_S = self.label_scores(model, batch, reference).losses_S
        return losses_S.sum()

    def label_scores(self, model: torch.nn.Module, batch: Batch, reference: Reference | None = None) -> LabelScores:
        assert reference is not None
        logits_B = self.logits(model, batch)
        return LabelScores(-functional.logsigmoid(_BETA * (logits_B - reference(batch))), logits_B > 0)

    def new_model(self, labels: Sequence[str], seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return _Linear()

    def baselines(self, train: Collection[Row], held_out: Sequence[Row]) -> Sequence[Baseline]:
        measures = {"preference_accuracy": 0.5, "mean_gap": 0.0}
        return [Baseline("an untrained model", (float(np.log(2)),) * len(held_out), measures)]

    def measure(
        self, model: Any, processor: Any, rows: Sequence[Row], labels: Sequence[str], *, max_new_tokens: int
    ) -> dict[str, float]:
        batch = self.collate([example for row in rows for example in self.encode(row, None, labels)])
        return {"mean_gap": float(self.logits(model, batch).detach().abs().mean())}


class ToyPopularity(Task[TensorExample]):
    """The share of each item among those that were chosen, computed without a gradient step."""

    name: ClassVar[str] = "toy_popularity"
    columns: ClassVar[tuple[Column, ...]] = (Column("user", "who chose"), Column("item", "what was chosen"))
    measures: ClassVar[tuple[str, ...]] = ("hit_rate", "surprise")
    route: ClassVar[str] = "/v1/toys/items"
    pipeline_tag: ClassVar[str] = "tabular-classification"
    predictor: ClassVar[str | None] = "tests.tasks.toy_task:build"
    label_column: ClassVar[str | None] = "item"
    trains_by_steps: ClassVar[bool] = False

    def check_row(self, row: Row) -> list[str]:
        return [] if isinstance(row["item"], str) else ["item must be text"]

    def normalise(self, row: Row) -> Row:
        return {"user": str(row["user"]), "item": row["item"]}

    def encode(self, row: Row, processor: Any, labels: Sequence[str]) -> list[TensorExample]:
        assert processor is None
        return [TensorExample({"item": np.asarray([labels.index(row["item"])], dtype=np.int64)})]

    def collate(self, examples: Sequence[TensorExample], *, packed: bool = False, pad_id: int = 0) -> Batch:
        items = [example.tensors["item"] for example in examples] or [np.zeros(0, np.int64)]
        return Batch({}, torch.from_numpy(np.concatenate(items)))

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        log_shares_C: torch.Tensor = model(**batch.inputs)
        return log_shares_C.expand(len(batch.targets_S), -1)

    def new_model(self, labels: Sequence[str], seed: int) -> torch.nn.Module:
        return _Shares(len(labels))

    def fit(self, model: torch.nn.Module, examples: Sequence[TensorExample]) -> None:
        batch = self.collate(examples)
        assert isinstance(model, _Shares)
        with torch.no_grad():
            counts_C = torch.bincount(batch.targets_S, minlength=len(model.log_shares))
            model.log_shares.copy_((counts_C / counts_C.sum()).log())

    def baselines(self, train: Collection[Row], held_out: Sequence[Row]) -> Sequence[Baseline]:
        items = len({row["item"] for row in train})
        return [Baseline("a uniform choice", (float(np.log(items)),) * len(held_out), {"hit_rate": 1 / items})]

    def measure(
        self, model: Any, processor: Any, rows: Sequence[Row], labels: Sequence[str], *, max_new_tokens: int
    ) -> dict[str, float]:
        batch = self.collate([example for row in rows for example in self.encode(row, None, labels)])
        with torch.no_grad():
            return {"surprise": self.label_scores(model, batch).total().loss / float(np.log(2))}


def build(args: dict[str, Any]) -> dict[str, Any]:
    """Replaces a predictor's Serve builder: the deployment must name its import path."""
    return args
