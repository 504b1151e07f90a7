"""Overhead of a job over a bare loop: Ray Train, DeepSpeed, the progress display, polling for cancellation.

The job runs its own worker function under Ray Train, started as in the pipeline. The bare loops have the same model,
batches and threads, each in a process of its own. The sides take turns, step by step. One bare loop uses the job's
attention and adapter layers, the other those of transformers and PEFT.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.figures import Pairs, gibibytes, largest_gap, number, table, verdict
from benchmarks.turns import Measure
from benchmarks.workbench import Contest, Show, Workbench, make_spec
from ray_jobs.training.batching import batch_plan

GOAL = 0.95
BATCH_SIZE = 4
BARE = "bare loop, 2 threads"
STOCK = "bare loop with stock layers, 2 threads"
ONE = "job, 1 worker × 2 threads"
TWO = "job, 2 workers × 1 thread"


def run(bench: Workbench, show: Show, *, quick: bool) -> dict[str, Any]:
    """Measure all sides. `tokens` has the number of tokens of each step."""
    steps = 5 if quick else 14
    contests = {
        ONE: Contest(),
        BARE: Contest("benchmarks.bare", "same"),
        STOCK: Contest("benchmarks.bare", "stock"),
        TWO: Contest(workers=2, threads=1),
    }
    measures = bench.contend("faq", steps, BATCH_SIZE, contests, show)
    plan = batch_plan(make_spec(steps=steps + 2, batch_size=BATCH_SIZE), bench.encoded("faq"))
    return {
        "batch_size": BATCH_SIZE,
        "tokens": [plan.tokens_in(step) for step in range(steps + 1)],
        "sides": {name: vars(measure) for name, measure in measures.items()},
    }


def describe(figures: dict[str, Any]) -> str:
    """Render the section of the report. Pure."""
    sides = {name: Measure.of(document) for name, document in figures["sides"].items()}
    tokens, bare = figures["tokens"][1:], sides[BARE]

    def against(name: str, other: str) -> Pairs:
        mine, theirs = sides[name].step_seconds[1:], sides[other].step_seconds[1:]
        return Pairs(
            tuple(n / s for n, s in zip(tokens, mine, strict=True)),
            tuple(n / s for n, s in zip(tokens, theirs, strict=True)),
        )

    rows = []
    for name, side in sides.items():
        pairs = against(name, BARE)
        low, high = pairs.middle_half
        rows.append(
            [
                name,
                number(median(pairs.ours)),
                "" if side is bare else f"**{pairs.ratio:.3f}**",
                "" if side is bare else f"{low:.3f} to {high:.3f}",
                f"{sum(bare.cpu_seconds[1:]) / sum(side.cpu_seconds[1:]):.3f}",
                f"{side.start_s:.1f} s",
                " + ".join(gibibytes(size) for size in side.peak_memory_bytes),
                f"{side.others_share:.0%}",
            ]
        )
    gap = max(largest_gap(side.losses, bare.losses) for side in sides.values())
    stock = against(ONE, STOCK)
    header = [
        "side", "tok/s", "ratio", "half of the pairs", "by processor time", "start-up", "peak memory", "others' share",
    ]  # fmt: skip
    return (
        f"SmolLM2-135M, LoRA on all linear layers, {figures['batch_size']} FAQ rows a step, packed. {len(tokens)} "
        f"pairs, step by step in turn; medians. One worker: {verdict(against(ONE, BARE).ratio, GOAL)}.\n\n"
        f"{table(header, rows)}\n\n"
        f"Against the loop with the stock layers of transformers and PEFT, one worker's ratio is {stock.ratio:.3f} "
        f"(half of the pairs: {stock.middle_half[0]:.3f} to {stock.middle_half[1]:.3f}).\n\n"
        "Ratio: tokens a second of a side over the bare loop's, pair by pair. Start-up: from the start (of the "
        "processes, or of the job's training stage) to the first step, on a machine that has the model's files. "
        "Others' share: the share of the machine's processor time used by other processes, including Ray's own. The "
        f"largest relative difference of the sides' losses is {gap:.1e}."
    )
