"""The interface of a task: columns, validation and encoding of rows, loss, measures, base and predictor.

A task is data handed to one pipeline and one training loop, never a branch in them. Knows nothing of stores, workers,
methods or job files; torch and transformers are imported only inside the functions that run a model.

Shapes: B rows, T tokens, S supervised positions, V vocabulary, C classes.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    import torch

IGNORED = -100
"""Label of a position that is not supervised (PyTorch's `ignore_index`)."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a task's rows."""

    name: str
    description: str
    required: bool = True
    aliases: tuple[str, ...] = ()
    """Other names that files have for it."""
    likely: tuple[str, ...] = ()
    """Words in the name of a file's column that suggest it, in English and Japanese. A guess, which is shown first."""
    translations: tuple[str, ...] = ()
    """Whole names that suggest an optional column, in Japanese."""


@dataclass(frozen=True)
class BaseNeeds:
    """Requirements of a task on a base model, and the head that is added to it."""

    architectures: tuple[str, ...]
    """Endings of the architecture names that the task can start from."""
    auto_class: str
    """The `transformers` class that loads the base for the task."""
    adapter_type: str
    """PEFT's `TaskType` for an adapter."""
    head: bool
    """Puts a head with one output a label on the base; `method: frozen` trains it alone. False: the base's own head
    stays, and `method: frozen` trains the last blocks."""
    frozen_learning_rate: float
    """Peak learning rate of `method: frozen` where the job file has none."""
    frozen_features: Literal["first_token", "all_tokens"]
    """Outputs of the frozen part that the trained part reads: trials on one frozen base share them."""
    excluded_architectures: tuple[str, ...] = ()
    """Endings that rule a name out, although it ends in one of `architectures`."""
    chat_template: bool = False
    """Requires a chat template beside the tokenizer."""
    processor_class: str = "AutoTokenizer"
    """The `transformers` class that loads what turns rows into tensors: a tokenizer or an image processor."""
    suggested: str = ""
    """A small base with a permissive licence that reads English and Japanese, for a first job file."""


@dataclass(frozen=True)
class Example:
    """A row as tokens. `labels[i]` is what must come at position i (`IGNORED`: anything); a task with one label a row
    has a single entry."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def length(self) -> int:
        """The row's share of `micro_batch_tokens`."""
        return len(self.input_ids)

    @property
    def supervised(self) -> int:
        """Number of labels that count in the loss."""
        return sum(label != IGNORED for label in self.labels)

    def truncated(self, length: int) -> Example:
        """The row cut to `length` tokens."""
        if len(self.labels) == len(self.input_ids):
            return Example(self.input_ids[:length], self.labels[:length])
        # One label a row: an encoder's closing token stays, as it does when a text is cut for prediction.
        return Example((*self.input_ids[: length - 1], self.input_ids[-1]), self.labels)


@dataclass(frozen=True, eq=False)
class TensorExample:
    """A row as named arrays: pixels, or the items a user chose. Every row of a task has the same names."""

    tensors: Mapping[str, np.ndarray]
    supervised: int = 1
    """Number of labels that count in the loss."""
    length: int = 1
    """The row's share of `micro_batch_tokens`."""

    def truncated(self, length: int) -> TensorExample:
        raise ValueError("a row of named tensors is not cut: encode it within data.max_tokens")


@dataclass(frozen=True)
class Batch:
    """One forward pass. `inputs` are the model's keyword arguments; `targets_S` the supervised labels in order."""

    inputs: dict[str, torch.Tensor]
    targets_S: torch.Tensor
    select_SV: tuple[torch.Tensor, torch.Tensor] | None = None
    """(row, position) of each supervised prediction where the model predicts every position; None: the model's logits
    are already those of `targets_S`."""
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    """Inputs of the loss that are not inputs of the model."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""

        def moved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: tensor.to(device) for name, tensor in tensors.items()}

        select = None if self.select_SV is None else (self.select_SV[0].to(device), self.select_SV[1].to(device))
        return Batch(moved(self.inputs), self.targets_S.to(device), select, moved(self.extras))


class PromptSetting(BaseModel):
    """How prompts are written, decided once for all rows of a job and kept with its model."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    switches: dict[str, bool | int | str] = {}
    """Variables of the chat template with which the rows are trained: a request without `chat_template_kwargs` of its
    own gets them."""
    today: date | None = None
    """Day that a chat template with a date writes into trained prompts; a request has its own day. None: no date."""

    def notes(self) -> list[str]:
        """What differs from the chat template's default, and from request to request."""
        return [
            *([f"prompts have {described(self.switches)}"] if self.switches else []),
            *(
                [f"the template writes today's date: {self.today} here, and the day of each request"]
                if self.today
                else []
            ),
        ]


def described(switches: Mapping[str, bool | int | str]) -> str:
    """Variables of a chat template as a message shows them."""
    return ", ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in switches.items())


Reference = Callable[[Batch], "torch.Tensor"]
"""A batch's `Task.logits` by the frozen model that training started from, without gradients."""


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


@dataclass(frozen=True, eq=False)
class LabelScores:
    """A forward pass on supervised labels, in their order."""

    losses_S: torch.Tensor
    """Negative log-likelihood of each, in nats, fp32."""
    correct_S: torch.Tensor
    """Whether the model would choose it."""

    def total(self) -> Scores:
        """The sums."""
        return Scores(float(self.losses_S.sum()), len(self.losses_S), int(self.correct_S.sum()))


@dataclass(frozen=True)
class Baseline:
    """Comparison for a trained model that needs no base model."""

    name: str
    """In a sentence: `the majority class`."""
    losses: tuple[float, ...]
    """Loss of each held-out row."""
    measures: dict[str, float]
    """The task's measures."""

    @property
    def metrics(self) -> dict[str, float]:
        """`loss`, the mean, and the measures."""
        return {"loss": sum(self.losses) / max(len(self.losses), 1), **self.measures}


E = TypeVar("E")


class Task(ABC, Generic[E]):
    """One kind of job. `E` is what a row is encoded to: `Example` or `TensorExample`."""

    name: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]]
    measures: ClassVar[tuple[str, ...]]
    """Names of the measures beside the loss. The first is `Scores.accuracy`, taken at each evaluation of a training."""
    route: ClassVar[str]
    """Path of the endpoint that answers for the task's models."""
    pipeline_tag: ClassVar[str]
    """The hub's name of the task, for model cards."""
    base: ClassVar[BaseNeeds | None] = None
    """None: the task trains from scratch, with `new_model`, and a job has no `base_model`."""
    predictor: ClassVar[str | None] = None
    """Import path of the Serve builder that serves the task's models. None: vLLM serves them."""
    label_column: ClassVar[str | None] = None
    """The column whose values in the training rows become the model's labels. None: the task has no labels."""
    packs: ClassVar[bool] = False
    """Several rows can share one sequence."""
    trains_by_steps: ClassVar[bool] = True
    """Trains by optimizer steps on `loss`. False: in closed form, by `fit`."""
    uses_reference: ClassVar[bool] = False
    """`loss` compares the model with the frozen one that training started from."""
    shares_passes: ClassVar[bool] = False
    """Trials of a search can share forward passes: the loss is the cross-entropy of `logits`, row by row of tokens."""

    @property
    def metric(self) -> str:
        """Name of the first measure."""
        return self.measures[0]

    @property
    def required_base(self) -> BaseNeeds:
        """`base` of a task that starts from a base model."""
        assert self.base is not None, f"{self.name} starts from no base model"
        return self.base

    @property
    def has_new_head(self) -> bool:
        """The task puts a head of its own on the base."""
        return self.base is not None and self.base.head

    @property
    def generates(self) -> bool:
        """vLLM serves the task's models: a base's adapters share one engine, and the endpoint generates text.

        Such a model is checked for parity, since the engine and the trainer run different code.
        """
        return self.predictor is None

    def recognises(self, columns: AbstractSet[str]) -> bool:
        """Rows with these columns are the task's, where a file of rows names no task."""
        required = {column.name for column in self.columns if column.required}
        return bool(required) and required <= columns

    @abstractmethod
    def check_row(self, row: Row) -> list[str]:
        """Why this row is malformed; empty where it is not."""

    @abstractmethod
    def normalise(self, row: Row) -> Row:
        """The row in its one canonical form. Call on rows that `check_row` passes."""

    def input_of(self, row: Row) -> str:
        """What a model is asked with a canonical row. Rows with one input stay on one side of a split."""
        return json.dumps(row, ensure_ascii=False, sort_keys=True)

    def question_of(self, row: Row) -> str:
        """The part of the input that differs from row to row, by which near duplicates are found."""
        return self.input_of(row)

    def setting_for(self, rows: Iterable[tuple[str, Row]], processor: Any, today: date) -> PromptSetting:
        """Choose how the prompts of these rows are written; `rows`: each with its name in an error.

        Raises DataError where no setting trains all of them.
        """
        return PromptSetting()

    def with_setting(self, setting: PromptSetting) -> Self:
        """The task with prompts written in this way."""
        return self

    @abstractmethod
    def encode(self, row: Row, processor: Any, labels: Sequence[str]) -> Sequence[E]:
        """A row as examples, one for most tasks, however long.

        `processor`: the base's tokenizer or image processor, or None. Raises DataError for a row that it cannot
        express.
        """

    def is_whole(self, row: Row, examples: Sequence[E], processor: Any) -> bool:
        """Whether the examples have all that the row would train. What they lack is reported, and not an error."""
        return True

    def check_encoded(self, examples: Sequence[E], processor: Any) -> None:  # most tasks need no check
        """Refuse training rows that would teach nothing. Raises DataError."""

    @abstractmethod
    def collate(self, examples: Sequence[E], *, packed: bool = False, pad_id: int = 0) -> Batch:
        """Put examples into one forward pass. An empty sequence gives a pass that supervises nothing."""

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Predictions for the supervised labels, (S, V) or (S, C)."""
        logits_SC: torch.Tensor = model(**batch.inputs).logits
        return logits_SC

    def loss(self, model: torch.nn.Module, batch: Batch, reference: Reference | None = None) -> torch.Tensor:
        """Sum of the loss over the batch's supervised labels, a scalar with a gradient.

        `reference` is given to a task that `uses_reference`. The step divides by the labels of all its batches.
        """
        return loss_sum(self.logits(model, batch), batch.targets_S)

    def label_scores(self, model: torch.nn.Module, batch: Batch, reference: Reference | None = None) -> LabelScores:
        """Score a batch of held-out rows, label by label in the order of its examples."""
        return scored(self.logits(model, batch), batch.targets_S)

    def new_model(self, labels: Sequence[str], seed: int) -> torch.nn.Module:
        """The untrained model of a task without a base: its weights follow from `labels` and `seed` alone."""
        raise NotImplementedError(f"{self.name} starts from a base model")

    def fit(self, model: torch.nn.Module, examples: Sequence[E]) -> None:
        """Set the model's trainable weights in closed form, where the task does not train by steps."""
        raise NotImplementedError(f"{self.name} trains by optimizer steps")

    def baselines(self, train: Collection[Row], held_out: Sequence[Row]) -> Sequence[Baseline]:
        """Comparisons on the held-out rows; the tuned model must beat the first where no base model does the task."""
        return ()

    @abstractmethod
    def measure(
        self, model: Any, processor: Any, rows: Sequence[Row], labels: Sequence[str], *, max_new_tokens: int
    ) -> dict[str, float]:
        """The task's own measures on held-out rows, by the names of `measures`; `metric` may be left out."""


def padded(
    rows: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"] = "right"
) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of rows of tokens, (B, T), padded to the longest."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    ones = [torch.ones_like(row) for row in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id, padding_side=side),
        "attention_mask": pad_sequence(ones, batch_first=True, padding_side=side),
    }


def loss_sum(logits_SV: torch.Tensor, targets_S: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropies in fp32, a scalar; 0 with a gradient where nothing is supervised."""
    from torch.nn import functional

    if targets_S.numel() == 0:
        return logits_SV.float().sum() * 0.0
    return functional.cross_entropy(logits_SV.float(), targets_S, reduction="sum")


def scored(logits_SV: torch.Tensor, targets_S: torch.Tensor) -> LabelScores:
    """Score one forward pass by the cross-entropy of each label."""
    import torch
    from torch.nn import functional

    if targets_S.numel() == 0:
        return LabelScores(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    losses_S = functional.cross_entropy(logits_SV.float(), targets_S, reduction="none")
    return LabelScores(losses_S, logits_SV.argmax(-1) == targets_S)
