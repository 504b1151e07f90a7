"""Authentication: which keys are accepted, and the caller they identify."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from ray_jobs.storage import Store
from ray_jobs.tenancy import api_keys
from ray_jobs.tenancy.api_keys import Limits
from serving.access.auth import OPERATOR, Caller, key_matches, key_of
from serving.access.keys import StoredKeys
from tests.serving.access.gate import KEY, EchoApp, code_of, get, make_gate
from tests.serving.fake_backend import FakeBackend
from tests.serving.routing import KEY as KEY_OF_CLIENT
from tests.serving.routing import error_of, make_client

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("header", "right"),
    [
        (f"Bearer {KEY}", True),
        (f"bearer {KEY}", True),
        (f"Bearer {KEY}x", False),
        (f"Basic {KEY}", False),
        (KEY, False),
        ("Bearer ", False),
        ("", False),
        (None, False),
        ("Bearer ключ", False),
    ],
)
def test_only_a_bearer_header_with_the_exact_key_matches(header: str | None, right: bool) -> None:
    headers = Headers(raw=[] if header is None else [(b"authorization", header.encode())])
    assert key_matches(key_of(headers), KEY) is right


def test_azures_header_holds_a_key_too() -> None:
    with make_client() as client:
        client.headers.pop("authorization")
        assert client.get("/v1/models", headers={"api-key": KEY_OF_CLIENT}).status_code == 200
        assert error_of(client.get("/v1/models", headers={"api-key": "wrong"}), 401)["code"] == "invalid_api_key"
        both = {"api-key": KEY_OF_CLIENT, "authorization": "Bearer wrong"}
        assert client.get("/v1/models", headers=both).status_code == 401


def test_every_path_but_the_probes_needs_the_key() -> None:
    backend = FakeBackend(states={"kitae": "RUNNING", "kitae-base": "RUNNING"})
    with make_client(backend) as client:
        client.headers.pop("authorization")
        for method, path in [
            ("GET", "/v1/models"),
            ("POST", "/v1/chat/completions"),
            ("GET", "/nowhere"),
            ("GET", "/docs"),
        ]:
            error = error_of(client.request(method, path), 401)
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert client.get("/healthz").json() == client.get("/health").json() == {"status": "ok"}
        assert client.get("/readyz").status_code == 200


def test_readiness_names_nothing_to_strangers() -> None:
    backend = FakeBackend(states={"kitae": "RUNNING", "kitae-base": "DEPLOYING"})
    with make_client(backend) as client:
        assert client.get("/readyz").json()["waits_for"] == {"kitae-base": "DEPLOYING"}
        for strangers in ({}, {"authorization": "Bearer wrong"}, {"api-key": "wrong"}):
            client.headers.pop("authorization", None)
            answer = client.get("/readyz", headers=strangers)
            assert (answer.status_code, answer.json()) == (503, {"status": "waits"})


def test_no_key_is_needed_if_authentication_is_off() -> None:
    with make_client(api_key=None) as client:
        client.headers.pop("authorization")
        assert client.get("/v1/models").status_code == 200


async def test_the_caller_is_the_owner_of_the_key(store: Store) -> None:
    limits = Limits(requests_per_minute=5, concurrent_jobs=1, concurrent_requests=9)
    made, secret = api_keys.create(store, "search", "app", limits)
    app = EchoApp()
    gate = make_gate(app, StoredKeys(store, ttl_s=5.0))
    assert (await get(gate, secret)).status_code == 200
    assert (await get(gate, KEY)).status_code == 200
    assert (await get(make_gate(app, api_key=None))).status_code == 200
    assert app.callers == [Caller(made.id, "search", limits, admin=False), OPERATOR, OPERATOR]
    assert (OPERATOR.key_id, OPERATOR.team, OPERATOR.limits, OPERATOR.admin) == ("operator", "default", Limits(), True)


async def test_all_invalid_keys_get_the_same_message(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app")
    revoked, revoked_secret = api_keys.create(store, "search", "app")
    api_keys.revoke(store, revoked.id)
    expired, expired_secret = api_keys.create(store, "search", "app", expires_at=datetime.now(UTC) + timedelta(days=1))
    past = expired.model_copy(update={"expires_at": datetime(2020, 1, 1, tzinfo=UTC)})
    store.put_json(f"keys/{expired.id}.json", past.model_dump(mode="json"))
    unknown = f"kitae-{'a' * 16}-{'b' * 52}"
    wrong = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    app = EchoApp()
    gate = make_gate(app, StoredKeys(store, ttl_s=5.0))
    answers = []
    for key in (
        wrong,
        revoked_secret,
        expired_secret,
        unknown,
        "nonsense",
        KEY + "x",
        "ключ",
    ):
        response = await get(gate, key)
        assert code_of(response) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
        answers.append(response.text)
    assert len(set(answers)) == 1
    assert "no API key was sent" in (await get(gate)).text
    assert app.callers == []
    assert (await get(gate, secret)).status_code == 200


async def test_without_a_key_source_only_the_operators_key_is_accepted(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app")
    gate = make_gate(EchoApp())
    assert code_of(await get(gate, secret)) == (401, "invalid_api_key")
    assert (await get(gate, KEY)).status_code == 200


async def test_callers_do_not_share_request_state() -> None:
    """A server may pass the same state to every request."""
    shared: dict[str, Any] = {"of the server": 1}
    app, inside = EchoApp(), asyncio.Event()
    app.waits = inside
    seen = []

    async def looking(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)
        seen.append(dict(scope["state"]))

    gate = make_gate(looking)

    async def sharing(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = shared
        await gate(scope, receive, send)

    first = asyncio.create_task(get(sharing, KEY))
    await app.entered.wait()
    inside.set()
    assert (await first).status_code == 200
    assert shared == {"of the server": 1}
    ((state, caller),) = [(state, state.pop("caller")) for state in seen]
    assert caller == OPERATOR
    assert state.keys() == {"of the server", "reserve_tokens"}


async def test_metrics_need_the_operators_key_unless_they_are_open(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app")
    source = StoredKeys(store, ttl_s=5.0)
    gate = make_gate(EchoApp(), source)
    assert code_of(await get(gate, None, "/metrics")) == (401, "invalid_api_key")
    assert code_of(await get(gate, secret, "/metrics")) == (403, "permission_denied")
    assert (await get(gate, KEY, "/metrics")).status_code == 200
    assert (await get(make_gate(EchoApp(), source, metrics_open=True), None, "/metrics")).status_code == 200
    assert code_of(await get(gate, None, "/openapi.json")) == (401, "invalid_api_key")
