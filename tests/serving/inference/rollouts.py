"""Builders of canaries, watched promotions and requests to them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi.testclient import TestClient

from ray_jobs import registry
from ray_jobs.deploy import traffic
from ray_jobs.deploy.traffic import Bounds, Canary, TrafficPolicy, Watch
from ray_jobs.storage import Workspace
from ray_jobs.tenancy.api_keys import Limits
from serving.access.auth import Caller
from serving.inference.backends import Route
from serving.inference.router import RoutingSnapshot
from serving.inference.traffic import Traffic
from tests.serving.routing import make_snapshot, make_version

JOB = "ftjob-01j8z5k3q7w9x2y4a6b8c0d2e4"


API_NAME = f"ft:base:support::{JOB[6:]}"


BOUNDS = Bounds(max_error_rate=0.1, max_p95_s=1.0, min_requests=5)


class RecordingTraffic(Traffic):
    """Records whether each observed outcome was a success."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: list[bool] = []

    def observe(self, route: Route, *, ok: bool, seconds: float) -> None:
        self.outcomes.append(ok)
        super().observe(route, ok=ok, seconds=seconds)


def member(team: str) -> Caller:
    """A caller of a team, without the operator's rights."""
    return Caller("key-1", team, Limits(), admin=False)


def champion(store: Workspace) -> str:
    return registry.aliases(store, "greeter")["champion"]


def policy_of(store: Workspace) -> TrafficPolicy:
    policy = traffic.read(store, "greeter")
    assert policy is not None
    return policy


def ask(client: TestClient, model: str, *, text: str = "good day", stream: bool = False) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
    return client.post("/v1/chat/completions", json=body)


def on_rollout(**policy: Any) -> RoutingSnapshot:
    """Three versions of `greeter`, the first its champion, under a traffic policy."""
    return make_snapshot(
        *(make_version(number) for number in ("1", "2", "3")),
        aliases={"greeter": {"champion": "1", "prod": "1"}},
        traffic={"greeter": TrafficPolicy(**policy)},
    )


CANARY = Canary(id="c", version="2", percent=30, bounds=BOUNDS)


WATCH = Watch(id="w", version="1", back_to="3", until=datetime.now(UTC) + timedelta(hours=1), bounds=BOUNDS)


def route_on(rollout: Canary | Watch) -> Route:
    return Route(
        f"greeter@{rollout.version}", "kitae-base", "chat", adapter=f"greeter@{rollout.version}", rollout=rollout
    )


def started_canary(store: Workspace) -> Canary:
    traffic.start_canary(store, "greeter", "2", percent=50, bounds=BOUNDS)
    canary = policy_of(store).canary
    assert canary is not None
    return canary
