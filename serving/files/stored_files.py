"""Files of rows in the store: looked at before they are taken, a team's own, gone when they expire.

    teams/{team}/files/{file_id}.json    the record, written last: without it there is no file
    files/{team}/{file_id}/rows.jsonl    what was sent

Owns records and contents. Does not know HTTP; who looks at the rows is behind `RowCheck`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from ray_jobs.data.report import RowReport
from ray_jobs.errors import ConflictError, DataError, KitaeError, ObjectNotFound
from ray_jobs.registry import catalogue
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.storage import Store
from ray_jobs.tasks import DEFAULT_TASK
from serving.http import openai_types as wire
from serving.http.errors import ApiError, bad_request
from serving.http.ids import is_id, made_at_s, new_id
from serving.http.paging import Order, page

FINE_TUNE = "fine-tune"
RESULTS = "fine-tune-results"
_ENDINGS = (".csv", ".tsv")
"""Read as such; everything else is a JSON object a line."""
_FOREIGN = (".parquet", ".xlsx", ".xls", ".zip", ".gz", ".zst", ".7z", ".tar")
_ORPHAN_AFTER_S = 86_400
_CHUNK_BYTES = 2**20
_LINES_IN_MESSAGE = 20
_LONGEST_NAME = 255


class FileRecord(BaseModel):
    """One file of one team."""

    model_config = ConfigDict(frozen=True)

    id: str
    team: str
    key_id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int | None = None
    key: str
    """Where its content is."""
    report: RowReport | None = None

    def as_wire(self) -> wire.File:
        return wire.File(
            id=self.id,
            bytes=self.bytes,
            created_at=self.created_at,
            filename=self.filename,
            purpose=self.purpose,
            status="processed",
            expires_at=self.expires_at,
            rows=self.report,
        )


class RowCheck(Protocol):
    """Looks at a file of the store; see `ray_jobs.data.row_validation.check_rows`. Raises DataError."""

    def __call__(self, key: str, filename: str, task: str | None, base: CatalogueEntry | None) -> RowReport: ...


class Files:
    """The files of every team."""

    def __init__(self, store: Store, check: RowCheck) -> None:
        self._store = store
        self._check = check

    def create(
        self,
        team: str,
        key_id: str,
        content: Path,
        *,
        filename: str,
        purpose: str,
        lives_s: int | None = None,
        task: str | None = None,
        model: str | None = None,
        identifier: str | None = None,
    ) -> FileRecord:
        """Take a file in. ApiError 400 with every bad line where rows are wrong; nothing is left then.

        `identifier`: an id of the caller's choice, under which it is taken once; None: a new one.
        """
        name = safe_filename(filename)
        size_bytes = content.stat().st_size
        if size_bytes == 0:
            raise bad_request(f"{name} is empty", param="file", code="empty_file")
        ending = PurePosixPath(name).suffix.lower()
        if purpose == FINE_TUNE and ending in _FOREIGN:
            message = f"{name} cannot be read as rows: send .jsonl (a JSON object a line), .csv or .tsv"
            raise bad_request(message, param="file", code="unsupported_file")
        base = self._counting_base(task, model) if purpose == FINE_TUNE else None
        identifier = identifier or new_id("file")
        key = f"{_folder(team, identifier)}/rows{ending if ending in _ENDINGS else '.jsonl'}"
        self._store.upload_file(content, key)
        try:
            report = self._check(key, name, task, base) if purpose == FINE_TUNE else None
        except DataError as error:
            with suppress(KitaeError):
                self._store.delete_tree(_folder(team, identifier))
            raise _refused(error) from error
        created_at = int(made_at_s(identifier))
        record = FileRecord(
            id=identifier,
            team=team,
            key_id=key_id,
            filename=name,
            purpose=purpose,
            bytes=size_bytes,
            created_at=created_at,
            expires_at=None if lives_s is None else created_at + lives_s,
            key=key,
            report=report,
        )
        with suppress(ConflictError):  # it was taken by a try that was cut off
            self._store.put_json(_record_key(team, identifier), record.model_dump(mode="json"), if_absent=True)
        return record

    def put_result(self, team: str, identifier: str, filename: str, content: bytes) -> FileRecord:
        """A file that the service itself gives, under an id of the caller's choice; once."""
        key = f"{_folder(team, identifier)}/{filename}"
        record = FileRecord(
            id=identifier,
            team=team,
            key_id="",
            filename=filename,
            purpose=RESULTS,
            bytes=len(content),
            created_at=int(time.time()),
            key=key,
        )
        self._store.put(key, content)
        with suppress(ConflictError):  # another process has given it
            self._store.put_json(_record_key(team, identifier), record.model_dump(mode="json"), if_absent=True)
        return record

    def find(self, team: str, identifier: str) -> FileRecord | None:
        """None: there is none, not of this team, or not any more."""
        if not is_id("file", identifier):
            return None
        try:
            record = FileRecord.model_validate(self._store.get_json(_record_key(team, identifier)))
        except ObjectNotFound:
            return None
        return None if record.expires_at is not None and record.expires_at <= time.time() else record

    def get(self, team: str, identifier: str, *, param: str | None = None) -> FileRecord:
        """ApiError 404 where there is none."""
        record = self.find(team, identifier)
        if record is None:
            raise ApiError(404, f"there is no file {identifier!r}", code="file_not_found", param=param)
        return record

    def page(
        self, team: str, *, purpose: str | None, limit: int, after: str | None, order: Order
    ) -> tuple[list[FileRecord], bool]:
        def read(identifier: str) -> FileRecord | None:
            record = self.find(team, identifier)
            return record if record is not None and purpose in (None, record.purpose) else None

        return page(self._ids(team), read, limit=limit, after=after, order=order)

    def content(self, record: FileRecord) -> Iterator[bytes]:
        """The bytes as they were sent, a piece at a time."""
        yield from self._store.read_in_pieces(record.key, _CHUNK_BYTES)

    def delete(self, team: str, identifier: str) -> None:
        """ApiError 404 where there is none. The record goes first: nobody finds a file without its content."""
        record = self.get(team, identifier)
        self._store.delete(_record_key(team, identifier))
        self._store.delete_tree(_folder(team, record.id))

    def sweep(self, now_s: float) -> None:
        """Delete what has expired, and contents whose record was never written."""
        for team in self._store.list_dirs("files/"):
            for identifier in self._store.list_dirs(f"files/{team}/"):
                old = is_id("file", identifier) and made_at_s(identifier) < now_s - _ORPHAN_AFTER_S
                try:
                    record = FileRecord.model_validate(self._store.get_json(_record_key(team, identifier)))
                    over = record.expires_at is not None and record.expires_at <= now_s
                except ObjectNotFound:
                    over = old
                if over:
                    self._store.delete(_record_key(team, identifier))
                    self._store.delete_tree(_folder(team, identifier))

    def _ids(self, team: str) -> list[str]:
        keys = (info.key for info in self._store.list(f"teams/{team}/files"))
        return [key.rpartition("/")[2].removesuffix(".json") for key in keys]

    def _counting_base(self, task: str | None, model: str | None) -> CatalogueEntry | None:
        """Whose tokenizer counts: the model's that was named, else of the only one there is."""
        if model is not None:
            entry = catalogue.find(self._store, model)
            if entry is None:
                raise bad_request(f"there is no base model {model!r} to count tokens with", param="model")
            return entry
        entries = catalogue.entries(self._store)
        fitting = [entry for entry in entries if (task or DEFAULT_TASK) in entry.tasks]
        return fitting[0] if len(fitting) == 1 else None


def safe_filename(given: str) -> str:
    """The last part of a name from outside, as text to show; never used as a path. ApiError 400 for none at all."""
    name = PurePosixPath(given.replace("\\", "/")).name
    name = "".join(character for character in name if character.isprintable())
    if len(name) > _LONGEST_NAME:  # cut, it would have another ending
        message = f"the file's name has {len(name)} characters; it may have {_LONGEST_NAME}"
        raise bad_request(message, param="file")
    if not name.strip(". "):
        raise bad_request(f"the file's name is {given[:80]!r}: send one such as rows.jsonl", param="file")
    return name


def _refused(error: DataError) -> ApiError:
    """Every bad line: the first in the message, which is what people read, all in `details`."""
    found = []
    for detail in error.details:
        where, _, reason = detail.partition(": ")
        kind, _, number = where.partition(" ")
        line = int(number) if kind in ("line", "row") and number.isdecimal() else None
        found.append({"line": line, "reason": detail if line is None else reason})
    shown = list(error.details[:_LINES_IN_MESSAGE])
    if len(error.details) > len(shown):
        shown.append(f"and {len(error.details) - len(shown)} more, in error.details")
    message = "; ".join([error.message, *shown])
    return ApiError(400, message, code="invalid_rows", param="file", details=found)


def _record_key(team: str, identifier: str) -> str:
    return f"teams/{team}/files/{identifier}.json"


def _folder(team: str, identifier: str) -> str:
    return f"files/{team}/{identifier}"
