"""Rows as tensors, once: encoded by the driver, read by every worker.

Owns the file of encoded rows and the policy for rows that are too long. Does not know what a task's rows mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ray_jobs.data.findings import Findings
from ray_jobs.errors import DataError
from ray_jobs.tasks.base import IGNORED, Example, Row, Task, TensorExample

ENCODING = 2
"""Number of the way in which rows are encoded: rows that were encoded otherwise are not used again."""


@dataclass(frozen=True)
class Encoded:
    """N encoded rows, which a task's `collate` takes: named arrays, each name's end to end along the first axis.

    Row i of `items` is `values["items"][ends["items"][i-1]:ends["items"][i]]`.
    """

    values: Mapping[str, np.ndarray]
    ends: Mapping[str, np.ndarray]
    lengths: tuple[int, ...]
    """Each row's share of `micro_batch_tokens`."""
    supervised: tuple[int, ...]
    """Each row's number of labels in the loss."""
    tokens: bool
    """Rows are `Example`s, with the arrays `input_ids` and `labels`; else `TensorExample`s."""

    @classmethod
    def of(cls, examples: Sequence[Any]) -> Encoded:
        """Lay examples of one kind end to end."""
        rows = [_arrays(example) for example in examples]
        return cls(
            {name: np.concatenate([row[name] for row in rows]) for name in rows[0]},
            {name: np.cumsum([len(row[name]) for row in rows], dtype=np.int64) for name in rows[0]},
            tuple(example.length for example in examples),
            tuple(example.supervised for example in examples),
            tokens=isinstance(examples[0], Example),
        )

    @classmethod
    def load(cls, path: Path) -> Encoded:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        arrays = load_file(path)
        tokens = "input_ids" in arrays
        if tokens:
            values = {"input_ids": arrays["input_ids"], "labels": arrays["labels"]}
            ends = {"input_ids": arrays["input_ends"], "labels": arrays["label_ends"]}
            counted = np.concatenate([[0], np.cumsum(values["labels"] != IGNORED)])[ends["labels"]]
            lengths, supervised = np.diff(ends["input_ids"], prepend=0), np.diff(counted, prepend=0)
        else:
            values, ends = (
                {name.removesuffix(part): array for name, array in arrays.items() if name.endswith(part)}
                for part in (".values", ".ends")
            )
            lengths, supervised = arrays["lengths"], arrays["supervised"]
        return cls(values, ends, tuple(lengths.tolist()), tuple(supervised.tolist()), tokens)

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        from safetensors.numpy import save_file

        if self.tokens:
            arrays = {**self.values, "input_ends": self.ends["input_ids"], "label_ends": self.ends["labels"]}
        else:
            arrays = {f"{name}.values": array for name, array in self.values.items()}
            arrays |= {f"{name}.ends": array for name, array in self.ends.items()}
            arrays |= {"lengths": np.asarray(self.lengths), "supervised": np.asarray(self.supervised)}
        save_file(arrays, path)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Any:
        """Row i, of the kind that the task's `encode` returns."""
        starts = {name: ends[i - 1] if i else 0 for name, ends in self.ends.items()}
        row = {name: array[starts[name] : self.ends[name][i]] for name, array in self.values.items()}
        if self.tokens:
            return Example(tuple(row["input_ids"].tolist()), tuple(row["labels"].tolist()))
        return TensorExample(row, self.supervised[i], self.lengths[i])


def _arrays(example: Example | TensorExample) -> Mapping[str, np.ndarray]:
    if isinstance(example, TensorExample):
        return example.tensors
    return {"input_ids": np.asarray(example.input_ids, np.int32), "labels": np.asarray(example.labels, np.int32)}


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
    """Encode rows. Returns the examples and the index of the row of each, in order.

    Raises DataError naming every row that the processor cannot express, every one over `max_tokens` where the policy
    is `error`, and where no row is left.
    """
    examples: list[Any] = []
    kept: list[int] = []
    long, refused = Findings(), Findings()
    for i, row in enumerate(rows):
        try:
            found = task.encode(row, processor, labels)
        except DataError as error:
            refused.add(f"row {i + 1}", str(error))
            found = ()
        longest = max((example.length for example in found), default=0)
        if longest > max_tokens:
            long.add(f"row {i + 1}", f"{longest} tokens")
            found = [example.truncated(max_tokens) for example in found] if too_long == "truncate" else ()
        found = [example for example in found if example.supervised]
        examples += found
        kept += [i] * len(found)
        if progress is not None:
            progress(i + 1, len(rows))
    if refused.count:
        what = f"{refused.count} of {len(rows)} {source} rows cannot be written for this base"
        raise DataError(what, details=refused.listed)
    if long.count and too_long == "error":
        raise DataError(
            f"{long.count} of {len(rows)} {source} rows are longer than data.max_tokens {max_tokens}; raise it, "
            "shorten the rows, or set data.too_long to drop or truncate",
            details=long.listed,
        )
    if not examples:
        raise DataError(
            f"no {source} row of {len(rows)} is left to use: {long.count} were over data.max_tokens {max_tokens}, the "
            "others supervise nothing"
        )
    return Encoded.of(examples), kept


def sentences_of_left_out(rows: Sequence[Row], kept: Sequence[int], task: Task[Any], source: str) -> list[str]:
    """What `encode_rows` left out: how many rows, and each label that has none any more. Empty where it kept all."""
    gone = set(range(len(rows))) - set(kept)
    if not gone:
        return []
    sentences = [f"{len(gone)} of {len(rows)} {source} rows are left out: too long, or nothing in them is trained"]
    column = task.label_column
    if column is not None:
        emptied = {rows[i][column] for i in gone} - {rows[i][column] for i in kept}
        sentences += [f"no {source} row of the label {label!r} is left" for label in sorted(emptied)]
    return sentences
