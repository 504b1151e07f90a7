"""Rows as tensors, once: encoded before the training, mapped into memory by every worker.

Owns the file of encoded rows and the policy for rows that are too long. Does not know what a task's rows mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ray_jobs.data.distributed import batches_of
from ray_jobs.data.findings import Findings
from ray_jobs.errors import DataError
from ray_jobs.tasks.base import IGNORED, Example, Row, Task, TensorExample

ENCODING = 2
"""Number of the way in which rows are encoded: rows that were encoded otherwise are not used again."""
_BATCH_ROWS = 200
_TYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "I16": np.int16, "U16": np.uint16, "I32": np.int32,
    "U32": np.uint32, "I64": np.int64, "U64": np.uint64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip


@dataclass(frozen=True)
class Encoded(Sequence[Any]):
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
    def joined(cls, parts: Sequence[Encoded]) -> Encoded:
        """The rows of all parts, in order."""
        first = parts[0]
        starts = {
            name: np.cumsum([0, *(len(part.values[name]) for part in parts)], dtype=np.int64) for name in first.values
        }
        return cls(
            {name: np.concatenate([part.values[name] for part in parts]) for name in first.values},
            {
                name: np.concatenate(
                    [part.ends[name] + start for part, start in zip(parts, starts[name], strict=False)]
                )
                for name in first.values
            },
            tuple(chain.from_iterable(part.lengths for part in parts)),
            tuple(chain.from_iterable(part.supervised for part in parts)),
            first.tokens,
        )

    @classmethod
    def load(cls, path: Path) -> Encoded:
        """Map what `save` wrote into memory: the arrays are read where they are used, and not to be changed."""
        arrays = _mapped(path)
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

    def __getitem__(self, i: int) -> Any:  # type: ignore[override]  # no slices
        """Row i, of the kind that the task's `encode` returns. Raises IndexError."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        starts = {name: ends[i - 1] if i else 0 for name, ends in self.ends.items()}
        row = {name: array[starts[name] : self.ends[name][i]] for name, array in self.values.items()}
        if self.tokens:
            return Example(tuple(row["input_ids"].tolist()), tuple(row["labels"].tolist()))
        return TensorExample(row, self.supervised[i], self.lengths[i])


def _arrays(example: Example | TensorExample) -> Mapping[str, np.ndarray]:
    if isinstance(example, TensorExample):
        return example.tensors
    return {"input_ids": np.asarray(example.input_ids, np.int32), "labels": np.asarray(example.labels, np.int32)}


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, mapped: the library's own reader copies them.

    The format: 8 bytes with the length of a JSON header, the header with types, shapes and offsets, the data.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: np.memmap(path, _TYPES[each["dtype"]], "r", 8 + length + each["data_offsets"][0], tuple(each["shape"]))
        if 0 not in each["shape"]
        else np.empty(each["shape"], _TYPES[each["dtype"]])
        for name, each in header.items()
    }


@dataclass
class Kept:
    """What became of the rows of a side."""

    rows: int = 0
    kept: list[int] = field(default_factory=list)
    """Number of the row of each example, in order."""
    labels: set[str] = field(default_factory=set)
    labels_of_others: set[str] = field(default_factory=set)

    def sentences(self, source: str) -> list[str]:
        """How many rows are left out, and each label that has none any more. Empty where all are kept."""
        gone, emptied = self.rows - len(set(self.kept)), sorted(self.labels_of_others - self.labels)
        if not gone:
            return []
        return [
            f"{gone} of {self.rows} {source} rows are left out: too long, or nothing in them is trained",
            *(f"no {source} row of the label {label!r} is left" for label in emptied),
        ]


@dataclass(frozen=True)
class _EncodedPart:
    encoded: Encoded | None
    kept: Kept
    long: Findings
    refused: Findings


@dataclass(frozen=True)
class _EncodeWork:
    """Encodes a batch of rows: the number of the first one, and the rows."""

    task: Task[Any]
    processor: Any
    labels: Sequence[str]
    max_tokens: int
    too_long: Literal["error", "drop", "truncate"]

    def __call__(self, batch: tuple[int, list[Row]]) -> _EncodedPart:
        start, rows = batch
        examples: list[Any] = []
        found, long, refused = Kept(rows=len(rows)), Findings(), Findings()
        for i, row in enumerate(rows, start):
            kept = self._examples(f"row {i + 1}", row, long, refused)
            examples += kept
            found.kept += [i] * len(kept)
            if self.task.label_column is not None:
                (found.labels if kept else found.labels_of_others).add(row[self.task.label_column])
        return _EncodedPart(Encoded.of(examples) if examples else None, found, long, refused)

    def _examples(self, where: str, row: Row, long: Findings, refused: Findings) -> list[Any]:
        try:
            found = self.task.encode(row, self.processor, self.labels)
        except DataError as error:
            refused.add(where, str(error))
            return []
        longest = max((example.length for example in found), default=0)
        if longest > self.max_tokens:
            long.add(where, f"{longest} tokens")
            found = [example.truncated(self.max_tokens) for example in found] if self.too_long == "truncate" else ()
        return [example for example in found if example.supervised]


def encode_rows(
    rows: Collection[Row],
    task: Task[Any],
    processor: Any,
    labels: Sequence[str],
    *,
    max_tokens: int,
    too_long: Literal["error", "drop", "truncate"],
    source: str,
    progress: Callable[[int, int], None] | None = None,
    distributed: bool = False,
) -> tuple[Encoded, Kept]:
    """Encode rows, in order. `distributed`: on the Ray cluster that this process has joined; rows and processor are
    pickled.

    Raises DataError naming every row that the processor cannot express, every one over `max_tokens` where the policy
    is `error`, and where no row is left.
    """
    work = _EncodeWork(task, processor, tuple(labels), max_tokens, too_long)
    parts, found, long, refused = list[Encoded](), Kept(), Findings(), Findings()
    for part in batches_of([rows], _numbered, work, distributed=distributed):
        long.extend(part.long)
        refused.extend(part.refused)
        if part.encoded is not None:
            parts.append(part.encoded)
        found.rows += part.kept.rows
        found.kept += part.kept.kept
        found.labels |= part.kept.labels
        found.labels_of_others |= part.kept.labels_of_others
        if progress is not None:
            progress(found.rows, len(rows))
    if refused.count:
        what = f"{refused.count} of {found.rows} {source} rows cannot be written for this base"
        raise DataError(what, details=refused.listed)
    if long.count and too_long == "error":
        raise DataError(
            f"{long.count} of {found.rows} {source} rows are longer than data.max_tokens {max_tokens}; raise it "
            "(the base's positions are the most), shorten the rows, or set data.too_long to drop or truncate",
            details=long.listed,
        )
    if not parts:
        raise DataError(
            f"no {source} row of {found.rows} is left to use: {long.count} were over data.max_tokens {max_tokens}, the "
            "others supervise nothing"
        )
    return Encoded.joined(parts), found


def _numbered(rows: Iterable[Row]) -> Iterator[tuple[int, list[Row]]]:
    """Batches of rows, each with the number of its first row."""
    start, left = 0, iter(rows)
    while batch := list(islice(left, _BATCH_ROWS)):
        yield start, batch
        start += len(batch)
