"""The cache of API keys over a real store, which may be slow or unreachable."""

from __future__ import annotations

import asyncio
import logging
import threading
import tracemalloc

import pytest

from ray_jobs.storage import Store
from ray_jobs.tenancy import api_keys
from ray_jobs.tenancy.api_keys import Limits
from serving.access.keys import StoredKeys
from serving.http.errors import ApiError
from tests.serving.access.gate import KEY, Clock, EchoApp, Reads, client_of, code_of, get, make_gate
from tests.serving.api_harness import make_app
from tests.serving.routing import ADAPTERS, ASK, FixedRouter

pytestmark = pytest.mark.anyio


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


async def test_a_revocation_takes_effect_within_the_time_to_live_with_one_read(store: Store, reads: Reads) -> None:
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


async def test_a_new_key_is_accepted_before_the_time_to_live_ends(store: Store) -> None:
    clock = Clock()
    source = StoredKeys(store, ttl_s=5.0, clock=clock)
    assert await source.find(f"kitae-{'a' * 16}-{'b' * 52}") is None
    made, secret = api_keys.create(store, "search", "app")
    clock.now_s = 0.3
    assert await source.find(secret) == made


async def test_concurrent_lookups_share_one_read(store: Store, reads: Reads) -> None:
    made, secret = api_keys.create(store, "search", "app")
    source = StoredKeys(store, ttl_s=5.0, patience_s=60)
    found = await asyncio.gather(*(source.find(secret) for _ in range(100)))
    assert found == [made] * 100
    assert (reads.listings, reads.records) == (1, 1)


async def test_a_flood_of_wrong_keys_causes_few_reads_and_little_memory(store: Store, reads: Reads) -> None:
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
    assert reads.listings <= clock.now_s / 0.25 + 2  # bounded by the flood's duration, not by its keys
    assert reads.records == 1
    assert await source.find(secret) == made


async def test_cached_keys_are_accepted_while_the_store_is_unreachable(store: Store, reads: Reads) -> None:
    clock = Clock()
    source = StoredKeys(store, ttl_s=5.0, clock=clock)
    made, secret = api_keys.create(store, "search", "app")
    _, never_used = api_keys.create(store, "search", "app")
    app = EchoApp()
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
    assert reads.listings + reads.records == tried  # the failure is cached
    reads.away, clock.now_s = False, 101.0
    assert await source.find(never_used) is not None
    api_keys.revoke(store, made.id)
    clock.now_s = 200.0
    assert await source.find(secret) is None


async def test_a_changed_key_is_not_accepted_until_its_record_is_read(store: Store, reads: Reads) -> None:
    """The change may be a revocation."""
    clock = Clock()
    source = StoredKeys(store, ttl_s=5.0, clock=clock)
    made, secret = api_keys.create(store, "search", "app")
    assert await source.find(secret) == made
    api_keys.revoke(store, made.id)
    clock.now_s = 6.0
    assert await source.find(f"kitae-{'a' * 16}-{'b' * 52}") is None  # refreshes the listing
    reads.away = True
    with pytest.raises(ApiError, match="does not answer"):
        await source.find(secret)


async def test_a_hanging_store_delays_cached_keys_only_once(store: Store, reads: Reads) -> None:
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
        assert loop.time() - began_s < 0.25  # only the first lookup waits
        assert reads.listings == 2
    finally:
        reads.hangs.set()
        reads.hangs = None
    await asyncio.sleep(0.2)
    assert await source.find(f"kitae-{'a' * 16}-{'b' * 52}") is None


async def test_an_invalid_record_affects_only_its_own_key(store: Store) -> None:
    broken, secret = api_keys.create(store, "search", "app")
    _, other = api_keys.create(store, "search", "app")
    store.put_json(f"keys/{broken.id}.json", {"id": broken.id})
    source = StoredKeys(store, ttl_s=5.0)
    assert await source.find(secret) is None
    assert await source.find(other) is not None


async def test_no_log_or_response_contains_a_key(store: Store, reads: Reads, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    clock = Clock()
    source = StoredKeys(store, ttl_s=5.0, clock=clock)
    revoked, revoked_secret = api_keys.create(store, "search", "revoked")
    broken, broken_secret = api_keys.create(store, "search", "broken")
    _, secret = api_keys.create(store, "search", "app", Limits(requests_per_minute=2))
    api_keys.revoke(store, revoked.id)
    store.put_json(f"keys/{broken.id}.json", {"id": broken.id, "digest": broken_secret})
    app = make_app(FixedRouter(ADAPTERS), keys=source, api_key=KEY)
    responses = ""
    for away in (False, True):
        reads.away = away
        clock.now_s += 100.0
        for key in (secret, revoked_secret, broken_secret, KEY, secret[:-1] + "7", KEY[:-1]):
            async with client_of(app, key) as client:
                for response in [await client.post("/v1/chat/completions", json=ASK) for _ in range(2)]:
                    responses += response.text + str(response.headers)
    assert "does not answer" in caplog.text
    assert broken.id in caplog.text
    for hidden in (secret[-52:-1], revoked_secret[-52:-1], broken_secret[-52:-1], KEY):
        assert hidden not in caplog.text
        assert hidden not in responses
