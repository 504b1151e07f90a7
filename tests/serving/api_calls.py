"""Calls of the API over HTTP that many tests make."""

from __future__ import annotations

import time
from typing import Any

import httpx

from tests.serving.api_harness import BASE, rows


def upload(http: httpx.Client, content: bytes, name: str = "rows.jsonl", **fields: Any) -> httpx.Response:
    """Upload a file for fine-tuning."""
    return http.post("/files", files={"file": (name, content)}, data={"purpose": "fine-tune", **fields})


def create_job(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    """Upload twelve rows and create a job from them."""
    file = upload(http, rows(12)).json()["id"]
    answer = http.post("/fine_tuning/jobs", json={"model": BASE, "training_file": file, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def wait_for(http: httpx.Client, identifier: str, status: str) -> dict[str, Any]:
    """Wait until a job has a status."""
    deadline = time.monotonic() + 30
    while (job := http.get(f"/fine_tuning/jobs/{identifier}").json())["status"] != status:
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    return dict(job)
