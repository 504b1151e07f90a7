"""Asking a server: one request, several clients at once, and requests that wait for nobody.

Knows OpenAI's HTTP API and nothing of who answers, so that every server is asked by the same code. Prompts are token
ids, drawn anew for every request: no two have a beginning in common that a server could have kept.
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
    """Where to ask, and for which model."""

    url: str
    """With `/v1`."""
    key: str
    model: str


@dataclass(frozen=True)
class Kind:
    """A kind of request: `tokens` are generated, never fewer."""

    tokens: int
    stream: bool = False


@dataclass(frozen=True)
class Answer:
    """What became of a request."""

    began_s: float
    seconds: float
    status: int
    """0: the connection broke."""
    first_s: float | None = None
    """Until the first piece of a stream."""
    retry_after: str | None = None
    said: str = ""
    """The words of a refusal."""


@asynccontextmanager
async def open_client() -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=4.0)
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, limits=limits, trust_env=False) as http:
        yield http


def prompt_ids(seed: int) -> list[int]:
    return random.Random(seed).choices(_IDS, k=PROMPT_TOKENS)


async def ask(http: httpx.AsyncClient, server: Server, kind: Kind, seed: int) -> Answer:
    """One request, to the end of its answer. MachineError for an answer that is not whole."""
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
        raise MachineError(f"an answer is not whole: {answer[-200:].decode(errors='replace')}")


async def ask_well(http: httpx.AsyncClient, server: Server, kind: Kind, seed: int) -> Answer:
    """As `ask`; MachineError for anything but an answer."""
    answer = await ask(http, server, kind, seed)
    if answer.status != 200:
        raise MachineError(f"{server.url} answered {answer.status}: {answer.said}")
    return answer


async def closed_loop(server: Server, kind: Kind, clients: int, requests_each: int, seed: int) -> list[Answer]:
    """So many clients at once, each asking its next as soon as it has its last. Connections are opened before."""
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
    tell: Callable[[float], None],
) -> list[asyncio.Task[Answer]]:
    """A request every 1/rate seconds, whatever became of those before. `tell` hears how long it has been asking."""
    loop = asyncio.get_running_loop()
    began_s, asked = loop.time(), []
    for i in range(int(rate_per_s * seconds)):
        await asyncio.sleep(began_s + i / rate_per_s - loop.time())
        asked.append(asyncio.create_task(ask(http, server, kind, 10**6 + i)))
        if i % max(1, int(rate_per_s)) == 0:
            tell(loop.time() - began_s)
    return asked


def tokens_per_s(answers: Sequence[Answer], kind: Kind) -> float:
    """Of clients that ask all the time: from the first question to the last answer. Pure."""
    began_s = min(answer.began_s for answer in answers)
    ended_s = max(answer.began_s + answer.seconds for answer in answers)
    return len(answers) * kind.tokens / (ended_s - began_s)
