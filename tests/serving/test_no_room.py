"""A full store or a full disk of the endpoint is a 507 (or 503) with Retry-After, on every route that writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_jobs.storage import Store, Workspace
from tests.conftest import StoreServer
from tests.serving.api_calls import create_job, upload, wait_for
from tests.serving.api_harness import BASE, KEY, add_base, api_server, rows
from tests.storage.faulty_store import Forward, Request, Response, error, faulty

HEADERS = {"authorization": f"Bearer {KEY}"}
WRITES_NOTHING = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify"}
"""Paths that write nothing before their answer. A response is answered without being stored."""
WRITES_NOTHING |= {"/v1/responses", "/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate"}
MAY_BE_OVER = {
    "POST /v1/batches/{batch_id}/cancel",
    "POST /v1/evals/{eval_id}/runs/{run_id}",
    "POST /v1/evals/{eval_id}/runs/{run_id}/cancel",
}
"""What they would cancel may have ended, which they answer without writing."""
EVAL = {
    "data_source_config": {"type": "custom", "item_schema": {"type": "object"}},
    "testing_criteria": [
        {"type": "string_check", "name": "g", "operation": "eq", "input": "{{ item.text }}", "reference": "x"}
    ],
}
RUN = {"data_source": {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"text": "x"}}]}}}


def check_no_room(answer: httpx.Response, status: int = 507) -> None:
    assert answer.status_code == status, answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == ("storage_full" if status == 507 else "store_unreachable")
    assert "/" not in answer.json()["error"]["message"]  # no path, no address


@pytest.mark.parametrize(("status", "code"), [(507, "InsufficientStorage"), (403, "QuotaExceeded"), (500, "Internal")])
def test_a_full_store_is_never_a_500(store_server: StoreServer, store: Workspace, status: int, code: str) -> None:
    is_full = False

    def fault(request: Request, forward: Forward) -> Response:
        if is_full and request.method in ("PUT", "POST", "DELETE"):
            return error(status, code)
        return forward(request)

    with faulty(store_server.settings(patience_s=0.3), fault) as settings:
        add_base(store)
        with (
            api_server(Workspace(Store(store.uri(), settings), store.team)) as server,
            httpx.Client(base_url=f"{server.url}/v1", headers=HEADERS, timeout=60) as http,
        ):
            file = upload(http, rows()).json()["id"]
            unused = upload(http, rows(13)).json()["id"]
            done = create_job(http, seed=9)["id"]
            wait_for(http, done, "queued")
            server.run_launched()
            model = wait_for(http, done, "succeeded")["fine_tuned_model"]
            jobs = [create_job(http, seed=seed)["id"] for seed in range(3)]
            for job in jobs:
                wait_for(http, job, "queued")
            http.post(f"/fine_tuning/jobs/{jobs[0]}/pause")
            pending = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": len(rows()), "mime_type": "text/plain"}
            begun = http.post("/uploads", json=pending).json()["id"]
            part = http.post(f"/uploads/{begun}/parts", files={"data": rows()}).json()["id"]
            evaluated = http.post("/evals", json=EVAL).json()["id"]
            run = f"/evals/{evaluated}/runs/" + http.post(f"/evals/{evaluated}/runs", json=RUN).json()["id"]
            said: dict[str, Any] = {"model": BASE, "messages": [{"role": "user", "content": "x"}], "store": True}
            completion = http.post("/chat/completions", json=said).json()["id"]
            response = http.post("/responses", json={"model": BASE, "input": "x"}).json()["id"]
            line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": BASE}}
            lines = {"file": ("lines.jsonl", json.dumps(line))}
            requests = http.post("/files", files=lines, data={"purpose": "batch"}).json()["id"]
            asked = {"input_file_id": requests, "endpoint": line["url"], "completion_window": "24h"}
            batch = http.post("/batches", json=asked).json()["id"]
            permissions = f"/fine_tuning/checkpoints/{model}/permissions"
            shared = http.post(permissions, json={"project_ids": ["green"]}).json()["data"][0]["id"]
            writes: dict[str, Callable[[], httpx.Response]] = {
                "POST /v1/files": lambda: upload(http, rows(14)),
                "DELETE /v1/files/{file_id}": lambda: http.delete(f"/files/{unused}"),
                "POST /v1/uploads": lambda: http.post("/uploads", json=pending),
                "POST /v1/uploads/{upload_id}/parts": lambda: http.post(
                    f"/uploads/{begun}/parts", files={"data": rows()}
                ),
                "POST /v1/uploads/{upload_id}/complete": lambda: http.post(
                    f"/uploads/{begun}/complete", json={"part_ids": [part]}
                ),
                "POST /v1/uploads/{upload_id}/cancel": lambda: http.post(f"/uploads/{begun}/cancel"),
                "POST /v1/fine_tuning/jobs": lambda: http.post(
                    "/fine_tuning/jobs", json={"model": BASE, "training_file": file, "seed": 77}
                ),
                "POST /v1/fine_tuning/jobs/{job_id}/resume": lambda: http.post(f"/fine_tuning/jobs/{jobs[0]}/resume"),
                "POST /v1/fine_tuning/jobs/{job_id}/pause": lambda: http.post(f"/fine_tuning/jobs/{jobs[1]}/pause"),
                "POST /v1/fine_tuning/jobs/{job_id}/cancel": lambda: http.post(f"/fine_tuning/jobs/{jobs[2]}/cancel"),
                "POST /v1/evals": lambda: http.post("/evals", json=EVAL),
                "POST /v1/evals/{eval_id}": lambda: http.post(f"/evals/{evaluated}", json={"name": "b"}),
                "POST /v1/evals/{eval_id}/runs": lambda: http.post(f"/evals/{evaluated}/runs", json=RUN),
                "POST /v1/evals/{eval_id}/runs/{run_id}": lambda: http.post(run),
                "POST /v1/evals/{eval_id}/runs/{run_id}/cancel": lambda: http.post(f"{run}/cancel"),
                "DELETE /v1/evals/{eval_id}/runs/{run_id}": lambda: http.delete(run),
                "DELETE /v1/evals/{eval_id}": lambda: http.delete(f"/evals/{evaluated}"),
                "POST /v1/chat/completions/{completion_id}": lambda: http.post(
                    f"/chat/completions/{completion}", json={"metadata": {"a": "b"}}
                ),
                "DELETE /v1/chat/completions/{completion_id}": lambda: http.delete(f"/chat/completions/{completion}"),
                "DELETE /v1/responses/{response_id}": lambda: http.delete(f"/responses/{response}"),
                "POST /v1/batches": lambda: http.post("/batches", json=asked),
                "POST /v1/batches/{batch_id}/cancel": lambda: http.post(f"/batches/{batch}/cancel"),
                "POST /v1/fine_tuning/checkpoints/{checkpoint}/permissions": lambda: http.post(
                    permissions, json={"project_ids": ["red"]}
                ),
                "DELETE /v1/fine_tuning/checkpoints/{checkpoint}/permissions/{permission_id}": lambda: http.delete(
                    f"{permissions}/{shared}"
                ),
                "DELETE /v1/models/{model}": lambda: http.delete(f"/models/{model}"),
            }
            assert server.app is not None
            routes = {
                f"{method} {getattr(route, 'path', '').replace(':path', '')}"
                for route in server.app.routes()
                for method in getattr(route, "methods", None) or ()
                if method in ("POST", "DELETE", "PUT", "PATCH") and getattr(route, "path", "") not in WRITES_NOTHING
            }
            assert routes == writes.keys()
            is_full = True
            for name, write in writes.items():
                answer = write()
                if name in MAY_BE_OVER and answer.status_code < 500:
                    continue
                try:
                    check_no_room(answer, 503 if status == 500 else 507)  # few stores report it
                except AssertionError as failed:
                    raise AssertionError(name) from failed
            is_full = False
            assert upload(http, rows(14)).status_code == 200


def test_a_full_disk_of_the_endpoint_is_a_507(store: Workspace, small_disk: Path) -> None:
    add_base(store)
    with (
        api_server(store) as server,
        httpx.Client(base_url=f"{server.url}/v1", headers=HEADERS, timeout=60) as http,
    ):
        for content in (rows(2_000), rows(30_000)):  # copied to the disk by the route, and while it arrives
            check_no_room(upload(http, content))
        sent = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 10**7, "mime_type": "text/plain"}
        begun = http.post("/uploads", json=sent).json()["id"]
        check_no_room(http.post(f"/uploads/{begun}/parts", files={"data": rows(30_000)}))
        assert upload(http, rows(12)).status_code == 200
