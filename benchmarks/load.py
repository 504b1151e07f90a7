"""Load on a server: one request, several concurrent clients, and requests at a fixed rate.

Knows OpenAI's HTTP API and nothing about the server, so every server is measured by the same code. Prompts are token
ids, drawn for every request: no two share a prefix that a server could have cached.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from ray_jobs.errors import MachineError

PROMPT_TOKENS = 16
_IDS = range(1000, 40_000)
"""Ordinary tokens of SmolLM2's vocabulary of 49,152."""
_TIMEOUT_S = 120.0
_BROKEN = 0


@dataclass(frozen=True)
class Server:
    """URL, key and model of a server."""

    url: str
    """Including `/v1`."""
    key: str
    model: str


@dataclass(frozen=True)
class Kind:
    """A kind of request, which generates exactly `tokens`."""

    tokens: int
    stream: bool = False


@dataclass(frozen=True)
class Answer:
    """Outcome of a request."""

    began_s: float
    seconds: float
    status: int
    """HTTP status; 0 if the connection broke."""
    first_s: float | None = None
    """Seconds to the first chunk of a stream."""
    retry_after: str | None = None
    said: str = ""
    """Body of a refusal."""


@asynccontextmanager
async def open_client() -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=4.0)
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, limits=limits, trust_env=False) as http:
        yield http


def prompt_ids(seed: int) -> list[int]:
    return random.Random(seed).choices(_IDS, k=PROMPT_TOKENS)


async def ask(http: httpx.AsyncClient, server: Server, kind: Kind, seed: int) -> Answer:
    """Send a request and read the whole answer. Raises MachineError if the answer is incomplete."""
    body = {"model": server.model, "prompt": prompt_ids(seed), "max_tokens": kind.tokens, "temperature": 0.0}
    body |= {"ignore_eos": True} | ({"stream": True} if kind.stream else {})
    headers = {"Authorization": f"Bearer {server.key}"}
    began_s, first_s, pieces = time.perf_counter(), None, []
    try:
        async with http.stream("POST", f"{server.url}/completions", json=body, headers=headers) as response:
            async for piece in response.aiter_bytes():
                if first_s is None:
                    first_s = time.perf_counter() - began_s
                pieces.append(piece)
    except httpx.TransportError:
        return Answer(began_s, time.perf_counter() - began_s, _BROKEN)
    seconds = time.perf_counter() - began_s
    if response.status_code == 200:
        _check_whole(b"".join(pieces), kind)
    retry_after = response.headers.get("retry-after")
    said = "" if response.status_code == 200 else b"".join(pieces)[:300].decode(errors="replace")
    return Answer(began_s, seconds, response.status_code, first_s if kind.stream else None, retry_after, said)


def _check_whole(answer: bytes, kind: Kind) -> None:
    if kind.stream:
        whole = answer.rstrip().endswith(b"data: [DONE]") and b'"error"' not in answer
    else:
        whole = json.loads(answer)["usage"]["completion_tokens"] == kind.tokens
    if not whole:
        raise MachineError(f"an answer is incomplete: {answer[-200:].decode(errors='replace')}")


async def ask_well(http: httpx.AsyncClient, server: Server, kind: Kind, seed: int) -> Answer:
    """Like `ask`, but raises MachineError for any status other than 200."""
    answer = await ask(http, server, kind, seed)
    if answer.status != 200:
        raise MachineError(f"{server.url} answered {answer.status}: {answer.said}")
    return answer


async def closed_loop(server: Server, kind: Kind, clients: int, requests_each: int, seed: int) -> list[Answer]:
    """Run concurrent clients that each send a request as soon as the previous one is answered. Connections are opened
    first."""
    async with open_client() as http:
        await asyncio.gather(*(http.get(server.url.removesuffix("/v1") + "/healthz") for _ in range(clients)))

        async def client(number: int) -> list[Answer]:
            first = seed + number * requests_each
            return [await ask_well(http, server, kind, first + i) for i in range(requests_each)]

        found = await asyncio.gather(*(client(number) for number in range(clients)))
    return [answer for answers in found for answer in answers]


async def offer(
    http: httpx.AsyncClient,
    server: Server,
    kind: Kind,
    rate_per_s: float,
    seconds: float,
    on_progress: Callable[[float], None],
) -> list[asyncio.Task[Answer]]:
    """Send a request every 1/rate seconds, without waiting for earlier ones. `on_progress` gets the elapsed seconds."""
    loop = asyncio.get_running_loop()
    began_s, asked = loop.time(), []
    for i in range(int(rate_per_s * seconds)):
        await asyncio.sleep(began_s + i / rate_per_s - loop.time())
        asked.append(asyncio.create_task(ask(http, server, kind, 10**6 + i)))
        if i % max(1, int(rate_per_s)) == 0:
            on_progress(loop.time() - began_s)
    return asked


def tokens_per_s(answers: Sequence[Answer], kind: Kind) -> float:
    """Tokens a second of a closed loop, from the first request to the last answer. Pure."""
    began_s = min(answer.began_s for answer in answers)
    ended_s = max(answer.began_s + answer.seconds for answer in answers)
    return len(answers) * kind.tokens / (ended_s - began_s)
