"""`/v1/files` and `/v1/uploads`: routes and request checks; `files` and `uploads` do the work."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Form, Header, Query, Request, UploadFile
from fastapi.responses import StreamingResponse

from ray_jobs.tasks import TaskName
from serving.access.auth import caller_of
from serving.files.stored_files import Files
from serving.files.uploads import Uploads
from serving.fine_tuning.service import FineTuning
from serving.http import openai_types as wire
from serving.http.bodies import StrictRoute
from serving.http.errors import ApiError, bad_request, documented
from serving.http.paging import Order
from serving.http.retries import is_retry

_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}
LIVES_S = (3600, 2_592_000)
"""Shortest and longest `expires_after`."""


def routes(files: Files, uploads: Uploads, tuning: FineTuning) -> APIRouter:
    router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=documented(400, 404))

    @router.post("/files", response_model=wire.File, tags=["files"])
    def create_file(
        request: Request,
        file: UploadFile,
        purpose: Annotated[wire.Purpose, Form()],
        anchor: Annotated[str | None, Form(alias="expires_after[anchor]")] = None,
        seconds: Annotated[int | None, Form(alias="expires_after[seconds]")] = None,
        task: Annotated[TaskName | None, Form()] = None,
        model: Annotated[str | None, Form(max_length=256)] = None,
    ) -> wire.File:
        """Take a file. Rows for `fine-tune` are looked at first: every bad line is told in one answer. `model` names
        the base whose tokenizer counts, `task` what the rows are for, where their columns do not say it."""
        caller = caller_of(request)
        with _on_disk(file.file) as path:
            record = files.create(
                caller.team,
                caller.key_id,
                path,
                filename=file.filename or "upload",
                purpose=purpose,
                lives_s=check_expiry(anchor, seconds),
                task=task,
                model=model,
            )
        return record.as_wire()

    @router.get("/files", response_model=wire.FileList, tags=["files"])
    def list_files(
        request: Request,
        purpose: str | None = None,
        limit: Annotated[int, Query(ge=1, le=wire.MOST_FILES_PAGE)] = wire.MOST_FILES_PAGE,
        order: Order = "desc",
        after: str | None = None,
    ) -> wire.FileList:
        found, more = files.page(caller_of(request).team, purpose=purpose, limit=limit, after=after, order=order)
        data = [record.as_wire() for record in found]
        return wire.FileList(
            data=data, has_more=more, first_id=data[0].id if data else None, last_id=data[-1].id if data else None
        )

    @router.get("/files/{file_id}", response_model=wire.File, tags=["files"])
    def get_file(request: Request, file_id: str) -> wire.File:
        return files.get(caller_of(request).team, file_id).as_wire()

    @router.get("/files/{file_id}/content", response_class=StreamingResponse, responses=_CONTENT, tags=["files"])
    def get_content(request: Request, file_id: str) -> StreamingResponse:
        record = files.get(caller_of(request).team, file_id)
        return StreamingResponse(files.content(record), media_type="application/octet-stream")

    @router.delete("/files/{file_id}", response_model=wire.Deleted, tags=["files"], responses=documented(409))
    def delete_file(
        request: Request, file_id: str, x_stainless_retry_count: Annotated[str | None, Header()] = None
    ) -> wire.Deleted:
        team = caller_of(request).team
        if is_retry(x_stainless_retry_count) and files.find(team, file_id) is None:
            return wire.Deleted(id=file_id, object="file")  # by the first try
        files.get(team, file_id)
        if needed_by := tuning.open_with_file(team, file_id):
            message = f"{file_id} is read by {', '.join(needed_by)}: cancel that first, or wait until it has ended"
            raise ApiError(409, message, code="file_in_use", headers={"x-should-retry": "false"})
        files.delete(team, file_id)
        return wire.Deleted(id=file_id, object="file")

    @router.post("/uploads", response_model=wire.Upload, tags=["uploads"])
    def create_upload(request: Request, body: wire.CreateUpload) -> wire.Upload:
        caller = caller_of(request)
        expiry = body.expires_after or {}
        lives_s = check_expiry(expiry.get("anchor"), expiry.get("seconds"))
        return uploads.create(caller.team, caller.key_id, body, lives_s)

    @router.post("/uploads/{upload_id}/parts", response_model=wire.Part, tags=["uploads"])
    def add_part(request: Request, upload_id: str, data: UploadFile) -> wire.Part:
        with _on_disk(data.file) as path:
            return uploads.add_part(caller_of(request).team, upload_id, path)

    @router.post("/uploads/{upload_id}/complete", response_model=wire.Upload, tags=["uploads"])
    def complete_upload(request: Request, upload_id: str, body: wire.CompleteUpload) -> wire.Upload:
        return uploads.complete(caller_of(request).team, upload_id, body)

    @router.post("/uploads/{upload_id}/cancel", response_model=wire.Upload, tags=["uploads"])
    def cancel_upload(request: Request, upload_id: str) -> wire.Upload:
        return uploads.cancel(caller_of(request).team, upload_id)

    return router


def check_expiry(anchor: object, seconds: object) -> int | None:
    """Seconds that a file is to live. ApiError 400 where they make no sense."""
    if anchor is None and seconds is None:
        return None
    if anchor not in (None, "created_at"):
        raise bad_request(f"expires_after.anchor is {anchor!r}; it must be created_at", param="expires_after.anchor")
    low, high = LIVES_S
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not low <= seconds <= high:
        message = f"expires_after.seconds is {seconds!r}; it must be a number from {low} to {high}"
        raise bad_request(message, param="expires_after.seconds")
    return seconds


@contextmanager
def _on_disk(content: BinaryIO) -> Iterator[Path]:
    """What was sent, as a file of its own."""
    with tempfile.NamedTemporaryFile(prefix="kitae-upload-") as file:
        shutil.copyfileobj(content, file, 2**20)
        file.flush()
        yield Path(file.name)
