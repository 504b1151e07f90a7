"""Rows as tensors, once: encoded by the driver, read by every worker.

Owns the file of encoded rows and the policy for rows that are too long. Does not know what a task's rows mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ray_jobs.errors import DataError
from ray_jobs.tasks.base import IGNORED, Example, Row, Task, TensorExample

_SHOWN = 100
"""Most rows an error names one by one."""


class Encoded(ABC):
    """N encoded rows, which a task's `collate` takes."""

    @staticmethod
    def of(examples: Sequence[Any]) -> Encoded:
        """Lay examples of one kind end to end."""
        return EncodedTokens.of(examples) if isinstance(examples[0], Example) else EncodedTensors.of(examples)

    @staticmethod
    def load(path: Path) -> Encoded:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        arrays = load_file(path)
        return EncodedTokens(**arrays) if "input_ids" in arrays else EncodedTensors.from_arrays(arrays)

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        from safetensors.numpy import save_file

        save_file(dict(self._arrays()), path)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, i: int) -> Any:
        """Row i, of the kind that the task's `encode` returns."""

    @property
    @abstractmethod
    def lengths(self) -> tuple[int, ...]:
        """Each row's share of `micro_batch_tokens`."""

    @property
    @abstractmethod
    def supervised(self) -> tuple[int, ...]:
        """Each row's number of labels in the loss."""

    @abstractmethod
    def _arrays(self) -> Mapping[str, np.ndarray]: ...


@dataclass(frozen=True)
class EncodedTokens(Encoded):
    """Rows as tokens: example i is `input_ids[input_ends[i-1]:input_ends[i]]`, and likewise its labels."""

    input_ids: np.ndarray
    input_ends: np.ndarray
    labels: np.ndarray
    label_ends: np.ndarray

    @staticmethod
    def of(examples: Sequence[Example]) -> EncodedTokens:
        flat_ids = [token for example in examples for token in example.input_ids]
        flat_labels = [label for example in examples for label in example.labels]
        return EncodedTokens(
            np.asarray(flat_ids, dtype=np.int32),
            np.cumsum([len(example.input_ids) for example in examples], dtype=np.int64),
            np.asarray(flat_labels, dtype=np.int32),
            np.cumsum([len(example.labels) for example in examples], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.input_ends)

    def __getitem__(self, i: int) -> Example:
        return Example(
            tuple(self.input_ids[slice(*_bounds(self.input_ends, i))].tolist()),
            tuple(self.labels[slice(*_bounds(self.label_ends, i))].tolist()),
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(np.diff(self.input_ends, prepend=0).tolist())

    @property
    def supervised(self) -> tuple[int, ...]:
        counted = np.concatenate([[0], np.cumsum(self.labels != IGNORED)])
        return tuple(np.diff(counted[self.label_ends], prepend=0).tolist())

    def _arrays(self) -> Mapping[str, np.ndarray]:
        return vars(self)


@dataclass(frozen=True)
class EncodedTensors(Encoded):
    """Rows as named arrays, each name's end to end along the first axis: row i of `items` is
    `values["items"][ends["items"][i-1]:ends["items"][i]]`."""

    values: Mapping[str, np.ndarray]
    ends: Mapping[str, np.ndarray]
    row_lengths: np.ndarray
    row_supervised: np.ndarray

    @staticmethod
    def of(examples: Sequence[TensorExample]) -> EncodedTensors:
        names = examples[0].tensors
        return EncodedTensors(
            {name: np.concatenate([example.tensors[name] for example in examples]) for name in names},
            {name: np.cumsum([len(example.tensors[name]) for example in examples], dtype=np.int64) for name in names},
            np.asarray([example.length for example in examples], dtype=np.int64),
            np.asarray([example.supervised for example in examples], dtype=np.int64),
        )

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> EncodedTensors:
        values, ends = (
            {name.removesuffix(part): array for name, array in arrays.items() if name.endswith(part)}
            for part in (".values", ".ends")
        )
        return EncodedTensors(values, ends, arrays["lengths"], arrays["supervised"])

    def __len__(self) -> int:
        return len(self.row_lengths)

    def __getitem__(self, i: int) -> TensorExample:
        tensors = {name: values[slice(*_bounds(self.ends[name], i))] for name, values in self.values.items()}
        return TensorExample(tensors, int(self.row_supervised[i]), int(self.row_lengths[i]))

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(self.row_lengths.tolist())

    @property
    def supervised(self) -> tuple[int, ...]:
        return tuple(self.row_supervised.tolist())

    def _arrays(self) -> Mapping[str, np.ndarray]:
        values = {f"{name}.values": array for name, array in self.values.items()}
        ends = {f"{name}.ends": array for name, array in self.ends.items()}
        return values | ends | {"lengths": self.row_lengths, "supervised": self.row_supervised}


def encode_rows(
    rows: Sequence[Row],
    task: Task[Any],
    processor: Any,
    labels: Sequence[str],
    *,
    max_tokens: int,
    too_long: Literal["error", "drop", "truncate"],
    source: str,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Encoded, list[int]]:
    """Encode rows. Returns them and the indices of the rows kept, in order.

    Raises DataError naming every row over `max_tokens` where the policy is `error`, and where no row is left.
    """
    examples: list[Any] = []
    kept: list[int] = []
    long: list[str] = []
    for i, row in enumerate(rows):
        example = task.encode(row, processor, labels)
        if example.length > max_tokens:
            long.append(f"row {i + 1}: {example.length} tokens")
            if too_long != "truncate":
                continue
            example = example.truncated(max_tokens)
        if example.supervised:
            examples.append(example)
            kept.append(i)
        if progress is not None:
            progress(i + 1, len(rows))
    if long and too_long == "error":
        more = [f"+{len(long) - _SHOWN} more"] if len(long) > _SHOWN else []
        raise DataError(
            f"{len(long)} of {len(rows)} {source} rows are longer than data.max_tokens {max_tokens}; raise it, shorten "
            "the rows, or set data.too_long to drop or truncate",
            details=[*long[:_SHOWN], *more],
        )
    if not examples:
        raise DataError(
            f"no {source} row of {len(rows)} is left to use: {len(long)} were over data.max_tokens {max_tokens}, the "
            "others supervise nothing"
        )
    return Encoded.of(examples), kept


def _bounds(ends: np.ndarray, i: int) -> tuple[int, int]:
    return int(ends[i - 1]) if i else 0, int(ends[i])
