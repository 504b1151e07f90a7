"""Rows as token ids, once: encoded by the driver, read by every worker.

Owns the file of encoded rows and the policy for rows that are too long. Does not know what a task's rows mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ray_jobs.errors import DataError
from ray_jobs.tasks.base import IGNORED, Example, Row, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 100
"""Most rows an error names one by one."""


@dataclass(frozen=True)
class Encoded:
    """N examples end to end: example i is `input_ids[input_ends[i-1]:input_ends[i]]`, and likewise its labels."""

    input_ids: np.ndarray
    input_ends: np.ndarray
    labels: np.ndarray
    label_ends: np.ndarray

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Encoded:
        """Lay examples end to end."""
        flat_ids = [token for example in examples for token in example.input_ids]
        flat_labels = [label for example in examples for label in example.labels]
        return cls(
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
        """Tokens a row."""
        return tuple(np.diff(self.input_ends, prepend=0).tolist())

    @property
    def supervised(self) -> tuple[int, ...]:
        """Labels in the loss, a row."""
        counted = np.concatenate([[0], np.cumsum(self.labels != IGNORED)])
        return tuple(np.diff(counted[self.label_ends], prepend=0).tolist())

    def save(self, path: Path) -> None:
        """One safetensors file."""
        from safetensors.numpy import save_file

        save_file({name: getattr(self, name) for name in self.__dataclass_fields__}, path)

    @classmethod
    def load(cls, path: Path) -> Encoded:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        return cls(**load_file(path))


def encode_rows(
    rows: Sequence[Row],
    task: Task[Any],
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    *,
    max_tokens: int,
    too_long: Literal["error", "drop", "truncate"],
    source: str,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Encoded, list[int]]:
    """Encode rows; also the indices of the rows kept, in order.

    Raises DataError naming every row over `max_tokens` where the policy is `error`, and where nothing is left.
    """
    examples: list[Example] = []
    kept: list[int] = []
    long: list[str] = []
    for i, row in enumerate(rows):
        example = task.encode(row, tokenizer, labels)
        if len(example.input_ids) > max_tokens:
            long.append(f"row {i + 1}: {len(example.input_ids)} tokens")
            if too_long != "truncate":
                continue
            example = _truncate(example, max_tokens)
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


def _truncate(example: Example, max_tokens: int) -> Example:
    if len(example.labels) == len(example.input_ids):
        return Example(example.input_ids[:max_tokens], example.labels[:max_tokens])
    # One label a row: an encoder's closing token stays, as it does when a text is cut for prediction.
    return Example((*example.input_ids[: max_tokens - 1], example.input_ids[-1]), example.labels)


def _bounds(ends: np.ndarray, i: int) -> tuple[int, int]:
    return int(ends[i - 1]) if i else 0, int(ends[i])
