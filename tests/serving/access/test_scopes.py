"""A key may do what its scopes say."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest
from fastapi.testclient import TestClient

from ray_jobs.storage import Store, Workspace
from ray_jobs.tenancy import api_keys
from ray_jobs.tenancy.api_keys import ApiKey, Scope
from serving.access.keys import StoredKeys
from serving.access.scopes import allow
from tests.serving.api_harness import ApiServer, make_app, rows
from tests.serving.routing import ADAPTERS, ASK, KEY, FixedRouter, error_of

CALL = ("POST", "/v1/chat/completions")
READ = ("GET", "/v1/fine_tuning/jobs/ftjob-1/events")
CREATE = ("POST", "/v1/fine_tuning/jobs")
DELETE = ("DELETE", "/v1/models/greeter")
LIST = ("GET", "/v1/models")
BATCH = ("POST", "/v1/batches")
STATUS = ("GET", "/v1/batches/batch-1")
ALL = (CALL, READ, CREATE, DELETE, LIST, BATCH, STATUS)


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        (("inference",), {CALL, LIST, BATCH, STATUS}),
        (("read",), {READ, LIST, STATUS}),
        (("fine-tuning",), {READ, CREATE, DELETE, LIST, STATUS}),
        (("inference", "read"), {CALL, READ, LIST, BATCH, STATUS}),
        (api_keys.DEFAULT_SCOPES, set(ALL)),
        (("admin",), set(ALL)),
    ],
)
def test_scopes_allow_their_requests_alone(scopes: tuple[Scope, ...], allowed: set[tuple[str, str]]) -> None:
    assert {request for request in ALL if allow(scopes, *request)} == allowed


@pytest.mark.parametrize(
    ("request_", "allowed"),
    [
        (("POST", "/v1/responses"), {"inference", "admin"}),
        (("GET", "/v1/responses/resp_1"), {"inference", "admin"}),
        (("DELETE", "/v1/responses/resp_1"), {"inference", "admin"}),
        (("GET", "/v1/chat/completions"), {"read", "fine-tuning", "admin"}),
        (("GET", "/v1/chat/completions/chatcmpl-1/messages"), {"read", "fine-tuning", "admin"}),
        (("DELETE", "/v1/chat/completions/chatcmpl-1"), {"fine-tuning", "admin"}),
        (("GET", "/v1/fine_tuning/checkpoints/ft:a/permissions"), {"admin"}),
        (("POST", "/v1/fine_tuning/checkpoints/ft:a/permissions"), {"admin"}),
    ],
)
def test_stored_answers_and_permissions_have_their_scopes(request_: tuple[str, str], allowed: set[Scope]) -> None:
    every: tuple[Scope, ...] = ("inference", "read", "fine-tuning", "admin")
    assert {scope for scope in every if allow([scope], *request_)} == allowed


def test_a_key_without_scopes_has_all_but_admin() -> None:
    old = {"id": "a" * 16, "team": "search", "name": "old", "digest": "0" * 64, "created_at": datetime.now(UTC)}
    assert ApiKey.model_validate(old).scopes == ("inference", "fine-tuning", "read")


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    app = make_app(FixedRouter(ADAPTERS), api_key=KEY, keys=StoredKeys(store, ttl_s=0.01))
    with TestClient(app) as client:
        yield client


def test_a_key_may_do_what_its_scopes_say(client: TestClient, store: Store) -> None:
    def headers(*scopes: Scope) -> dict[str, str]:
        return {"authorization": f"Bearer {api_keys.create(store, 'default', 'test', scopes=scopes)[1]}"}

    calls, reads, admin = headers("inference"), headers("read"), headers("admin")
    assert client.post("/v1/chat/completions", json=ASK, headers=calls).status_code == 200
    for method, path, key in (("POST", CALL[1], reads), ("GET", "/v1/files", calls), ("DELETE", DELETE[1], reads)):
        error = error_of(client.request(method, path, headers=key), 403)
        assert error["code"] == "insufficient_scope"
        assert f"{method} {path}" in error["message"]
    assert client.get("/metrics", headers=admin).status_code == 200
    assert client.get("/metrics", headers=headers(*api_keys.DEFAULT_SCOPES)).status_code == 403


@pytest.mark.parametrize(("team", "status"), [("blue", 200), ("default", 404), ("no team!", 400)])
def test_the_operator_acts_for_the_team_that_it_names(
    http: httpx.Client, server: ApiServer, store: Workspace, team: str, status: int
) -> None:
    """`OpenAI-Project`, as the official client sends it; other keys stay with their own team."""
    _, secret = api_keys.create(store, "blue", "app")
    blue = {"Authorization": f"Bearer {secret}", "OpenAI-Project": "default"}
    upload = {"file": ("r.jsonl", rows(12))}
    answer = http.post("/files", files=upload, data={"purpose": "fine-tune"}, headers=blue)
    file = answer.raise_for_status().json()
    assert http.get(f"/files/{file['id']}", headers={"OpenAI-Project": team}).status_code == status
