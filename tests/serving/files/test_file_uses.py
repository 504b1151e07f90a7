"""A file that an open job reads stays: deletion, expiry and a job that is created at the same moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.tenancy import audit
from serving.files.stored_files import Files
from serving.fine_tuning import uses
from tests.serving.api_calls import create_job, upload, wait_for
from tests.serving.api_harness import BASE, ApiServer, NoTokens, begin_job, register, rows

TEAM = "default"
MONTH_S = 31 * 86_400.0


def test_a_deletion_lists_what_reads_the_file_and_what_was_made_from_it(
    server: ApiServer, http: httpx.Client, store: Workspace
) -> None:
    job = create_job(http)
    file = job["training_file"]
    assert http.get(f"/files/{file}").json()["jobs"] == [job["id"]]
    refused = http.delete(f"/files/{file}")
    assert refused.status_code == 409
    assert refused.json()["error"]["details"] == [{"param": None, "message": f"{job['id']} reads it and has not ended"}]
    wait_for(http, job["id"], "queued")
    server.run_launched()
    model = wait_for(http, job["id"], "succeeded")["fine_tuned_model"]
    assert http.delete(f"/files/{file}").json() == {"id": file, "object": "file", "deleted": True}
    today = datetime.now(UTC).date()
    (entry,) = audit.read(store, today, today, action="file.delete")
    assert entry.details == {"filename": "rows.jsonl", "jobs": [job["id"]], "models": [model]}


def test_an_expired_file_stays_while_an_open_job_reads_it(
    server: ApiServer, http: httpx.Client, store: Workspace
) -> None:
    expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    read, unread = (upload(http, rows(count), **expiry).json()["id"] for count in (12, 13))
    job = http.post("/fine_tuning/jobs", json={"model": BASE, "training_file": read}).json()["id"]
    assert server.app is not None
    files = Files(store, NoTokens(store))

    def in_use(team: str, file_id: str) -> bool:
        opened = uses.open_jobs(store, team, file_id, lambda api: api.closed is None, time.time() + MONTH_S)
        return bool(opened)

    files.sweep(time.time() + MONTH_S, in_use)
    assert store.exists(f"files/{TEAM}/{read}/rows.jsonl")
    assert not store.exists(f"files/{TEAM}/{unread}/rows.jsonl")
    http.post(f"/fine_tuning/jobs/{job}/cancel")
    deadline = time.monotonic() + 30
    while in_use(TEAM, read):  # until the end is recorded
        assert time.monotonic() < deadline
        time.sleep(0.1)
    files.sweep(time.time() + MONTH_S, in_use)
    assert not store.exists(f"files/{TEAM}/{read}/rows.jsonl")


@pytest.mark.parametrize("first", ["the job", "the deletion"])
def test_a_job_that_is_created_while_its_file_is_deleted(
    server: ApiServer, http: httpx.Client, store: Workspace, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Each runs in the middle of the other: either the job is refused, or the file stays."""
    file = upload(http, rows(12)).json()["id"]
    body = {"model": BASE, "training_file": file}
    other: list[httpx.Response] = []

    def during(place: Any, name: str, act: Callable[[], httpx.Response]) -> None:
        real = getattr(place, name)

        def interrupted(*arguments: Any, **more: Any) -> Any:
            monkeypatch.setattr(place, name, real)
            other.append(act())
            return real(*arguments, **more)

        monkeypatch.setattr(place, name, interrupted)

    if first == "the job":  # deleted after its files were found, before they are marked
        during(uses, "note", lambda: http.delete(f"/files/{file}"))
        created = http.post("/fine_tuning/jobs", json=body)
        (deleted,) = other
    else:  # created after the deletion found no reader
        during(Files, "delete_unless", lambda: http.post("/fine_tuning/jobs", json=body))
        deleted = http.delete(f"/files/{file}")
        (created,) = other
    assert (created.status_code == 200) == (deleted.status_code == 409)
    assert store.exists(f"files/{TEAM}/{file}/rows.jsonl") == (created.status_code == 200)
    assert (http.get(f"/files/{file}").status_code == 200) == (created.status_code == 200)
    assert len(http.get("/fine_tuning/jobs").json()["data"]) == (created.status_code == 200)


def test_a_job_of_a_version_without_markers_holds_its_file(http: httpx.Client, store: Workspace) -> None:
    file = create_job(http)["training_file"]
    store.delete([info.key for info in store.list(f"teams/{TEAM}/uses")])
    assert http.delete(f"/files/{file}").status_code == 409


def test_a_refused_job_holds_no_file(server: ApiServer, http: httpx.Client) -> None:
    file = upload(http, rows(12)).json()["id"]
    refused = http.post("/fine_tuning/jobs", json={"model": BASE, "training_file": file, "training": {"epochs": 0}})
    assert refused.status_code == 400
    assert http.delete(f"/files/{file}").status_code == 200


def test_a_model_of_an_open_job_is_not_deleted(server: ApiServer, http: httpx.Client, store: Workspace) -> None:
    job = create_job(http)["id"]
    wait_for(http, job, "queued")
    running = begin_job(store, store.get_json(f"teams/{TEAM}/jobs/{job}.json")["job_id"])
    register(store, JobSpec.model_validate(running.record.spec), "1")
    refused = http.delete(f"/models/{job}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_in_use")
    http.post(f"/fine_tuning/jobs/{job}/cancel")
    assert http.delete(f"/models/{job}").status_code == 200
