"""What the checks of a generation add to its answer: the endpoint in this process, with engines that answer at once.

A pair is one request, once as the endpoint takes it and once with its checks left out, in alternating order: the
strict parser, fields and messages, constraints, the engine's places. The body's deadline and the reservation of tokens
are in both.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext
from importlib.metadata import version
from statistics import median
from typing import Any
from unittest.mock import patch

import httpx

from benchmarks.figures import interval, number, table, within
from benchmarks.workbench import Show, Workbench
from serving.inference.generation_request import GenerationRequest
from serving.inference.grammars import Grammars
from serving.inference.places import EnginePlaces
from serving.routes import inference
from tests.serving.api_harness import make_app
from tests.serving.routing import ADAPTERS, KEY, FixedRouter

GOAL_MS = 1.0
PAIRS, QUICK_PAIRS = 1000, 50
_WARM_UP = 20
_TOOL = {"type": "object", "properties": {f"field_{i}": {"type": "string"} for i in range(8)}, "required": ["field_1"]}
BODIES: dict[str, dict[str, Any]] = {
    "one message of 20 words": {"messages": [{"role": "user", "content": "a word " * 10}], "temperature": 0.7},
    "40 messages of 100 words": {
        "messages": [{"role": ("user", "assistant")[i % 2], "content": "a word " * 50} for i in range(39)]
        + [{"role": "user", "content": "and now?"}],
        "stop": ["\n\n"],
        "top_p": 0.9,
    },
    "5 tools of 8 fields": {
        "messages": [{"role": "user", "content": "a word " * 10}],
        "tools": [{"type": "function", "function": {"name": f"f{i}", "parameters": _TOOL}} for i in range(5)],
        "tool_choice": "none",
    },
}


def run(bench: Workbench, show: Show, *, quick: bool) -> dict[str, Any]:
    del bench
    return {"fastapi": version("fastapi"), "seconds": asyncio.run(_measure(show, QUICK_PAIRS if quick else PAIRS))}


async def _measure(show: Show, pairs: int) -> dict[str, dict[str, list[float]]]:
    app = make_app(FixedRouter(ADAPTERS), api_key=KEY)
    headers = {"Authorization": f"Bearer {KEY}"}
    found: dict[str, dict[str, list[float]]] = {}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://endpoint", headers=headers
    ) as http:
        for place, (name, body) in enumerate(BODIES.items()):
            show(place, len(BODIES), "kinds of requests", doing=name)
            sides: dict[str, list[float]] = {"checked": [], "unchecked": []}
            for i in range(pairs + _WARM_UP):
                order = ("checked", "unchecked") if i % 2 else ("unchecked", "checked")
                for side in order:
                    seconds = await _seconds(http, body, checks=side == "checked")
                    if i >= _WARM_UP:
                        sides[side].append(seconds)
            found[name] = sides
    return found


async def _seconds(http: httpx.AsyncClient, body: Mapping[str, Any], *, checks: bool) -> float:
    content = json.dumps({"model": "greeter", **body})
    with nullcontext() if checks else _without_checks():
        began_s = time.perf_counter()
        answer = await http.post("/v1/chat/completions", content=content)
        seconds = time.perf_counter() - began_s
    answer.raise_for_status()
    return seconds


@contextmanager
def _without_checks() -> Iterator[None]:
    with (
        patch.object(inference, "parse_json", json.loads),
        patch.object(inference, "parse_chat", _unchecked),
        patch.object(Grammars, "check", _allowed),
        patch.object(EnginePlaces, "place", _place),
    ):
        yield


def _unchecked(body: dict[str, Any]) -> GenerationRequest:
    stream = bool(body.get("stream"))
    return GenerationRequest(body["model"], body, stream, False, 1, body.get("n", 1), body.get("max_tokens"), [])


async def _allowed(*_: object) -> None: ...


@asynccontextmanager
async def _place(*_: object, **__: object) -> AsyncIterator[None]:
    yield


def describe(figures: Mapping[str, Any]) -> str:
    rows, worst = [], 0.0
    pairs = 0
    for name, sides in figures["seconds"].items():
        checked, unchecked = sides["checked"], sides["unchecked"]
        added = [1000 * (a - b) for a, b in zip(checked, unchecked, strict=True)]
        pairs, worst = len(added), max(worst, median(added))
        low, high = interval(added)
        both = f"{number(1000 * median(checked))} : {number(1000 * median(unchecked))} ms"
        rows.append([name, both, f"**{median(added):.2f} ms**", f"{low:.2f} to {high:.2f} ms"])
    return (
        f"The endpoint in this process, fastapi {figures['fastapi']}, {pairs} pairs of each kind.\n\n"
        + table(["chat completion", "with : without", "added at the median", "95 % interval"], rows)
        + f"\n\nMost added: {within(worst, GOAL_MS, 'ms')}."
    )
