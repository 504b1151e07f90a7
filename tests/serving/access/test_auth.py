"""Who is let in, as whom and how far: the gate with keys in a real store, in this process.

Over 400 lines: all of it goes through one gate, with one set of keys and one clock.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import httpx2
import openai
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_jobs.errors import SpecError, StoreUnreachable
from ray_jobs.registry.api_names import DEFAULT_TEAM
from ray_jobs.storage import Store
from ray_jobs.tenancy import api_keys
from ray_jobs.tenancy.api_keys import Limits
from serving.access.auth import OPERATOR, AccessMiddleware, Caller, body_limit_bytes
from serving.access.keys import StoredKeys
from serving.access.rate_limiter import RateLimiter
from serving.http.errors import ApiError
from serving.settings import EndpointSettings
from tests.serving.api_harness import make_app
from tests.serving.fake_backend import FakeBackend
from tests.serving.test_serving_unit import ADAPTERS, ASK, FixedRouter

KEY = "the-operators-own-key"
MIB = 2**20

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class App:
    """Answers with who asked and how many bytes it sent; may wait, fail, or go on after its answer."""

    def __init__(self) -> None:
        self.callers: list[Caller | None] = []
        self.waits: asyncio.Event | None = None
        self.entered = asyncio.Event()
        self.fails = False
        self.afterwards: Callable[[], Awaitable[None]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope.get("state", {}).get("caller")
        self.callers.append(caller)
        sent_bytes = 0
        try:
            while True:
                message = await receive()
                sent_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):
                    break
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        self.entered.set()
        if self.waits is not None:
            await self.waits.wait()
        if self.fails:
            raise RuntimeError("the route failed")
        text = f"{caller.team if caller else None} {sent_bytes}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        if self.afterwards is not None:
            await self.afterwards()


def make_gate(app: ASGIApp, source: StoredKeys | None = None, **settings: Any) -> AccessMiddleware:
    made = EndpointSettings(**{"api_key": KEY} | settings)
    limiter = RateLimiter(max_ongoing_requests=made.max_ongoing_requests)
    return AccessMiddleware(app, made, limiter=limiter, keys=source, behind_proxy=False)


def client_of(app: ASGIApp, key: str | None = None) -> httpx.AsyncClient:
    headers = {} if key is None else {b"Authorization": f"Bearer {key}".encode()}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)


async def get(app: ASGIApp, key: str | None = None, path: str = "/v1/models") -> httpx.Response:
    async with client_of(app, key) as client:
        return await client.get(path)


def code_of(response: httpx.Response) -> tuple[int, str | None]:
    assert response.headers["x-request-id"]
    return response.status_code, response.json()["error"]["code"]


class Reads:
    """What is asked of the store, which can be taken away or made to hang."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.listings = 0
        self.records = 0
        self.away = False
        self.hangs: threading.Event | None = None
        etags, read = api_keys.etags, api_keys.read

        def counted_etags(store: Store) -> dict[str, str]:
            self.listings += 1
            self._answer()
            return etags(store)

        def counted_read(store: Store, key_id: str) -> api_keys.ApiKey | None:
            self.records += 1
            self._answer()
            return read(store, key_id)

        monkeypatch.setattr(api_keys, "etags", counted_etags)
        monkeypatch.setattr(api_keys, "read", counted_read)

    def _answer(self) -> None:
        if self.hangs is not None:
            self.hangs.wait(20)
        if self.away:
            raise StoreUnreachable("no answer")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


# --- who asks --------------------------------------------------------------------------------------------------------


async def test_the_caller_is_who_the_key_belongs_to(store: Store) -> None:
    limits = Limits(requests_per_minute=5, concurrent_jobs=1)
    made, secret = api_keys.create(store, "search", "app", limits)
    app = App()
    gate = make_gate(app, StoredKeys(store, ttl_s=5.0))
    assert (await get(gate, secret)).status_code == 200
    assert (await get(gate, KEY)).status_code == 200
    assert (await get(make_gate(app, api_key=None))).status_code == 200
    assert app.callers == [Caller(made.id, "search", limits, admin=False), OPERATOR, OPERATOR]
    assert (OPERATOR.key_id, OPERATOR.team, OPERATOR.limits, OPERATOR.admin) == ("operator", "default", Limits(), True)


async def test_every_key_that_opens_nothing_is_refused_in_the_same_words(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app")
    revoked, revoked_secret = api_keys.create(store, "search", "app")
    api_keys.revoke(store, revoked.id)
    expired, expired_secret = api_keys.create(store, "search", "app", expires_at=datetime.now(UTC) + timedelta(days=1))
    past = expired.model_copy(update={"expires_at": datetime(2020, 1, 1, tzinfo=UTC)})
    store.put_json(f"keys/{expired.id}.json", past.model_dump(mode="json"))
    unknown = f"kitae-{'a' * 16}-{'b' * 52}"
    wrong = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    app = App()
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


async def test_without_a_source_only_the_operators_key_opens(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app")
    gate = make_gate(App())
    assert code_of(await get(gate, secret)) == (401, "invalid_api_key")
    assert (await get(gate, KEY)).status_code == 200


async def test_one_callers_state_is_not_anothers() -> None:
    """A server may hand the same state to every request."""
    shared: dict[str, Any] = {"of the server": 1}
    app, inside = App(), asyncio.Event()
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
    assert seen == [{"of the server": 1, "caller": OPERATOR}]


# --- keys and their store --------------------------------------------------------------------------------------------


async def test_a_revocation_acts_within_the_time_to_live_and_costs_one_read(store: Store, reads: Reads) -> None:
    clock = Clock()
    source = StoredKeys(store, ttl_s=5.0, clock=clock)
    made, secret = api_keys.create(store, "search", "app")
    others = [api_keys.create(store, "search", "app")[1] for _ in range(3)]
    for _ in range(20):
        assert await source.find(secret) == made
        for other in others:
            assert await source.find(other) is not None
    assert (reads.listings, reads.records) == (1, 4)
    api_keys.revoke(store, made.id)
    clock.now_s = 4.9
    assert await source.find(secret) == made
    clock.now_s = 5.1
    assert await source.find(secret) is None
    for other in others:
        assert await source.find(other) is not None
    assert (reads.listings, reads.records) == (2, 5)


async def test_a_key_made_a_moment_ago_opens(store: Store) -> None:
    clock = Clock()
    source = StoredKeys(store, ttl_s=5.0, clock=clock)
    assert await source.find(f"kitae-{'a' * 16}-{'b' * 52}") is None
    made, secret = api_keys.create(store, "search", "app")
    clock.now_s = 0.3
    assert await source.find(secret) == made


async def test_many_at_once_share_one_read(store: Store, reads: Reads) -> None:
    made, secret = api_keys.create(store, "search", "app")
    found = await asyncio.gather(*(StoredKeys.find(source, secret) for source in [StoredKeys(store, ttl_s=5.0)] * 100))
    assert found == [made] * 100
    assert (reads.listings, reads.records) == (1, 1)


async def test_a_flood_of_wrong_keys_is_no_flood_of_reads_nor_of_memory(store: Store, reads: Reads) -> None:
    clock = Clock()
    source = StoredKeys(store, ttl_s=5.0, clock=clock)
    made, secret = api_keys.create(store, "search", "app")
    assert await source.find(secret) == made
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"

    async def flood(numbers: range) -> None:
        for number in numbers:
            clock.now_s += 1 / 10_000
            key_id = "".join(alphabet[number >> 5 * place & 31] for place in range(16))
            wrong = f"kitae-{key_id}-{'b' * 52}" if number % 2 else f"{secret[:-8]}{key_id[:8]}"
            assert await source.find(wrong) is None

    await flood(range(2000))
    tracemalloc.start()
    try:
        before_bytes, _ = tracemalloc.get_traced_memory()
        await flood(range(2000, 102_000))
        grown_bytes = tracemalloc.get_traced_memory()[0] - before_bytes
    finally:
        tracemalloc.stop()
    assert grown_bytes < 256 * 1024
    assert reads.listings <= clock.now_s / 0.25 + 2  # seconds of the flood, not keys
    assert reads.records == 1
    assert await source.find(secret) == made


async def test_what_was_known_opens_while_the_store_is_away(store: Store, reads: Reads) -> None:
    clock = Clock()
    source = StoredKeys(store, ttl_s=5.0, clock=clock)
    made, secret = api_keys.create(store, "search", "app")
    _, never_used = api_keys.create(store, "search", "app")
    app = App()
    gate = make_gate(app, source)
    reads.away = True
    response = await get(gate, secret)
    assert code_of(response) == (503, "store_unreachable")
    assert response.headers["retry-after"] == "5"
    reads.away, clock.now_s = False, 1.0
    assert (await get(gate, secret)).status_code == 200
    reads.away, clock.now_s = True, 100.0
    assert (await get(gate, secret)).status_code == 200
    assert code_of(await get(gate, secret[:-1] + "?")) == (401, "invalid_api_key")
    for unknown in (never_used, f"kitae-{'a' * 16}-{'b' * 52}"):
        assert code_of(await get(gate, unknown)) == (503, "store_unreachable")
    assert (await get(gate, KEY)).status_code == 200
    tried = reads.listings + reads.records
    for _ in range(50):
        assert (await get(gate, secret)).status_code == 200
    assert reads.listings + reads.records == tried  # it is not asked again at once
    reads.away, clock.now_s = False, 101.0
    assert await source.find(never_used) is not None
    api_keys.revoke(store, made.id)
    clock.now_s = 200.0
    assert await source.find(secret) is None


async def test_a_key_known_to_have_changed_does_not_open_until_it_is_read(store: Store, reads: Reads) -> None:
    """The change may be its revocation."""
    clock = Clock()
    source = StoredKeys(store, ttl_s=5.0, clock=clock)
    made, secret = api_keys.create(store, "search", "app")
    assert await source.find(secret) == made
    api_keys.revoke(store, made.id)
    clock.now_s = 6.0
    await source._list(5.0)
    reads.away = True
    with pytest.raises(ApiError, match="does not answer"):
        await source.find(secret)


async def test_a_store_that_hangs_keeps_nobody_waiting_who_is_known(store: Store, reads: Reads) -> None:
    source = StoredKeys(store, ttl_s=0.05, patience_s=0.3)
    made, secret = api_keys.create(store, "search", "app")
    assert await source.find(secret) == made
    reads.hangs = threading.Event()
    try:
        await asyncio.sleep(0.1)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        assert await source.find(secret) == made
        assert 0.2 < loop.time() - began_s < 2.0
        began_s = loop.time()
        for _ in range(100):
            assert await source.find(secret) == made
        with pytest.raises(ApiError):
            await source.find(f"kitae-{'a' * 16}-{'b' * 52}")
        assert loop.time() - began_s < 0.25  # the first has waited for all
        assert reads.listings == 2
    finally:
        reads.hangs.set()
        reads.hangs = None
    await asyncio.sleep(0.2)
    assert await source.find(f"kitae-{'a' * 16}-{'b' * 52}") is None


async def test_a_document_that_is_no_record_opens_nothing_and_spoils_no_other(store: Store) -> None:
    broken, secret = api_keys.create(store, "search", "app")
    _, other = api_keys.create(store, "search", "app")
    store.put_json(f"keys/{broken.id}.json", {"id": broken.id})
    source = StoredKeys(store, ttl_s=5.0)
    assert await source.find(secret) is None
    assert await source.find(other) is not None


async def test_no_key_is_in_any_log_or_answer(store: Store, reads: Reads, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    clock = Clock()
    source = StoredKeys(store, ttl_s=5.0, clock=clock)
    revoked, revoked_secret = api_keys.create(store, "search", "revoked")
    broken, broken_secret = api_keys.create(store, "search", "broken")
    _, secret = api_keys.create(store, "search", "app", Limits(requests_per_minute=2))
    api_keys.revoke(store, revoked.id)
    store.put_json(f"keys/{broken.id}.json", {"id": broken.id, "digest": broken_secret})
    app = make_app(FixedRouter(ADAPTERS), keys=source, api_key=KEY)
    told = ""
    for away in (False, True):
        reads.away = away
        clock.now_s += 100.0
        for key in (secret, revoked_secret, broken_secret, KEY, secret[:-1] + "7", KEY[:-1]):
            async with client_of(app, key) as client:
                for response in [await client.post("/v1/chat/completions", json=ASK) for _ in range(2)]:
                    told += response.text + str(response.headers)
    assert "does not answer" in caplog.text
    assert broken.id in caplog.text
    for hidden in (secret[-52:-1], revoked_secret[-52:-1], broken_secret[-52:-1], KEY):
        assert hidden not in caplog.text
        assert hidden not in told


# --- how much at once ------------------------------------------------------------------------------------------------


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
def test_how_long_a_body_may_be(method: str, path: str, own: int | None, limit_bytes: int) -> None:
    settings = EndpointSettings(api_key=KEY)
    assert body_limit_bytes(method, path, settings, Limits(max_body_bytes=own)) == limit_bytes


async def test_a_body_is_measured_against_its_routes_and_its_keys_limit(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app", Limits(max_body_bytes=2000))
    gate = make_gate(App(), StoredKeys(store, ttl_s=5.0), max_body_bytes=4000, max_file_bytes=10_000)

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


async def test_metrics_are_for_the_operator_or_open(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app")
    source = StoredKeys(store, ttl_s=5.0)
    gate = make_gate(App(), source)
    assert code_of(await get(gate, None, "/metrics")) == (401, "invalid_api_key")
    assert code_of(await get(gate, secret, "/metrics")) == (403, "permission_denied")
    assert (await get(gate, KEY, "/metrics")).status_code == 200
    assert (await get(make_gate(App(), source, metrics_open=True), None, "/metrics")).status_code == 200
    assert code_of(await get(gate, None, "/openapi.json")) == (401, "invalid_api_key")


def test_the_new_settings_come_from_the_environment() -> None:
    defaults = EndpointSettings.from_env({"KITAE_API_KEY": KEY})
    assert (defaults.max_file_bytes, defaults.metrics_open) == (512 * MIB, False)
    given = EndpointSettings.from_env(
        {"KITAE_API_KEY": KEY, "KITAE_MAX_FILE_BYTES": "2048", "KITAE_METRICS_OPEN": "on"}
    )
    assert (given.max_file_bytes, given.metrics_open) == (2048, True)
    for name, value in (("KITAE_MAX_FILE_BYTES", "1 GB"), ("KITAE_METRICS_OPEN", "yes")):
        with pytest.raises(SpecError, match=f"{name} is '{value}'"):
            EndpointSettings.from_env({"KITAE_API_KEY": KEY, name: value})


# --- how often -------------------------------------------------------------------------------------------------------


async def test_over_a_limit_the_answer_says_when_to_come_again(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app", Limits(requests_per_minute=2, tokens_per_minute=50))
    app = App()
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


async def test_what_is_refused_before_it_begins_counts_against_no_limit(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app", Limits(requests_per_minute=1))
    gate = make_gate(App(), StoredKeys(store, ttl_s=5.0), max_body_bytes=2000)
    async with client_of(gate, secret) as client:
        assert code_of(await client.post("/v1/classify", content=b"x" * 3000))[0] == 413
        assert code_of(await client.get("/metrics"))[0] == 403
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 429


async def test_the_official_client_reads_the_refusal(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app", Limits(requests_per_minute=1))
    app = make_app(FixedRouter(ADAPTERS), keys=StoredKeys(store, ttl_s=5.0), api_key=KEY)
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app))
    async with openai.AsyncOpenAI(base_url="http://test/v1", api_key=secret, http_client=http, max_retries=0) as client:
        assert [model.id async for model in client.models.list()]
        with pytest.raises(openai.RateLimitError) as caught:
            await client.models.retrieve("base")
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")


# --- at the same time ------------------------------------------------------------------------------------------------


@pytest.fixture
def one_at_a_time(store: Store) -> tuple[App, AccessMiddleware, str]:
    _, secret = api_keys.create(store, "search", "app", Limits(concurrent_requests=1))
    app = App()
    return app, make_gate(app, StoredKeys(store, ttl_s=60.0)), secret


async def test_a_place_is_held_until_the_answer_ends(one_at_a_time: tuple[App, AccessMiddleware, str]) -> None:
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


async def test_a_place_is_free_again_after_failures_and_cancellations(
    one_at_a_time: tuple[App, AccessMiddleware, str],
) -> None:
    app, gate, secret = one_at_a_time
    app.fails = True
    for _ in range(3):
        assert (await get(gate, secret)).status_code == 500
    app.fails, app.waits = False, asyncio.Event()
    for _ in range(3):  # as Serve ends a request whose client went away
        app.entered.clear()
        request = asyncio.create_task(get(gate, secret))
        await app.entered.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    app.waits = None
    assert (await get(gate, secret)).status_code == 200


async def test_the_next_may_begin_once_the_last_piece_is_there(
    one_at_a_time: tuple[App, AccessMiddleware, str],
) -> None:
    """Even where the app goes on with something after its answer."""
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
async def test_a_client_that_goes_away_from_a_stream_gives_its_place_back(store: Store, spec_version: str) -> None:
    """The whole app: with a server that tells of it by a message (2.3), and one that fails the next send (2.4)."""
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
            assert message.get("more_body"), "the answer was over before its client was gone"
            gone.set()
            if spec_version == "2.4":
                raise OSError("the client is gone")
            await asyncio.sleep(3600)

    scope = make_scope(secret, "POST", "/v1/chat/completions")
    scope["asgi"] = {"version": "3.0", "spec_version": spec_version}
    with suppress(ClientDisconnect):
        await asyncio.wait_for(app(scope, receive, send), 10)
    assert gone.is_set()
    assert (await get(app, secret)).status_code == 200


async def test_the_process_sheds_what_it_cannot_do_and_stays_well(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app")
    app = App()
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


def make_scope(key: str, method: str = "GET", path: str = "/v1/models") -> Scope:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {key}".encode()), (b"content-type", b"application/json")],
    }


async def only_a_request() -> Message:
    return {"type": "http.request", "body": b""}
