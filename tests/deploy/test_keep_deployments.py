"""An endpoint that reconciles deployments: before it reports healthy, and repeatedly afterwards, despite failures."""

from __future__ import annotations

import threading
import time

from fastapi.testclient import TestClient

from ray_jobs.errors import ServingError
from serving.inference.router import Router
from tests.serving.api_harness import make_app, nowhere


def test_deployments_are_reconciled_before_the_first_request_and_repeatedly() -> None:
    starts: list[float] = []
    again = threading.Event()

    def reconcile() -> None:
        starts.append(time.monotonic())
        if len(starts) == 1:
            raise ServingError("Ray does not answer yet")
        again.set()

    with TestClient(make_app(Router(nowhere(), ttl_s=1.0), reconcile_deployments=reconcile)) as client:
        assert starts, "a new cluster must not count as running without its models"
        assert client.get("/healthz").status_code == 200
        assert again.wait(30), "a failure is retried"


def test_without_the_setting_nothing_is_reconciled() -> None:
    with TestClient(make_app(Router(nowhere(), ttl_s=1.0))) as client:
        assert client.get("/healthz").status_code == 200
