"""`/v1/files` and `/v1/uploads`: routes and request validation over `serving.files`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Form, Query, Request, UploadFile
from fastapi.responses import StreamingResponse

from ray_jobs.storage import Store
from ray_jobs.tasks import TaskName
from ray_jobs.tenancy import audit
from serving.access.auth import actor_of, caller_of
from serving.files.stored_files import Files
from serving.files.uploads import Uploads
from serving.fine_tuning import uses
from serving.http import openai_types
from serving.http.bodies import IsRetry, StrictRoute
from serving.http.errors import ApiError, bad_request, documented
from serving.http.ids import Order, is_id

_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


def routes(files: Files, uploads: Uploads, store: Store, users: Callable[[str, str], list[str]]) -> APIRouter:
    """`users`: the open jobs and batches of a team that read a file."""
    router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=documented(400, 404))

    @router.post("/files", tags=["files"])
    def create_file(
        request: Request,
        file: UploadFile,
        purpose: Annotated[openai_types.Purpose, Form()],
        anchor: Annotated[str | None, Form(alias="expires_after[anchor]")] = None,
        seconds: Annotated[int | None, Form(alias="expires_after[seconds]")] = None,
        task: Annotated[TaskName | None, Form()] = None,
        model: Annotated[str | None, Form(max_length=256)] = None,
        columns: Annotated[str | None, Form(max_length=10_000)] = None,
    ) -> openai_types.File:
        """Upload a file. The rows of a `fine-tune` file are validated first, and one error lists every invalid line.
        `model`: the base whose tokenizer counts tokens. `task`: the rows' task, if their columns do not show it.
        `columns`: a JSON object with the file's column for each of the task's, such as `{"text": "本文"}`."""
        caller = caller_of(request)
        with _on_disk(file.file) as path:
            record = files.create(
                caller.team,
                caller.key_id,
                path,
                filename=file.filename or "upload",
                purpose=purpose,
                expires_after_s=check_expiry(anchor, seconds),
                task=task,
                model=model,
                columns=_mapping(columns),
            )
        return record.to_openai()

    @router.get("/files", tags=["files"])
    def list_files(
        request: Request,
        purpose: str | None = None,
        limit: Annotated[int, Query(ge=1, le=openai_types.MAX_FILES_PAGE)] = openai_types.MAX_FILES_PAGE,
        order: Order = "desc",
        after: str | None = None,
    ) -> openai_types.FileList:
        found, more = files.page(caller_of(request).team, purpose=purpose, limit=limit, after=after, order=order)
        data = [record.to_openai() for record in found]
        return openai_types.FileList(
            data=data, has_more=more, first_id=data[0].id if data else None, last_id=data[-1].id if data else None
        )

    @router.get("/files/{file_id}", tags=["files"])
    def get_file(request: Request, file_id: str) -> openai_types.File:
        """Retrieve a file, with the newest jobs that read it."""
        team = caller_of(request).team
        found = files.get(team, file_id).to_openai()
        return found.model_copy(update={"jobs": uses.jobs_of(store, team, file_id)[-uses.SHOWN :]})

    @router.get("/files/{file_id}/content", response_class=StreamingResponse, responses=_CONTENT, tags=["files"])
    def get_content(request: Request, file_id: str) -> StreamingResponse:
        record = files.get(caller_of(request).team, file_id)
        return StreamingResponse(files.content(record), media_type="application/octet-stream")

    @router.delete("/files/{file_id}", tags=["files"], responses=documented(409))
    def delete_file(request: Request, file_id: str, is_retry: IsRetry) -> openai_types.Deleted:
        team = caller_of(request).team
        if is_retry and files.find(team, file_id) is None:
            return openai_types.Deleted(id=file_id, object="file")  # deleted by the first try
        record = files.get(team, file_id)
        if needed_by := users(team, file_id):
            raise _in_use(file_id, needed_by)
        details: dict[str, audit.Value] = {"filename": record.filename, **uses.made_from(store, team, file_id)}
        with audit.recorded(store, actor_of(request), "file.delete", file_id, team=team, details=details):
            if needed_by := files.delete_unless(team, file_id, lambda: users(team, file_id)):
                raise _in_use(file_id, needed_by)
        return openai_types.Deleted(id=file_id, object="file")

    @router.post("/uploads", tags=["uploads"])
    def create_upload(request: Request, body: openai_types.CreateUpload) -> openai_types.Upload:
        caller = caller_of(request)
        expiry = body.expires_after or {}
        expires_after_s = check_expiry(expiry.get("anchor"), expiry.get("seconds"))
        return uploads.create(caller.team, caller.key_id, body, expires_after_s)

    @router.post("/uploads/{upload_id}/parts", tags=["uploads"])
    def add_part(request: Request, upload_id: str, data: UploadFile) -> openai_types.UploadPart:
        with _on_disk(data.file) as path:
            return uploads.add_part(caller_of(request).team, upload_id, path)

    @router.post("/uploads/{upload_id}/complete", tags=["uploads"])
    def complete_upload(request: Request, upload_id: str, body: openai_types.CompleteUpload) -> openai_types.Upload:
        return uploads.complete(caller_of(request).team, upload_id, body)

    @router.post("/uploads/{upload_id}/cancel", tags=["uploads"])
    def cancel_upload(request: Request, upload_id: str) -> openai_types.Upload:
        return uploads.cancel(caller_of(request).team, upload_id)

    return router


def _in_use(file_id: str, users: list[str]) -> ApiError:
    what = "batch" if all(is_id("batch", user) for user in users) else "job"
    message = f"{file_id} is read by {', '.join(users)}: cancel the {what} first, or wait until it ends"
    details = [{"param": None, "message": f"{user} reads it and has not ended"} for user in users]
    return ApiError(409, message, code="file_in_use", headers={"x-should-retry": "false"}, details=details)


def _mapping(columns: str | None) -> dict[str, str] | None:
    """The field `columns`. Raises ApiError 400."""
    if columns is None:
        return None
    try:
        found = json.loads(columns)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(each, str) and each for each in found.values()):
        message = 'columns must be a JSON object with the file\'s column for each of the task\'s: {"text": "本文"}'
        raise bad_request(message, param="columns")
    return found


def check_expiry(anchor: object, seconds: object) -> int | None:
    """Return a file's lifetime in seconds. Raises ApiError 400 for an invalid `expires_after`."""
    if anchor is None and seconds is None:
        return None
    if anchor not in (None, "created_at"):
        raise bad_request(f"expires_after.anchor is {anchor!r}; it must be created_at", param="expires_after.anchor")
    low, high = 3600, 30 * 24 * 3600
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not low <= seconds <= high:
        message = f"expires_after.seconds is {seconds!r}; it must be a number from {low} to {high}"
        raise bad_request(message, param="expires_after.seconds")
    return seconds


@contextmanager
def _on_disk(content: BinaryIO) -> Iterator[Path]:
    """Copy an upload to a named temporary file."""
    with tempfile.NamedTemporaryFile(prefix="kitae-upload-") as file:
        shutil.copyfileobj(content, file, 2**20)
        file.flush()
        yield Path(file.name)
