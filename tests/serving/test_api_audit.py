"""What the API changes is in the audit log, with the key that asked for it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from ray_jobs import registry
from ray_jobs.storage import Workspace
from ray_jobs.tenancy import api_keys, audit
from ray_jobs.tenancy.audit import Entry
from serving.inference.traffic import Traffic
from tests.serving.api_calls import create_job, wait_for
from tests.serving.api_harness import ApiServer
from tests.serving.inference.rollouts import route_on, started_canary
from tests.serving.routing import deploy_version, register_next


def entries(store: Workspace) -> list[Entry]:
    today = datetime.now(UTC).date()
    return audit.read(store, today - timedelta(days=1), today)


def test_a_registration_and_a_deletion_name_the_key(server: ApiServer) -> None:
    key, secret = api_keys.create(server.store, "blue", "app")
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=f"{server.url}/v1", headers=headers, timeout=60) as http:
        job = create_job(http, evaluation={"must_beat_base": False})["id"]
        wait_for(http, job, "queued")
        ApiServer(Workspace(server.store, "blue"), server.port, server.launcher).run_launched()
        model = wait_for(http, job, "succeeded")["fine_tuned_model"]
        assert http.delete("/models/no-such-model").status_code == 404
        assert http.delete(f"/models/{model}").status_code == 200
    made, deleted = entries(server.store)
    assert (made.action, made.target, made.team, made.details["gate"]) == ("model.register", job, "blue", False)
    assert (deleted.action, deleted.target, deleted.team) == ("model.delete", job, "blue")
    assert deleted.details == {"versions": ["1", "2"]}
    assert {(entry.actor.name, entry.actor.via, entry.failed) for entry in (made, deleted)} == {(key.id, "api", None)}


@pytest.mark.anyio
async def test_a_rollback_of_the_endpoint_has_one_entry_that_was_done(store: Workspace) -> None:
    for _ in range(2):
        deploy_version(store, register_next(store))
    registry.set_alias(store, "greeter", "champion", "1")
    canary = started_canary(store)
    replicas = [Traffic(store), Traffic(store), Traffic(store)]
    for replica in replicas:
        for _ in range(20):
            replica.observe(route_on(canary), ok=False, seconds=0.1)
    await asyncio.gather(*(replica.settled() for replica in replicas))
    (entry,) = [entry for entry in entries(store) if entry.failed is None]
    assert (entry.action, entry.target, entry.actor.via) == ("traffic.rollback", "greeter@champion", "endpoint")
    assert entry.details["version"] == "2"
