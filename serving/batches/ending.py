"""The end of a batch: its two files, its event and its final status.

Every step is idempotent, and the batch leaves the list of open ones last, so any process may repeat an end that another
began.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from ray_jobs.digests import json_digest
from ray_jobs.storage import Store
from ray_jobs.tenancy import webhooks
from serving.batches import input_file, records
from serving.batches.progress import BatchEnd, BatchLog, FinishedLines, LineFailure, counted, folder
from serving.batches.records import ApiBatch
from serving.files.stored_files import Files
from serving.http.batch_types import BatchError
from serving.http.ids import derived_id

_EVENTS: dict[str, webhooks.EventType] = {
    "completed": "batch.completed",
    "failed": "batch.failed",
    "expired": "batch.expired",
    "cancelled": "batch.cancelled",
}
_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class Ending:
    """Ends batches."""

    store: Store
    files: Files
    max_line_bytes: int

    def fail(self, batch: ApiBatch, errors: Iterable[BatchError], total: int | None = None) -> ApiBatch:
        """End a batch whose input file is invalid, or cannot be read any more."""
        changes = {"status": "failed", "errors": tuple(errors), "total": total}
        return self._close(batch, changes, int(self.store.now_s()))

    def cancel_unread(self, batch: ApiBatch) -> ApiBatch:
        """End a batch that was cancelled, or expired, before its input file was read."""
        expired = batch.status != "cancelling"
        return self._close(batch, {"status": "expired" if expired else "cancelled"}, int(self.store.now_s()))

    def finish(self, batch: ApiBatch) -> ApiBatch:
        """Make the files of a batch whose log has an end, and close it."""
        log = BatchLog(self.store, batch)
        entries = log.read()
        end = entries[-1].end if entries else None
        if end is None:  # closed and cleaned by another process
            return batch
        at_s = entries[-1].at

        def finalizing(old: ApiBatch) -> ApiBatch:
            if old.is_over:
                return old
            status = "finalizing" if old.status == "in_progress" else old.status
            return counted(old, entries).model_copy(update={"status": status, "finalizing_at": int(at_s)})

        batch = records.update(self.store, batch, finalizing)
        if batch.is_over:
            return self.close(batch)
        # Ids that follow from the end, so that a repeated end makes the same files; a millisecond apart.
        output = self._file(batch, "output", log.output(entries), derived_id("file", batch.id, at_s))
        failed = chain(log.errors(entries), self._rest(batch, entries, end))
        errors = self._file(batch, "errors", failed, derived_id("file", batch.id, at_s + 0.001))
        changes = {"status": end.status, "output_file_id": output, "error_file_id": errors}
        return self._close(batch, changes, int(self.store.now_s()))

    def pieces(self, batch: ApiBatch) -> Iterator[bytes]:
        """The input file. Raises ObjectNotFound if it was deleted."""
        return self.store.read_in_pieces(batch.input_key, _PIECE_BYTES)

    def _rest(self, batch: ApiBatch, entries: list[FinishedLines], end: BatchEnd) -> Iterator[bytes]:
        """The error lines of the requests without a result."""
        if end.rest is None:
            return
        done = {number for entry in entries for number in (*entry.completed, *entry.failed)}
        for number, raw in input_file.raw_lines(self.pieces(batch), self.max_line_bytes):
            if number not in done:
                line = input_file.parse(number, raw, batch.endpoint, self.max_line_bytes)
                identifier = json_digest({"batch": batch.id, "line": number}, 32)
                yield output_line(identifier, line.custom_id, None, end.rest)

    def _file(self, batch: ApiBatch, name: str, pieces: Iterable[bytes], identifier: str) -> str | None:
        """Store one of the batch's files; None if it would be empty."""
        with tempfile.NamedTemporaryFile(prefix="kitae-batch-") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            if not file.tell():
                return None
            self.files.put_result(
                batch.team,
                identifier,
                f"{batch.id}_{name}.jsonl",
                Path(file.name),
                purpose="batch_output",
                expires_after_s=batch.output_lives_s,
            )
        return identifier

    def _close(self, batch: ApiBatch, changes: dict[str, Any], at: int) -> ApiBatch:
        """Record the end, unless another process has."""
        final = changes | {"ended_at": at, "lease": None}
        return self.close(
            records.update(self.store, batch, lambda old: old if old.is_over else old.model_copy(update=final))
        )

    def close(self, batch: ApiBatch) -> ApiBatch:
        """Announce the recorded end of a batch, and remove what only the work on it needed."""
        at = datetime.fromtimestamp(batch.ended_at or batch.created_at, UTC)
        webhooks.enqueue(self.store, batch.team, _EVENTS[batch.status], batch.id, at=at)
        records.leave(self.store, batch.team, batch.id)
        self.store.delete_tree(folder(batch.team, batch.id))
        return batch


def output_line(identifier: str, custom_id: str, response: dict[str, Any] | None, error: LineFailure | None) -> bytes:
    """One line of an output or error file, in OpenAI's shape."""
    line = {
        "id": f"batch_req_{identifier}",
        "custom_id": custom_id,
        "response": response,
        "error": None if error is None else error.model_dump(),
    }
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"
