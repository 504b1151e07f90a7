"""Files in the store, owned by a team, validated on upload, deleted when they expire.

    teams/{team}/files/{file_id}.json    the record; written last, so a file without it does not exist
    files/{team}/{file_id}/rows.jsonl    the content

Owns records and contents. Does not know HTTP routes, nor where rows are validated (`RowValidator`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pydantic import BaseModel

from ray_jobs.data.formats import PACKED
from ray_jobs.data.report import RowReport
from ray_jobs.errors import ConflictError, DataError, KitaeError
from ray_jobs.registry import catalogue
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.storage import Store
from ray_jobs.storage.documents import Documents
from ray_jobs.storage.index import Index
from ray_jobs.tasks import DEFAULT_TASK
from ray_jobs.tenancy.team_limits import TeamQuotas
from serving.files.quota import require_room
from serving.http import openai_types
from serving.http.errors import ApiError, bad_request
from serving.http.ids import Order, Page, created_at_s, is_id, listed, new_id, page

FINE_TUNE = "fine-tune"
_TEXT_ENDINGS = (".jsonl", ".json", ".csv", ".tsv")
_ENDINGS = (*_TEXT_ENDINGS, ".xlsx", ".parquet")
"""Suffixes kept in the store key, of text also before `.gz` and `.zst`; other content is stored as JSON Lines."""
_FOREIGN = (".xls", ".ods", ".zip", ".7z", ".tar", ".bz2", ".xz", ".pdf", ".docx")
_ORPHAN_AFTER_S = 86_400
FILES_IN_A_PAGE = 100
"""Files of a page at most, whatever a request asks for: each is read."""
_LINES_IN_MESSAGE = 20
_MAX_NAME = 255


class FileRecord(BaseModel, frozen=True):
    """One file of one team."""

    id: str
    team: str
    key_id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int | None = None
    key: str
    """Store key of the content."""
    report: RowReport | None = None

    def to_openai(self) -> openai_types.File:
        fields = self.model_dump(exclude={"team", "key_id", "key", "report"})
        return openai_types.File.model_validate(fields | {"status": "processed", "rows": self.report})

    def is_expired(self, now_s: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now_s


RowValidator = Callable[[str, str, str | None, CatalogueEntry | None, Mapping[str, str] | None], RowReport]
"""Validates a file of the store by its key, name, task, base and columns, as `ray_jobs.data.row_validation.check_rows`
does."""


@dataclass(frozen=True)
class Files:
    """The files of every team."""

    store: Store
    check: RowValidator
    quotas: TeamQuotas = field(default_factory=TeamQuotas)

    def create(
        self,
        team: str,
        key_id: str,
        content: Path,
        *,
        filename: str,
        purpose: str,
        expires_after_s: int | None = None,
        task: str | None = None,
        model: str | None = None,
        columns: Mapping[str, str] | None = None,
        identifier: str | None = None,
    ) -> FileRecord:
        """Store a file. Raises ApiError 400 with every invalid line, and then leaves nothing in the store.

        `columns`: the file's column for each of the task's, where the names differ. `identifier`: an id chosen by the
        caller, which makes the call idempotent; None: a new id.
        """
        name = safe_filename(filename)
        size_bytes = content.stat().st_size
        if size_bytes == 0:
            raise bad_request(f"{name} is empty", param="file", code="empty_file")
        if purpose == FINE_TUNE:
            _require_rows(name)
        base = self._counting_base(task, model) if purpose == FINE_TUNE else None
        identifier = identifier or new_id("file", now_s=self.store.now_s())
        key = f"{_folder(team, identifier)}/rows{_kept_ending(name)}"
        limits = self.quotas.of(team)
        require_room(self.store, team, limits, size_bytes, own=identifier)
        self.store.upload_file(content, key)
        try:
            report = self.check(key, name, task, base, columns) if purpose == FINE_TUNE else None
            require_room(self.store, team, limits, size_bytes, own=identifier)  # others may have been stored meanwhile
        except (DataError, ApiError) as error:
            with suppress(KitaeError):
                self.store.delete_tree(_folder(team, identifier))
            if isinstance(error, ApiError):
                raise
            raise _refused(error) from error
        created_at = int(created_at_s(identifier))
        return self._put(
            FileRecord(
                id=identifier,
                team=team,
                key_id=key_id,
                filename=name,
                purpose=purpose,
                bytes=size_bytes,
                created_at=created_at,
                expires_at=None if expires_after_s is None else created_at + expires_after_s,
                key=key,
                report=report,
            )
        )

    def put_result(
        self,
        team: str,
        identifier: str,
        filename: str,
        content: bytes | Path,
        *,
        purpose: str = "fine-tune-results",
        expires_after_s: int | None = None,
    ) -> None:
        """Store a file that the service produces, under an id chosen by the caller. Idempotent."""
        key = f"{_folder(team, identifier)}/{filename}"
        if isinstance(content, bytes):
            self.store.put(key, content)
        else:
            self.store.upload_file(content, key)
        created_at = int(created_at_s(identifier))
        self._put(
            FileRecord(
                id=identifier,
                team=team,
                key_id="",
                filename=filename,
                purpose=purpose,
                bytes=len(content) if isinstance(content, bytes) else content.stat().st_size,
                created_at=created_at,
                expires_at=None if expires_after_s is None else created_at + expires_after_s,
                key=key,
            )
        )

    def find(self, team: str, identifier: str) -> FileRecord | None:
        """Return the team's file, or None if it does not exist, has expired or has a record that cannot be read."""
        record = _records(team).find(self.store, identifier) if is_id("file", identifier) else None
        return None if record is None or record.is_expired(self.store.now_s()) else record

    def get(self, team: str, identifier: str) -> FileRecord:
        """Return the team's file. Raises ApiError 404."""
        record = self.find(team, identifier)
        if record is None:
            raise ApiError(404, f"the file {identifier!r} does not exist", code="file_not_found")
        return record

    def page(self, team: str, *, purpose: str | None, limit: int, after: str | None, order: Order) -> Page[FileRecord]:
        def read(identifier: str) -> FileRecord | None:
            record = self.find(team, identifier)
            return record if record is not None and purpose in (None, record.purpose) else None

        folder = _records(team).prefix
        if purpose is not None:
            _ensure_indexed(self.store, team)
            folder = _index(team).folder(_of_purpose(purpose))
        ids = listed(self.store, folder, "file", self.store.now_s(), after=after, order=order)
        return page(ids, read, limit=min(limit, FILES_IN_A_PAGE))

    def content(self, record: FileRecord) -> Iterator[bytes]:
        """Return the content in chunks."""
        return self.store.read_in_pieces(record.key, 2**20)

    def delete(self, team: str, identifier: str) -> None:
        """Delete a file: first its record, so that no file is found without its content."""
        record = _records(team).find(self.store, identifier)
        self.store.delete(_records(team).key(identifier))
        self._delete_rest(team, identifier, record)

    def _delete_rest(self, team: str, identifier: str, record: FileRecord | None) -> None:
        """Delete what a file whose record is gone leaves: its index entries and its content."""
        if record is not None:
            _unindex(self.store, record)
        self.store.delete_tree(_folder(team, identifier))

    def delete_unless(self, team: str, identifier: str, in_use: Callable[[], list[str]]) -> list[str]:
        """Delete a file that nothing uses. Returns its users otherwise, and then it stays.

        The record goes before the users are looked for, so that a job that is created meanwhile does not find the file.
        """
        key = _records(team).key(identifier)
        document = self.store.get_json(key)
        self.store.delete(key)
        if users := in_use():
            with suppress(ConflictError):
                self.store.put_json(key, document, if_absent=True)
            return users
        self._delete_rest(team, identifier, FileRecord.model_validate(document))
        return []

    def sweep(self, now_s: float, in_use: Callable[[str, str], bool] = lambda team, identifier: False) -> None:
        """Delete expired files, and contents without a record that are older than a day, unless they are in use.

        A file whose record cannot be read stays: a newer version of Kitae may have written it.
        """
        for team in self.store.list_dirs("files/"):
            known = set(_records(team).names(self.store))
            for identifier in self.store.list_dirs(f"files/{team}/"):
                is_old = is_id("file", identifier) and created_at_s(identifier) < now_s - _ORPHAN_AFTER_S
                if identifier not in known and is_old and not in_use(team, identifier):
                    self.delete(team, identifier)
            for info in self.store.list(_index(team).prefix):  # left by a create that was interrupted
                identifier = info.key.rpartition("/")[2].removesuffix(".json")
                if identifier not in known and is_id("file", identifier) and info.modified_s < now_s - _ORPHAN_AFTER_S:
                    self.store.delete(info.key)
            for identifier in self._expired(team, now_s):
                record = _records(team).find(self.store, identifier)
                if record is not None and record.is_expired(now_s) and not in_use(team, identifier):
                    self.delete(team, identifier)

    def _expired(self, team: str, now_s: float) -> list[str]:
        """The ids of the team's expired files, without reading the others: their index ascends with the expiry."""
        _ensure_indexed(self.store, team)
        prefix, found = f"teams/{team}/expiring/", list[str]()
        for info in self.store.list(prefix):
            expires_at, _, identifier = info.key.removeprefix(prefix).removesuffix(".json").partition("-")
            if not expires_at.isdecimal() or int(expires_at) > now_s:
                break
            found.append(identifier)
        return found

    def _put(self, record: FileRecord) -> FileRecord:
        _add_to_index(self.store, record)
        with suppress(ConflictError):  # stored by an earlier try or another process
            key = _records(record.team).key(record.id)
            self.store.put_json(key, record.model_dump(mode="json"), if_absent=True)
        return record

    def _counting_base(self, task: str | None, model: str | None) -> CatalogueEntry | None:
        """Return the base whose tokenizer counts: the named model, else the task's only base, else None."""
        if model is not None:
            entry = catalogue.find(self.store, model)
            if entry is None:
                raise bad_request(f"the base model {model!r}, which would count tokens, does not exist", param="model")
            return entry
        entries = catalogue.entries(self.store)
        fitting = [entry for entry in entries if (task or DEFAULT_TASK) in entry.tasks]
        return fitting[0] if len(fitting) == 1 else None


def safe_filename(given: str) -> str:
    """Return the last part of an untrusted file name, for display only. Raises ApiError 400 if it is unusable."""
    name = PurePosixPath(given.replace("\\", "/")).name
    name = "".join(character for character in name if character.isprintable())
    if len(name) > _MAX_NAME:  # not truncated: the suffix decides the format
        message = f"the file's name has {len(name)} characters; it may have {_MAX_NAME}"
        raise bad_request(message, param="file")
    if not name.strip(". "):
        raise bad_request(f"the file's name is {given[:80]!r}: send one such as rows.jsonl", param="file")
    return name


def _endings(name: str) -> tuple[str, str]:
    """The last two suffixes of a name: `.csv` and `.gz`."""
    path = PurePosixPath(name)
    return PurePosixPath(path.stem).suffix.lower(), path.suffix.lower()


def _require_rows(name: str) -> None:
    """Raise ApiError 400 for the name of a file that holds no rows."""
    inner, ending = _endings(name)
    if ending in _FOREIGN or (ending in PACKED and inner not in _TEXT_ENDINGS):
        message = (
            f"{name} cannot be read as rows: send .jsonl (a JSON object a line), .json, .csv, .tsv, .xlsx or .parquet; "
            "of the first four also .gz and .zst"
        )
        raise bad_request(message, param="file", code="unsupported_file")


def _kept_ending(name: str) -> str:
    """The suffix of the content in its store key, by which it is read."""
    inner, ending = _endings(name)
    if ending in PACKED and inner in _TEXT_ENDINGS:
        return f"{inner}{ending}"
    return ending if ending in _ENDINGS else ".jsonl"


def _refused(error: DataError) -> ApiError:
    """Build a 400 with the first invalid lines in the message and all of them in `details`."""
    found: list[dict[str, object]] = []
    for detail in error.details:
        at = re.fullmatch(r"(?:line|row|record) (\d+): (.*)", detail, flags=re.DOTALL)
        found.append({"line": int(at[1]), "reason": at[2]} if at else {"line": None, "reason": detail})
    shown = [error.message, *error.details[:_LINES_IN_MESSAGE]]
    if len(error.details) > _LINES_IN_MESSAGE:
        shown.append(f"and {len(error.details) - _LINES_IN_MESSAGE} more, in error.details")
    return ApiError(400, "; ".join(shown), code="invalid_rows", param="file", details=found)


def _records(team: str) -> Documents[FileRecord]:
    return Documents(f"teams/{team}/files/", FileRecord, "a file's record")


def _index(team: str) -> Index:
    return Index(f"teams/{team}/index/files/")


def _ensure_indexed(store: Store, team: str) -> None:
    """Index the files from before there was an index."""

    def unindexed() -> Iterator[tuple[str, list[str]]]:
        for record in _records(team).read_all(store).values():
            if record.expires_at is not None:
                store.put(_expiry_key(record), b"{}")
            yield record.id, [_of_purpose(record.purpose)]

    _index(team).ensure(store, unindexed)


def _add_to_index(store: Store, record: FileRecord) -> None:
    _index(record.team).add(store, record.id, [_of_purpose(record.purpose)])
    if record.expires_at is not None:
        store.put(_expiry_key(record), b"{}")


def _unindex(store: Store, record: FileRecord) -> None:
    _index(record.team).remove(store, record.id, [_of_purpose(record.purpose)])
    if record.expires_at is not None:
        store.delete(_expiry_key(record))


def _expiry_key(record: FileRecord) -> str:
    return f"teams/{record.team}/expiring/{record.expires_at:010d}-{record.id}.json"


def _of_purpose(purpose: str) -> str:
    return f"purpose={purpose}"


def _folder(team: str, identifier: str) -> str:
    return f"files/{team}/{identifier}"
