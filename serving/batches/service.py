"""The batches of all teams: creates, reads and cancels them, and deletes what killed processes left behind.

Any number of processes may do so on one store. Does not run batches (`runner`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ray_jobs.digests import json_digest
from ray_jobs.storage import Store
from ray_jobs.tenancy import audit
from ray_jobs.tenancy.audit import Actor
from serving.access.auth import Caller
from serving.batches import records
from serving.batches.input_file import MAX_LINES, raw_lines
from serving.batches.progress import folder
from serving.batches.records import KIND, ORPHAN_AFTER_S, WINDOW_S, ApiBatch, OpenBatch
from serving.files.stored_files import FileRecord, Files
from serving.fine_tuning.records import claim, claimed_before
from serving.http.batch_types import BatchObject, CreateBatch
from serving.http.errors import ApiError, bad_request, invalid_fields
from serving.http.fields import metadata_problems
from serving.http.ids import Page, created_at_s, is_id, new_id, page

PURPOSE = "batch"
_WORK_KEPT_S = 86_400.0
"""Age at which working objects of an ended batch are left from a killed process."""


@dataclass
class Batches:
    """The batches of one store. Thread-safe."""

    store: Store
    files: Files
    wake: Callable[[], None] = field(default=lambda: None)
    """Called when the runner has something to do."""

    def create(self, body: CreateBatch, caller: Caller, actor: Actor, *, key: str | None, retried: bool) -> BatchObject:
        """Create a batch, or return the one that this request has created. Raises ApiError for an invalid request.

        `key`: the Idempotency-Key.
        """
        team, now_s = caller.team, self.store.now_s()
        request = json_digest({"batch": body.model_dump(mode="json", exclude_unset=True), "team": team}, 32)
        made = claimed_before(self.store, team, key, request, retried=retried, now_s=now_s)
        if made is not None and (existing := records.find(self.store, team, made)) is not None:
            return existing.to_openai()
        if found := metadata_problems(body.metadata):
            raise invalid_fields(found)
        file = self._input_file(team, body.input_file_id)
        lines = self._lines_of(file)
        new = new_id(KIND, now_s=now_s)
        identifier = claim(self.store, team, key, request, new, retried=retried, now_s=now_s)
        if identifier != new and (existing := records.find(self.store, team, identifier)) is not None:
            return existing.to_openai()
        created_at = int(created_at_s(identifier))
        batch = ApiBatch(
            id=identifier,
            team=team,
            key_id=caller.key_id,
            admin=caller.admin,
            created_at=created_at,
            expires_at=created_at + WINDOW_S,
            endpoint=body.endpoint,
            input_file_id=file.id,
            input_key=file.key,
            metadata=body.metadata,
            output_lives_s=None if body.output_expires_after is None else body.output_expires_after.seconds,
        )
        details: dict[str, audit.Value] = {"input_file": file.id, "endpoint": body.endpoint, "lines": lines}
        with audit.recorded(self.store, actor, "batch.create", identifier, team=team, details=details):
            entry = OpenBatch(at=now_s, lines=lines, file_id=file.id)
            records.enter(self.store, team, identifier, entry, self.files.quotas.of(team))
            try:
                self._input_file(team, file.id)  # not deleted meanwhile; from now on it stays
            except ApiError:
                records.leave(self.store, team, identifier)
                raise
            batch = records.put_new(self.store, batch)
        self.wake()
        return batch.to_openai()

    def get(self, team: str, identifier: str) -> BatchObject:
        return records.load(self.store, team, identifier).to_openai()

    def page(self, team: str, *, limit: int, after: str | None) -> Page[BatchObject]:
        def read(identifier: str) -> BatchObject | None:
            found = records.find(self.store, team, identifier)
            return None if found is None else found.to_openai()

        return page(records.ids(self.store, team, self.store.now_s(), after=after), read, limit=limit)

    def cancel(self, team: str, identifier: str, actor: Actor, *, retried: bool) -> BatchObject:
        """Cancel a batch: its running requests end within seconds. `retried`: the first try may have done it."""
        batch = records.load(self.store, team, identifier)
        if batch.status == "cancelling" or (retried and batch.status == "cancelled"):
            return batch.to_openai()
        now = int(self.store.now_s())

        def change(old: ApiBatch) -> ApiBatch:
            if old.status == "cancelling":
                return old
            if old.status not in ("validating", "in_progress"):
                message = f"{old.id} is {old.status} and cannot be cancelled"
                raise bad_request(message, code="invalid_state")
            return old.model_copy(update={"status": "cancelling", "cancelling_at": now})

        change(batch)
        with audit.recorded(self.store, actor, "batch.cancel", identifier, team=team):
            batch = records.update(self.store, batch, change)
        self.wake()
        return batch.to_openai()

    def open_using(self, team: str, file_id: str) -> list[str]:
        """List the team's open batches that read this file. An entry without a record may be about to get it."""
        found = []
        for identifier, entry in records.open_of(self.store, team).items():
            if entry.file_id != file_id:
                continue
            batch = records.find(self.store, team, identifier)
            young = self.store.now_s() - entry.at < ORPHAN_AFTER_S
            if not batch.is_over if batch is not None else young or records.exists(self.store, team, identifier):
                found.append(identifier)
        return found

    def sweep(self, now_s: float) -> int:
        """Delete old working objects of batches that have ended; returns their number."""
        done = 0
        for team in self.store.list_dirs("batches/"):
            opened = records.open_of(self.store, team)
            for identifier in self.store.list_dirs(f"batches/{team}/"):
                old = is_id(KIND, identifier) and created_at_s(identifier) < now_s - _WORK_KEPT_S
                if identifier not in opened and old:
                    self.store.delete_tree(folder(team, identifier))
                    done += 1
        return done

    def _input_file(self, team: str, identifier: str) -> FileRecord:
        file = self.files.find(team, identifier)
        if file is None:
            raise bad_request(f"the file {identifier!r} does not exist", param="input_file_id", code="file_not_found")
        if file.purpose != PURPOSE:
            message = f"the purpose of {identifier} is {file.purpose!r}: upload it with the purpose {PURPOSE!r}"
            raise bad_request(message, param="input_file_id", code="wrong_purpose")
        return file

    def _lines_of(self, file: FileRecord) -> int:
        """Number of lines of a file. Raises ApiError 400 if there are too many."""
        lines = sum(1 for _ in raw_lines(self.files.content(file), file.bytes))
        if lines > MAX_LINES:
            message = f"the file has {lines} lines, and a batch may have {MAX_LINES}: send several batches"
            raise bad_request(message, param="input_file_id", code="too_many_lines")
        return lines
