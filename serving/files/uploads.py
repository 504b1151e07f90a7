"""Files that come in parts: up to 8 GiB, within an hour.

    teams/{team}/uploads/{upload_id}.json     uploads/{team}/{upload_id}/{part_id}

Owns uploads and their parts. What the whole becomes is a file like any other (`files`).
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ray_jobs.errors import ObjectNotFound
from ray_jobs.storage import Store
from serving.files.stored_files import FileRecord, Files
from serving.http import openai_types as wire
from serving.http.errors import ApiError, bad_request
from serving.http.ids import is_id, new_id

MOST_PART_BYTES = 64 * 2**20
MOST_BYTES = 8 * 2**30
_LIVES_S = 3600
_PIECE_BYTES = 2**20


class UploadRecord(BaseModel):
    """One upload of one team."""

    model_config = ConfigDict(frozen=True)

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


class Uploads:
    """The uploads of every team."""

    def __init__(self, store: Store, files: Files) -> None:
        self._store = store
        self._files = files

    def create(self, team: str, key_id: str, body: wire.CreateUpload, file_lives_s: int | None) -> wire.Upload:
        if body.bytes > MOST_BYTES:
            raise bad_request(f"bytes is {body.bytes}; at most {MOST_BYTES}", param="bytes")
        now = int(time.time())
        record = UploadRecord(
            id=new_id("upload"),
            team=team,
            key_id=key_id,
            filename=body.filename,
            purpose=body.purpose,
            bytes=body.bytes,
            created_at=now,
            expires_at=now + _LIVES_S,
            file_lives_s=file_lives_s,
        )
        self._store.put_json(_key(team, record.id), record.model_dump(mode="json"), if_absent=True)
        return self._as_wire(record)

    def add_part(self, team: str, upload_id: str, content: Path) -> wire.Part:
        record = self._pending(team, upload_id)
        size_bytes = content.stat().st_size
        if not 0 < size_bytes <= MOST_PART_BYTES:
            raise bad_request(f"the part has {size_bytes} bytes; it must have 1 to {MOST_PART_BYTES}", param="data")
        there = sum(info.size_bytes for info in self._store.list(_folder(team, record.id)))
        # Twice as much as was announced: a part whose answer was lost is sent again, as another one.
        if size_bytes > record.bytes or there + size_bytes > 2 * record.bytes:
            message = f"with this part the upload has {there + size_bytes} bytes, and {record.bytes} were announced"
            raise bad_request(message, param="data")
        part_id = new_id("part")
        self._store.upload_file(content, f"{_folder(team, record.id)}/{part_id}")
        return wire.Part(id=part_id, created_at=int(time.time()), upload_id=record.id)

    def complete(self, team: str, upload_id: str, body: wire.CompleteUpload) -> wire.Upload:
        """Put the parts together, in the order of `part_ids`. ApiError 400 where they are not what was announced.

        Of an upload that is complete, its file: the answer may have been lost.
        """
        there_already = self._find(team, upload_id)
        if there_already is not None and there_already.status == "completed":
            return self._completed(there_already)
        record = self._pending(team, upload_id)
        if len(set(body.part_ids)) != len(body.part_ids):
            raise bad_request("a part is named twice", param="part_ids")
        there = {info.key.rpartition("/")[2]: info.size_bytes for info in self._store.list(_folder(team, record.id))}
        if unknown := [part for part in body.part_ids if part not in there]:
            raise bad_request(f"{record.id} has no part {', '.join(unknown[:5])}", param="part_ids")
        size_bytes = sum(there[part] for part in body.part_ids)
        if size_bytes != record.bytes:
            raise bad_request(f"the parts have {size_bytes} bytes, and {record.bytes} were announced", param="part_ids")
        with tempfile.NamedTemporaryFile(prefix="kitae-upload-") as whole:
            digest = hashlib.md5(usedforsecurity=False)  # the API's own choice
            for part in body.part_ids:
                for piece in self._store.read_in_pieces(f"{_folder(team, record.id)}/{part}", _PIECE_BYTES):
                    digest.update(piece)
                    whole.write(piece)
            whole.flush()
            if body.md5 is not None and body.md5.lower() != digest.hexdigest():
                raise bad_request(f"the parts' md5 is {digest.hexdigest()}, not {body.md5[:40]!r}", param="md5")
            self._files.create(
                team,
                record.key_id,
                Path(whole.name),
                filename=record.filename,
                purpose=record.purpose,
                lives_s=record.file_lives_s,
                identifier=_file_id(record.id),
            )
        done = self._end(record, "completed")
        self._store.delete_tree(_folder(team, record.id))
        return self._completed(done)

    def cancel(self, team: str, upload_id: str) -> wire.Upload:
        record = self._find(team, upload_id)
        if record is None or record.status != "cancelled":  # else by a try whose answer was lost
            record = self._end(self._pending(team, upload_id), "cancelled")
        self._drop_file(record)  # of a `complete` that was cut off
        self._store.delete_tree(_folder(team, record.id))
        return self._as_wire(record)

    def sweep(self, now_s: float) -> None:
        """Delete the parts of uploads that are over."""
        for team in self._store.list_dirs("uploads/"):
            for upload_id in self._store.list_dirs(f"uploads/{team}/"):
                record = self._find(team, upload_id)
                if record is None or record.status != "pending" or record.expires_at <= now_s:
                    self._store.delete_tree(_folder(team, upload_id))

    def _find(self, team: str, upload_id: str) -> UploadRecord | None:
        if not is_id("upload", upload_id):
            return None
        try:
            return UploadRecord.model_validate(self._store.get_json(_key(team, upload_id)))
        except ObjectNotFound:
            return None

    def _pending(self, team: str, upload_id: str) -> UploadRecord:
        record = self._find(team, upload_id)
        if record is None:
            raise ApiError(404, f"there is no upload {upload_id!r}", code="upload_not_found")
        status = "expired" if record.status == "pending" and record.expires_at <= time.time() else record.status
        if status != "pending":
            raise bad_request(f"{upload_id} is {status}", code="upload_not_pending")
        return record

    def _end(self, record: UploadRecord, status: str) -> UploadRecord:
        """Of two who end an upload at once in different ways, one does."""

        def end(old: dict[str, object] | None) -> dict[str, object]:
            there = UploadRecord.model_validate(old)
            if there.status not in ("pending", status):
                raise bad_request(f"{record.id} is {there.status}", code="upload_not_pending")
            changes = {"status": status, "file_id": _file_id(record.id) if status == "completed" else None}
            return there.model_copy(update=changes).model_dump(mode="json")

        try:
            return UploadRecord.model_validate(self._store.update_json(_key(record.team, record.id), end))
        except ApiError:
            if status == "completed":
                self._drop_file(record)
            raise

    def _drop_file(self, record: UploadRecord) -> None:
        if self._files.find(record.team, _file_id(record.id)) is not None:
            self._files.delete(record.team, _file_id(record.id))

    def _completed(self, record: UploadRecord) -> wire.Upload:
        return self._as_wire(record, self._files.find(record.team, _file_id(record.id)))

    def _as_wire(self, record: UploadRecord, file: FileRecord | None = None) -> wire.Upload:
        return wire.Upload.model_validate(
            {
                **record.model_dump(exclude={"team", "key_id", "file_lives_s", "file_id"}),
                "file": None if file is None else file.as_wire(),
            }
        )


def _key(team: str, upload_id: str) -> str:
    return f"teams/{team}/uploads/{upload_id}.json"


def _file_id(upload_id: str) -> str:
    """Of the file that an upload becomes: always the same, so that it becomes one."""
    return f"file-{upload_id.removeprefix('upload-')}"


def _folder(team: str, upload_id: str) -> str:
    return f"uploads/{team}/{upload_id}"
