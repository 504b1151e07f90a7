"""An endpoint that reconciles deployments: before it reports healthy, and repeatedly afterwards, despite failures."""

from __future__ import annotations

import threading

import pytest
from fastapi.testclient import TestClient

from ray_jobs.errors import ServingError, StoreUnreachable
from serving import app
from serving.inference.router import Router
from tests.serving.api_harness import make_app, nowhere


def test_the_endpoint_answers_once_its_deployments_were_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_RECONCILE_RETRY_S", 0.01)
    done: list[str] = []
    again = threading.Event()

    def reconcile() -> None:
        if len(done) < 2:  # as while the store or Ray is away
            done.append("failed")
            raise [ServingError("Ray does not answer yet"), StoreUnreachable("no answer")][len(done) - 1]
        if done[-1] == "applied":
            again.set()
        done.append("applied")

    with TestClient(make_app(Router(nowhere(), ttl_s=1.0), reconcile_deployments=reconcile)) as client:
        assert done[:3] == ["failed", "failed", "applied"], "not before: a model would seem not to exist"
        assert client.get("/healthz").status_code == 200
        assert again.wait(30), "it is repeated"


def test_without_the_setting_nothing_is_reconciled() -> None:
    with TestClient(make_app(Router(nowhere(), ttl_s=1.0))) as client:
        assert client.get("/healthz").status_code == 200
