"""The model list and the health routes."""

from __future__ import annotations

from fastapi.testclient import TestClient

from ray_jobs.registry.catalogue import CatalogueEntry
from tests.serving.fake_backend import FakeBackend
from tests.serving.routing import error_of, make_client, make_snapshot, make_version


def test_models_are_listed_and_described(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["base", "greeter", "greeter@1", "greeter@2", "greeter@10"]
    card = client.get("/v1/models/greeter@2").json()
    assert (card["id"], card["object"], card["owned_by"]) == ("greeter@2", "model", "default")
    assert card["created"] > 1_700_000_000
    assert error_of(client.get("/v1/models/unknown"), 404)["code"] == "model_not_found"


def test_a_deployed_base_was_created_when_it_was_added() -> None:
    entry = CatalogueEntry(name="base", digest="b" * 16, source="x", architecture="LlamaForCausalLM", tasks=("chat",))
    with make_client(snapshot=make_snapshot(make_version(), bases={"base": entry})) as client:
        assert client.get("/v1/models/base").json()["created"] == int(entry.added_at.timestamp())


def test_readiness_requires_every_deployed_application_to_run() -> None:
    backend = FakeBackend(states={"kitae": "RUNNING", "kitae-base": "DEPLOYING"})
    with make_client(backend) as client:
        response = client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["waits_for"] == {"kitae-base": "DEPLOYING"}
        backend.states["kitae-base"] = "RUNNING"
        assert client.get("/readyz").status_code == 200
