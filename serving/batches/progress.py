"""What is done of a batch: a log of finished lines, from which the output files are made.

    batches/{team}/{id}/log/{number:06d}.json   lines that ended, and in the last entry how the batch ends
    batches/{team}/{id}/results/…               their lines of the output file and of the error file

An entry has the next number and is created by a conditional write, after its results. A worker that appends entry n has
read all entries before it, and asks no line that is in one of them. So of two workers that believe to have the batch
one loses the next number and stops, no line is in two entries, and nothing follows the entry that ends the batch:
the output files are a function of the input file and the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel

from ray_jobs.errors import ConflictError, CorruptObject
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents
from serving.batches.records import ApiBatch

_PIECE_BYTES = 2**20


class LineFailure(BaseModel, frozen=True):
    """Why a line was not run."""

    code: str
    message: str


class BatchEnd(BaseModel, frozen=True):
    """How a batch ends."""

    status: Literal["completed", "expired", "cancelled"]
    rest: LineFailure | None = None
    """The error of every line without a result. None: every line has one."""


class FinishedLines(BaseModel, frozen=True):
    """One entry of the log."""

    worker: str
    at: float
    """Unix seconds."""
    completed: tuple[int, ...] = ()
    """Numbers of the lines with an answer."""
    failed: tuple[int, ...] = ()
    """Numbers of the lines with an error."""
    input_tokens: int = 0
    output_tokens: int = 0
    end: BatchEnd | None = None


class BatchLog:
    """The log of one batch."""

    def __init__(self, store: Store, batch: ApiBatch) -> None:
        self._store = store
        self._folder = folder(batch.team, batch.id)
        self._entries = Documents(f"{self._folder}log/", FinishedLines, "an entry of a batch's log")

    def read(self) -> list[FinishedLines]:
        """All entries, in order. Raises CorruptObject if one cannot be read or is missing."""
        names = self._entries.names(self._store)
        found = self._entries.read_some(self._store, names)
        if list(found) != [f"{number:06d}" for number in range(len(names))]:
            raise CorruptObject(f"{self._entries.prefix} has an entry that cannot be read, or lacks one")
        return list(found.values())

    def append(self, number: int, entry: FinishedLines, output: bytes, errors: bytes) -> bool:
        """Append an entry with its lines of both files. False: another worker has written one of this number.

        Idempotent for an equal entry.
        """
        for name, content in (("output", output), ("errors", errors)):
            if content:
                self._store.put(self._results(number, entry, name), content)
        try:
            self._entries.create(self._store, f"{number:06d}", entry)
        except ConflictError:  # perhaps by an earlier try, whose answer was lost
            return self._entries.read(self._store, f"{number:06d}") == entry
        return True

    def output(self, entries: list[FinishedLines]) -> Iterator[bytes]:
        """The lines of the output file, in pieces."""
        for number, entry in enumerate(entries):
            if entry.completed:
                yield from self._store.read_in_pieces(self._results(number, entry, "output"), _PIECE_BYTES)

    def errors(self, entries: list[FinishedLines]) -> Iterator[bytes]:
        """The lines of the error file, without those of `BatchEnd.rest`, in pieces."""
        for number, entry in enumerate(entries):
            if entry.failed:
                yield from self._store.read_in_pieces(self._results(number, entry, "errors"), _PIECE_BYTES)

    def _results(self, number: int, entry: FinishedLines, name: str) -> str:
        return f"{self._folder}results/{number:06d}-{entry.worker}-{name}.jsonl"


def folder(team: str, identifier: str) -> str:
    """Prefix of a batch's working objects, which are deleted after its end."""
    return f"batches/{team}/{identifier}/"


def counted(batch: ApiBatch, entries: list[FinishedLines]) -> ApiBatch:
    """The batch with the counts and tokens of these entries. Pure."""
    end = entries[-1].end if entries else None
    completed = sum(len(entry.completed) for entry in entries)
    failed = sum(len(entry.failed) for entry in entries)
    if end is not None and end.rest is not None and batch.total is not None:
        failed = batch.total - completed
    tokens = {name: sum(getattr(entry, name) for entry in entries) for name in ("input_tokens", "output_tokens")}
    return batch.model_copy(update={"completed": completed, "failed": failed, **tokens})
