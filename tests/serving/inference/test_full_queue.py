"""More requests at once than an engine and its queue take: the official client gets every answer, with its defaults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest

from serving.inference.backends import Route
from tests.serving.api_harness import KEY, make_app
from tests.serving.fake_backend import FakeBackend
from tests.serving.routing import ADAPTERS, FixedRouter

pytestmark = pytest.mark.anyio
ANSWER_S = 0.5
"""With 16 places and 128 in the queue, 300 requests take ten seconds."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class SlowBackend(FakeBackend):
    async def generate(self, route: Route, method: str, body: dict[str, Any]) -> AsyncIterator[Any]:  # type: ignore[override]  # an async generator, too
        await asyncio.sleep(ANSWER_S)
        async for chunk in super().generate(route, method, body):
            yield chunk


async def test_300_concurrent_requests_are_all_answered() -> None:
    app = make_app(FixedRouter(ADAPTERS), SlowBackend(), api_key=KEY)
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app))
    refused = 0

    async def count(response: httpx2.Response) -> None:
        nonlocal refused
        refused += response.status_code == 429

    http.event_hooks["response"].append(count)
    async with openai.AsyncOpenAI(base_url="http://endpoint/v1", api_key=KEY, http_client=http) as client:

        async def ask(number: int) -> str:
            messages: Any = [{"role": "user", "content": f"number {number}"}]
            answer = await client.chat.completions.create(model="greeter", messages=messages)
            return str(answer.choices[0].message.content)

        answers = await asyncio.gather(*(ask(i) for i in range(300)), return_exceptions=True)
    lost = [answer for answer in answers if isinstance(answer, BaseException)]
    assert lost == []
    assert answers == [f"number {i}" for i in range(300)]
    assert refused > 100, "the queue was never full"
