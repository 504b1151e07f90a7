"""Body sizes, rate limits and concurrent requests, enforced by the access middleware."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import httpx
import httpx2
import openai
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from ray_jobs.spec import DEFAULT_TEAM
from ray_jobs.storage import Store
from ray_jobs.tenancy import api_keys
from ray_jobs.tenancy.api_keys import Limits
from serving.access.auth import AccessMiddleware, body_limit_bytes
from serving.access.keys import StoredKeys
from serving.settings import EndpointSettings
from tests.serving.access.gate import KEY, MIB, EchoApp, client_of, code_of, get, make_gate, make_scope, only_a_request
from tests.serving.api_harness import make_app
from tests.serving.fake_backend import FakeBackend
from tests.serving.routing import ADAPTERS, ASK, FixedRouter

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("method", "path", "own", "limit_bytes"),
    [
        ("POST", "/v1/chat/completions", None, 4 * MIB),
        ("POST", "/v1/files", None, 513 * MIB),
        ("GET", "/v1/files", None, 4 * MIB),
        ("POST", "/v1/files/x", None, 4 * MIB),
        ("POST", "/v1/fine_tuning/jobs", None, MIB),
        ("POST", "/v1/uploads", None, MIB),
        ("POST", "/v1/uploads/upload_1/parts", None, 65 * MIB),
        ("POST", "/v1/uploads/a/b/parts", None, MIB),
        ("POST", "/v1/uploads/upload_1/parts/x", None, MIB),
        ("POST", "/v1/files", 2048, 2048),
        ("POST", "/v1/chat/completions", 2048, 2048),
        ("POST", "/v1/chat/completions", 100 * MIB, 4 * MIB),
    ],
)
def test_the_body_limit_depends_on_path_and_key(method: str, path: str, own: int | None, limit_bytes: int) -> None:
    settings = EndpointSettings(api_key=KEY)
    assert body_limit_bytes(method, path, settings, Limits(max_body_bytes=own)) == limit_bytes


async def test_a_body_over_the_limit_of_its_path_or_key_is_refused(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app", Limits(max_body_bytes=2000))
    gate = make_gate(EchoApp(), StoredKeys(store, ttl_s=5.0), max_body_bytes=4000, max_file_bytes=10_000)

    async def chunks(size_bytes: int) -> Any:
        for _ in range(size_bytes // 100):
            yield b"x" * 100

    async def send(key: str, path: str, size_bytes: int, *, announced: bool) -> int:
        async with client_of(gate, key) as client:
            body = b"x" * size_bytes if announced else chunks(size_bytes)
            response = await client.post(path, content=body)
            if response.status_code != 200:
                assert code_of(response) == (413, "request_too_large")
            return response.status_code

    for announced in (True, False):
        assert await send(KEY, "/v1/classify", 4000, announced=announced) == 200
        assert await send(KEY, "/v1/classify", 4100, announced=announced) == 413
        assert await send(KEY, "/v1/files", 10_000 + MIB // 2, announced=announced) == 200
        assert await send(KEY, "/v1/files", 10_100 + MIB, announced=announced) == 413
        assert await send(secret, "/v1/classify", 2000, announced=announced) == 200
        assert await send(secret, "/v1/files", 2100, announced=announced) == 413
        assert await send(KEY, "/healthz", 4100, announced=announced) == 413


async def test_a_rate_limited_response_says_when_to_retry(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app", Limits(requests_per_minute=2, tokens_per_minute=50))
    app = EchoApp()
    gate = make_gate(app, StoredKeys(store, ttl_s=5.0))
    first, second, third = [await get(gate, secret) for _ in range(3)]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in (first, second, third)] == ["1", "0", "0"]
    assert [answer.headers["x-ratelimit-limit-tokens"] for answer in (first, second, third)] == ["50"] * 3
    assert code_of(third) == (429, "rate_limit_exceeded")
    assert 59 <= int(third.headers["retry-after"]) <= 61
    assert len(app.callers) == 2
    unlimited = await get(gate, KEY)
    assert unlimited.status_code == 200
    assert not [name for name in unlimited.headers if name.startswith("x-ratelimit")]


async def test_a_refused_request_does_not_count_against_limits(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app", Limits(requests_per_minute=1))
    gate = make_gate(EchoApp(), StoredKeys(store, ttl_s=5.0), max_body_bytes=2000)
    async with client_of(gate, secret) as client:
        assert code_of(await client.post("/v1/classify", content=b"x" * 3000))[0] == 413
        assert code_of(await client.get("/metrics"))[0] == 403
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 429


async def test_the_official_client_reads_a_rate_limit_error(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app", Limits(requests_per_minute=1))
    app = make_app(FixedRouter(ADAPTERS), keys=StoredKeys(store, ttl_s=5.0), api_key=KEY)
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app))
    async with openai.AsyncOpenAI(base_url="http://test/v1", api_key=secret, http_client=http, max_retries=0) as client:
        assert [model.id async for model in client.models.list()]
        with pytest.raises(openai.RateLimitError) as caught:
            await client.models.retrieve("base")
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")


async def test_a_generation_sets_its_most_tokens_aside(store: Store) -> None:
    _, secret = api_keys.create(store, DEFAULT_TEAM, "app", Limits(tokens_per_minute=1000))
    backend = FakeBackend()
    app = make_app(FixedRouter(ADAPTERS), backend, keys=StoredKeys(store, ttl_s=60.0), api_key=KEY)
    async with client_of(app, secret) as client:
        for body, status in [
            (ASK | {"max_tokens": 400, "n": 2}, 200),
            (ASK | {"max_tokens": 400, "n": 2}, 200),  # given back: only what was generated is charged
            (ASK | {"max_tokens": 400, "n": 3}, 429),
        ]:
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == status, answer.text
    assert code_of(answer) == (429, "rate_limit_exceeded")
    assert "max_tokens" in answer.text
    assert len(backend.calls) == 2


async def test_a_key_without_limits_has_the_endpoints(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app")
    gate = make_gate(EchoApp(), StoredKeys(store, ttl_s=60.0), key_limits=Limits(requests_per_minute=1))
    assert [(await get(gate, secret)).status_code for _ in range(2)] == [200, 429]
    assert [(await get(gate, KEY)).status_code for _ in range(2)] == [200, 200]


@pytest.fixture
def one_at_a_time(store: Store) -> tuple[EchoApp, AccessMiddleware, str]:
    _, secret = api_keys.create(store, "search", "app", Limits(concurrent_requests=1))
    app = EchoApp()
    return app, make_gate(app, StoredKeys(store, ttl_s=60.0)), secret


async def test_a_slot_is_held_until_the_response_ends(one_at_a_time: tuple[EchoApp, AccessMiddleware, str]) -> None:
    app, gate, secret = one_at_a_time
    app.waits = asyncio.Event()
    first = asyncio.create_task(get(gate, secret))
    await app.entered.wait()
    refused = await get(gate, secret)
    assert code_of(refused) == (429, "rate_limit_exceeded")
    assert refused.headers["retry-after"] == "1"
    assert "1 requests at the same time" in refused.text
    app.waits.set()
    assert (await first).status_code == 200
    assert (await get(gate, secret)).status_code == 200


async def test_a_slot_is_released_after_failures_and_cancellations(
    one_at_a_time: tuple[EchoApp, AccessMiddleware, str],
) -> None:
    app, gate, secret = one_at_a_time
    app.fails = True
    for _ in range(3):
        assert (await get(gate, secret)).status_code == 500
    app.fails, app.waits = False, asyncio.Event()
    for _ in range(3):  # as Serve ends a request whose client disconnected
        app.entered.clear()
        request = asyncio.create_task(get(gate, secret))
        await app.entered.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    app.waits = None
    assert (await get(gate, secret)).status_code == 200


async def test_a_slot_is_released_with_the_last_chunk(
    one_at_a_time: tuple[EchoApp, AccessMiddleware, str],
) -> None:
    """Even if the app keeps running after its response."""
    app, gate, secret = one_at_a_time
    after = asyncio.Event()
    pieces: asyncio.Queue[Message] = asyncio.Queue()

    async def afterwards() -> None:
        await after.wait()

    app.afterwards = afterwards
    scope = make_scope(secret)
    first = asyncio.create_task(gate(scope, only_a_request, pieces.put))
    while (piece := await pieces.get())["type"] != "http.response.body" or piece.get("more_body", False):
        pass
    app.afterwards = None
    assert not first.done()
    assert (await get(gate, secret)).status_code == 200
    after.set()
    await first
    assert (await get(gate, secret)).status_code == 200


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_a_client_that_disconnects_from_a_stream_releases_its_slot(store: Store, spec_version: str) -> None:
    """The server signals a disconnect by a message (ASGI 2.3) or by failing the next send (2.4)."""
    _, secret = api_keys.create(store, DEFAULT_TEAM, "app", Limits(concurrent_requests=1))
    backend = FakeBackend()
    source = StoredKeys(store, ttl_s=60.0)
    app = make_app(FixedRouter(ADAPTERS), backend, keys=source, api_key=KEY)
    body = httpx.Request("POST", "http://test", json=ASK | {"stream": True}).content
    gone, sent = asyncio.Event(), False

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            assert message.get("more_body"), "the response ended before its client disconnected"
            gone.set()
            if spec_version == "2.4":
                raise OSError("the client disconnected")
            await asyncio.sleep(3600)

    scope = make_scope(secret, "POST", "/v1/chat/completions")
    scope["asgi"] = {"version": "3.0", "spec_version": spec_version}
    with suppress(ClientDisconnect):
        await asyncio.wait_for(app(scope, receive, send), 10)
    assert gone.is_set()
    assert (await get(app, secret)).status_code == 200


async def test_an_overloaded_process_sheds_requests_and_stays_healthy(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app")
    app = EchoApp()
    app.waits = asyncio.Event()
    gate = make_gate(app, StoredKeys(store, ttl_s=60.0), max_ongoing_requests=10)
    requests = [asyncio.create_task(get(gate, key)) for key in [secret, KEY] * 10]
    done, waiting = await asyncio.wait(requests, timeout=0.5)
    assert len(done) == len(waiting) == 10
    for request in done:
        assert code_of(await request) == (429, "overloaded")
        assert (await request).headers["retry-after"] == "1"
    app.entered.clear()
    for path, key in (("/healthz", None), ("/readyz", None), ("/metrics", KEY)):
        probe = asyncio.create_task(get(gate, key, path))
        await asyncio.wait_for(app.entered.wait(), 5)
        app.entered.clear()
        requests.append(probe)
    app.waits.set()
    assert [(await request).status_code for request in [*waiting, *requests[-3:]]] == [200] * 13
    assert (await get(gate, secret)).status_code == 200
