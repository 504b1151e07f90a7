"""A body is read before its request takes a place: slow senders lock nobody out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive

from ray_jobs.storage import Store
from ray_jobs.tenancy import api_keys
from serving.access.body_reader import BodyReader
from serving.access.keys import StoredKeys
from serving.http.errors import ApiError
from tests.serving.access.gate import KEY, EchoApp, client_of, code_of, get, make_gate, make_scope

pytestmark = pytest.mark.anyio


def slow_body(release: asyncio.Event) -> Receive:
    """Sends half a body at once, and the rest when released."""
    pieces: list[Message] = [
        {"type": "http.request", "body": b"half", "more_body": True},
        {"type": "http.request", "body": b"half", "more_body": False},
    ]

    async def receive() -> Message:
        if len(pieces) == 1:
            await release.wait()
        return pieces.pop(0)

    return receive


async def test_half_sent_bodies_of_one_key_lock_nobody_out(store: Store) -> None:
    _, secret = api_keys.create(store, "search", "app")
    app = EchoApp()
    gate = make_gate(app, StoredKeys(store, ttl_s=60.0), max_ongoing_requests=20)
    release = asyncio.Event()
    sent: list[list[Message]] = [[] for _ in range(40)]

    async def send(messages: list[Message], receive: Receive) -> None:
        async def collect(message: Message) -> None:
            messages.append(message)

        await gate(make_scope(secret, "POST", "/v1/chat/completions"), receive, collect)

    slow = [asyncio.create_task(send(messages, slow_body(release))) for messages in sent]
    await asyncio.sleep(0.05)
    assert (await get(gate, KEY)).status_code == 200
    assert (await get(gate, secret)).status_code == 200
    async with client_of(gate, KEY) as client:
        assert (await client.post("/v1/chat/completions", content=b"whole")).text.endswith(" 5")
    refused = [messages for messages in sent if messages]
    assert {messages[0]["status"] for messages in refused} == {429}
    assert len(refused) == 40 - 5
    release.set()
    await asyncio.gather(*slow)
    assert [messages[0]["status"] for messages in sent].count(200) == 5
    assert gate.bodies._arriving == {}


async def test_a_body_that_does_not_arrive_is_a_408() -> None:
    gate = make_gate(EchoApp())
    gate.bodies.deadline_s = 0.05

    async def never() -> Any:
        yield b"half"
        await asyncio.Event().wait()

    for path in ("/v1/chat/completions", "/v1/files"):
        async with client_of(gate, KEY) as client:
            assert code_of(await client.post(path, content=never())) == (408, "request_timeout")


async def test_a_client_that_disconnects_frees_its_count() -> None:
    bodies = BodyReader(max_arriving=1)

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    receive = await bodies.whole(gone, "key")
    assert (await receive())["type"] == "http.disconnect"
    with bodies._counted("key"), pytest.raises(ApiError) as refused:
        await bodies.whole(gone, "key")
    assert refused.value.status == 429
    await bodies.whole(gone, "key")
