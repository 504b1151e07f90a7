"""What a task is: columns, how a row is checked and encoded, the loss and how predictions are scored.

A task is data handed to the one training loop, never a branch in it. Knows nothing of stores, workers or methods.

Shapes: B rows, T tokens, S supervised positions, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
"""Label of a position that is not supervised (PyTorch's `ignore_index`)."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a task's rows."""

    name: str
    description: str
    required: bool = True


@dataclass(frozen=True)
class Example:
    """An encoded row. `labels[i]` is what must come at position i (`IGNORED`: anything); a task with one label a row
    has a single entry."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def supervised(self) -> int:
        """How many labels count in the loss."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class Batch:
    """One forward pass. `inputs` are the model's keyword arguments; `targets_S` the supervised labels in order."""

    inputs: dict[str, torch.Tensor]
    targets_S: torch.Tensor
    select_SV: tuple[torch.Tensor, torch.Tensor] | None = None
    """(row, position) of each supervised prediction where the model answers for every position; None: the model's
    logits are already those of `targets_S`."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        select = None if self.select_SV is None else (self.select_SV[0].to(device), self.select_SV[1].to(device))
        return Batch({k: v.to(device) for k, v in self.inputs.items()}, self.targets_S.to(device), select)


@dataclass(frozen=True)
class Scores:
    """Sums over supervised labels, so that parts of a data set add up."""

    loss_sum: float = 0.0
    count: int = 0
    correct: int = 0

    def __add__(self, other: Scores) -> Scores:
        return Scores(self.loss_sum + other.loss_sum, self.count + other.count, self.correct + other.correct)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood a supervised label, in nats."""
        return self.loss_sum / max(self.count, 1)

    @property
    def accuracy(self) -> float:
        """Share of the supervised labels that the model would choose."""
        return self.correct / max(self.count, 1)


class Task(Protocol):
    """One kind of job."""

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> tuple[Column, ...]: ...

    @property
    def metric(self) -> str:
        """Name of the task's own measure, higher is better."""
        ...

    @property
    def packs(self) -> bool:
        """Whether several rows can share one sequence."""
        ...

    def check_row(self, row: Row) -> list[str]:
        """Why this row is malformed; empty where it is not."""
        ...

    def normalise(self, row: Row) -> Row:
        """The row in its one canonical form. Call on rows that `check_row` passes."""
        ...

    def encode(self, row: Row, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> Example:
        """Token ids and labels of a row, however long."""
        ...

    def collate(self, examples: Sequence[Example], *, packed: bool, pad_id: int) -> Batch:
        """Put examples into one forward pass. An empty sequence gives a pass that supervises nothing."""
        ...

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Predictions for the supervised labels, (S, V) or (S, C)."""
        ...

    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        labels: Sequence[str],
        *,
        max_new_tokens: int,
    ) -> dict[str, float]:
        """The task's own measures on held-out rows, `metric` among them."""
        ...


def loss_sum(logits_SV: torch.Tensor, targets_S: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropies in fp32, a scalar; 0 with a gradient where nothing is supervised."""
    from torch.nn import functional

    if targets_S.numel() == 0:
        return logits_SV.float().sum() * 0.0
    return functional.cross_entropy(logits_SV.float(), targets_S, reduction="sum")


def scores_of(logits_SV: torch.Tensor, targets_S: torch.Tensor) -> Scores:
    """Score one forward pass."""
    if targets_S.numel() == 0:
        return Scores()
    correct = int((logits_SV.argmax(-1) == targets_S).sum())
    return Scores(float(loss_sum(logits_SV, targets_S)), targets_S.numel(), correct)
