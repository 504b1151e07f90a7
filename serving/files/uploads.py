"""Files uploaded in parts: up to 8 GiB, within an hour.

    teams/{team}/uploads/{upload_id}.json     the record
    uploads/{team}/{upload_id}/{part_id}      a part

Owns uploads and their parts. A completed upload becomes an ordinary file (`stored_files`).
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from ray_jobs.errors import ObjectNotFound
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents
from serving.files.quota import require_room
from serving.files.stored_files import Files
from serving.http import openai_types
from serving.http.errors import ApiError, bad_request
from serving.http.ids import is_id, new_id

MAX_PART_BYTES = 64 * 2**20
MAX_BYTES = 8 * 2**30
MAX_PARTS = 1000
_LIVES_S = 3600
_KEPT_S = 86_400
"""Age of a record at which it is deleted."""


class UploadRecord(BaseModel, frozen=True):
    """One upload of one team."""

    id: str
    team: str
    key_id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int
    status: str = "pending"
    file_lives_s: int | None = None
    file_id: str | None = None


@dataclass(frozen=True)
class Uploads:
    """The uploads of every team."""

    store: Store
    files: Files

    def create(
        self, team: str, key_id: str, body: openai_types.CreateUpload, file_lives_s: int | None
    ) -> openai_types.Upload:
        if body.bytes > MAX_BYTES:
            raise bad_request(f"bytes is {body.bytes}; at most {MAX_BYTES}", param="bytes")
        now_s = self.store.now_s()
        now = int(now_s)
        limits = self.files.quotas.of(team)
        require_room(self.store, team, limits, body.bytes)
        lately = sum(info.modified_s > now_s - _LIVES_S for info in self.store.list(_records(team).prefix))
        if lately >= limits.files:
            message = f"team {team} began {lately} uploads in the last hour, and may begin {limits.files}: wait"
            raise ApiError(429, message, code="files_exceeded", headers={"x-should-retry": "false"})
        record = UploadRecord(
            id=new_id("upload", now_s=now_s),
            team=team,
            key_id=key_id,
            filename=body.filename,
            purpose=body.purpose,
            bytes=body.bytes,
            created_at=now,
            expires_at=now + _LIVES_S,
            file_lives_s=file_lives_s,
        )
        self.store.put_json(_records(team).key(record.id), record.model_dump(mode="json"), if_absent=True)
        return self._to_openai(record)

    def add_part(self, team: str, upload_id: str, content: Path) -> openai_types.UploadPart:
        record = self._get(team, upload_id)
        self._check_pending(record)
        size_bytes = content.stat().st_size
        if not 0 < size_bytes <= MAX_PART_BYTES:
            raise bad_request(f"the part has {size_bytes} bytes; it must have 1 to {MAX_PART_BYTES}", param="data")
        sizes = [info.size_bytes for info in self.store.list(_folder(team, record.id))]
        if len(sizes) >= MAX_PARTS:
            raise bad_request(f"the upload has {len(sizes)} parts; it may have {MAX_PARTS}", param="data")
        total_bytes = size_bytes + sum(sizes)
        # Twice the declared size: a client resends a part whose response was lost, under a new id.
        if size_bytes > record.bytes or total_bytes > 2 * record.bytes:
            message = f"with this part the upload has {total_bytes} bytes, but {record.bytes} were declared"
            raise bad_request(message, param="data")
        now_s = self.store.now_s()
        part_id = new_id("part", now_s=now_s)
        self.store.upload_file(content, f"{_folder(team, record.id)}/{part_id}")
        return openai_types.UploadPart(id=part_id, created_at=int(now_s), upload_id=record.id)

    def complete(self, team: str, upload_id: str, body: openai_types.CompleteUpload) -> openai_types.Upload:
        """Concatenate the parts in the order of `part_ids`. Raises ApiError 400 if size or md5 do not match.

        Returns the same file for an upload that is already complete: the first response may have been lost.
        """
        record = self._get(team, upload_id)
        if record.status == "completed":
            return self._to_openai(record)
        self._check_pending(record)
        if len(set(body.part_ids)) != len(body.part_ids):
            raise bad_request("a part is named twice", param="part_ids")
        sizes = {info.key.rpartition("/")[2]: info.size_bytes for info in self.store.list(_folder(team, record.id))}
        if unknown := [part for part in body.part_ids if part not in sizes]:
            raise bad_request(f"{record.id} has no part {', '.join(unknown[:5])}", param="part_ids")
        size_bytes = sum(sizes[part] for part in body.part_ids)
        if size_bytes != record.bytes:
            raise bad_request(f"the parts have {size_bytes} bytes, but {record.bytes} were declared", param="part_ids")
        with tempfile.NamedTemporaryFile(prefix="kitae-upload-") as whole:
            digest = hashlib.md5(usedforsecurity=False)  # prescribed by OpenAI's API
            for part in body.part_ids:
                for piece in self.store.read_in_pieces(f"{_folder(team, record.id)}/{part}", 2**20):
                    digest.update(piece)
                    whole.write(piece)
            whole.flush()
            if body.md5 is not None and body.md5.lower() != digest.hexdigest():
                raise bad_request(f"the parts' md5 is {digest.hexdigest()}, not {body.md5[:40]!r}", param="md5")
            try:
                self.files.create(
                    team,
                    record.key_id,
                    Path(whole.name),
                    filename=record.filename,
                    purpose=record.purpose,
                    expires_after_s=record.file_lives_s,
                    identifier=_file_id(record.id),
                )
            except ObjectNotFound:
                self._check_pending(self._get(team, upload_id))  # cancelled meanwhile, with its content
                raise
        done = self._end(record, "completed")
        self.store.delete_tree(_folder(team, record.id))
        return self._to_openai(done)

    def cancel(self, team: str, upload_id: str) -> openai_types.Upload:
        record = self._get(team, upload_id)
        if record.status != "cancelled":  # else cancelled by an earlier try
            self._check_pending(record)
            record = self._end(record, "cancelled")
        self.files.delete(team, _file_id(record.id))  # left by a `complete` that did not finish
        self.store.delete_tree(_folder(team, record.id))
        return self._to_openai(record)

    def sweep(self, now_s: float) -> None:
        """Delete the parts of ended and expired uploads, and records older than a day."""
        for team in self.store.list_dirs("teams/"):
            records = [info for info in self.store.list(_records(team).prefix) if info.modified_s < now_s - _KEPT_S]
            self.store.delete([info.key for info in records])
        for team in self.store.list_dirs("uploads/"):
            for upload_id in self.store.list_dirs(f"uploads/{team}/"):
                record = _records(team).find(self.store, upload_id)
                if record is None and self.store.exists(_records(team).key(upload_id)):
                    continue  # unreadable now: a newer version of Kitae may have written it
                if record is None or record.status != "pending" or record.expires_at <= now_s:
                    self.store.delete_tree(_folder(team, upload_id))

    def _get(self, team: str, upload_id: str) -> UploadRecord:
        record = _records(team).read(self.store, upload_id) if is_id("upload", upload_id) else None
        if record is None:
            raise ApiError(404, f"the upload {upload_id!r} does not exist", code="upload_not_found")
        return record

    def _check_pending(self, record: UploadRecord) -> None:
        expired = record.status == "pending" and record.expires_at <= self.store.now_s()
        if (status := "expired" if expired else record.status) != "pending":
            raise bad_request(f"{record.id} is {status}", code="upload_not_pending")

    def _end(self, record: UploadRecord, status: str) -> UploadRecord:
        """Set the final status by a conditional write: of two concurrent and different endings one wins."""

        def end(current: UploadRecord | None) -> UploadRecord:
            if current is None:
                raise ApiError(404, f"the upload {record.id!r} does not exist", code="upload_not_found")
            if current.status not in ("pending", status):
                raise bad_request(f"{record.id} is {current.status}", code="upload_not_pending")
            file_id = _file_id(record.id) if status == "completed" else None
            return current.model_copy(update={"status": status, "file_id": file_id})

        try:
            return _records(record.team).update(self.store, record.id, end)
        except ApiError:
            if status == "completed":
                self.files.delete(record.team, _file_id(record.id))
            raise

    def _to_openai(self, record: UploadRecord) -> openai_types.Upload:
        file = self.files.find(record.team, record.file_id) if record.file_id is not None else None
        fields = record.model_dump(exclude={"team", "key_id", "file_lives_s", "file_id"})
        return openai_types.Upload.model_validate(fields | {"file": None if file is None else file.to_openai()})


def _records(team: str) -> Documents[UploadRecord]:
    return Documents(f"teams/{team}/uploads/", UploadRecord, "an upload")


def _file_id(upload_id: str) -> str:
    """Derive the id of the upload's file; deterministic, so that an upload becomes one file."""
    return f"file-{upload_id.removeprefix('upload-')}"


def _folder(team: str, upload_id: str) -> str:
    return f"uploads/{team}/{upload_id}"
