"""An endpoint that keeps Serve as the records say: before it counts as running, and from then on, whatever fails."""

from __future__ import annotations

import threading
import time

from fastapi.testclient import TestClient

from ray_jobs.errors import ServingError
from serving.inference.router import Router
from tests.serving.api_harness import make_app, nowhere


def test_models_are_put_back_before_the_first_request_and_again_and_again() -> None:
    starts: list[float] = []
    again = threading.Event()

    def keep() -> None:
        starts.append(time.monotonic())
        if len(starts) == 1:
            raise ServingError("Ray does not answer yet")
        again.set()

    with TestClient(make_app(Router(nowhere(), ttl_s=1.0), reconcile_deployments=keep)) as client:
        assert starts, "a new cluster must not count as running without its models"
        assert client.get("/healthz").status_code == 200
        assert again.wait(30), "what failed is tried again"


def test_nobody_keeps_anything_unless_told() -> None:
    with TestClient(make_app(Router(nowhere(), ttl_s=1.0))) as client:
        assert client.get("/healthz").status_code == 200
