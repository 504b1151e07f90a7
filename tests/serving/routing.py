"""Builders of model versions and routing snapshots, and an endpoint over them without engines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi.testclient import TestClient

from ray_jobs import registry
from ray_jobs.deploy import needed_records, records
from ray_jobs.deploy.records import Deployment
from ray_jobs.registry.model import Lineage, ModelVersion
from ray_jobs.spec import DEFAULT_TEAM, ServingSection
from ray_jobs.storage import Workspace
from serving.inference.router import Router, RoutingSnapshot
from serving.inference.traffic import Traffic
from tests.builders import make_spec
from tests.serving.api_harness import make_app, register
from tests.serving.fake_backend import FakeBackend

KEY = "a-key-of-the-tests"
ASK = {"model": "greeter", "messages": [{"role": "user", "content": "good day to you"}]}


def make_version(
    number: str = "1", *, name: str = "greeter", task: str = "chat", team: str | None = None, **changes: Any
) -> ModelVersion:
    """An adapter on the base `base`; `team` owns it."""
    spec = make_spec(name, task=task)
    if team is not None:
        spec = spec.model_copy(update={"team": team})
    lineage = Lineage("d" * 16, "b" * 16, spec, "0.1.0", "job", {}, ("ham", "spam"))
    version = ModelVersion(
        team or DEFAULT_TEAM,
        name,
        number,
        f"models/{name}/{number}",
        task,
        "adapter",
        "base",
        "b" * 16,
        lineage.labels,
        {},
        lineage,
    )
    return replace(version, **changes)


def make_snapshot(*versions: ModelVersion, **parts: Any) -> RoutingSnapshot:
    """A snapshot in which the last version of each name is the deployed one."""
    deployed: dict[str, Deployment] = {}
    by_name: dict[str, tuple[ModelVersion, ...]] = {}
    for version in versions:
        rank = 8 if version.kind == "adapter" else None
        for record in needed_records(version, None, ServingSection(), lora_rank=rank):
            # The base is one of the catalogue.
            deployed[record.name] = record.model_copy(update={"team": None}) if record.kind == "base" else record
        by_name[version.name] = (*by_name.get(version.name, ()), version)
    return RoutingSnapshot(deployed, by_name, **{"aliases": {}} | parts)


ADAPTERS = make_snapshot(make_version("1"), make_version("2"), make_version("10"))


class FixedRouter(Router):
    """A router with a fixed snapshot."""

    def __init__(self, snapshot: RoutingSnapshot, traffic: Traffic | None = None) -> None:
        self._fixed = snapshot
        self.stopped = () if traffic is None else traffic.stopped

    async def snapshot(self, *, max_age_s: float | None = None) -> RoutingSnapshot:
        return self._fixed


def make_client(
    backend: FakeBackend | None = None,
    snapshot: RoutingSnapshot = ADAPTERS,
    traffic: Traffic | None = None,
    **settings: Any,
) -> TestClient:
    """A client with the operator's key, of an endpoint over a fixed snapshot and a fake backend."""
    app = make_app(FixedRouter(snapshot, traffic), backend, traffic, **{"api_key": KEY} | settings)
    return TestClient(app, headers={"Authorization": f"Bearer {KEY}"}, raise_server_exceptions=False)


def error_of(response: Any, status: int) -> dict[str, Any]:
    """The error of a response, which must have the status and the error shape."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    found: dict[str, Any] = body["error"]
    return found


def register_next(store: Workspace, name: str = "greeter", *, adapter: bool = True, gated: bool = True) -> ModelVersion:
    """Register the next version of a model, trained on `org/Base`, without deploying it."""
    mark = f"{name}-{len(registry.versions(store, name))}"
    number = register(store, make_spec(name, base_model="org/Base"), mark, adapter=adapter, gated=gated)
    return registry.get(store, f"{name}@{number}")


def deploy_version(store: Workspace, version: ModelVersion) -> ModelVersion:
    """Write the deployment records of a version."""
    for record in needed_records(version, None, ServingSection(), lora_rank=8):
        records.write(store, record)
    return version
