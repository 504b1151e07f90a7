"""The job against `transformers.Trainer` with PEFT on the same rows of uneven length.

Trainer takes part at its defaults, and in two tunings for uneven rows: rows of like length together, and padding-free.
Both sides compute in fp32 here, with the same model, rows a step, learning rates and threads.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.figures import Pairs, gibibytes, largest_gap, number, table, verdict
from benchmarks.turns import Measure
from benchmarks.workbench import Contest, Rows, Show, Workbench, make_spec
from ray_jobs.train import batch_plan

GOALS = {"defaults": 3.0, "tuned": 1.2}
JOB, DEFAULTS, GROUPED, FLAT = "job", "Trainer, defaults", "Trainer, group_by_length", "Trainer, padding-free"
SETS: tuple[tuple[Rows, int, str], ...] = (
    ("faq", 8, "FAQ rows (questions and answers, 25 to 370 tokens)"),
    ("mixed", 4, "FAQ rows and e-mails to be sorted (up to 512 tokens, answered by a word)"),
)
"""Rows, how many a step, and what they are."""


def run(bench: Workbench, show: Show, *, quick: bool) -> dict[str, Any]:
    return {rows: _run_one(bench, rows, batch_size, show, 5 if quick else 10) for rows, batch_size, _ in SETS}


def _run_one(bench: Workbench, rows: Rows, batch_size: int, show: Show, steps: int) -> dict[str, Any]:
    contests = {
        JOB: Contest(),
        DEFAULTS: Contest("benchmarks.hf_trainer", "defaults"),
        GROUPED: Contest("benchmarks.hf_trainer", "grouped"),
        FLAT: Contest("benchmarks.hf_trainer", "flat"),
    }
    measures = bench.contend(rows, steps, batch_size, contests, show)
    encoded = bench.encoded(rows)
    plan = batch_plan(make_spec(steps=steps + 2, batch_size=batch_size), encoded)
    used = [i for step in range(1, steps + 1) for i in plan.rows_of(step)]
    return {
        "batch_size": batch_size,
        "lengths": [encoded.lengths[i] for i in used],
        "supervised": [encoded.supervised[i] for i in used],
        "sides": {name: vars(measure) for name, measure in measures.items()},
    }


def describe(figures: dict[str, Any]) -> str:
    """The section of the report. Pure."""
    return "\n\n".join(
        _describe_one(figures[rows], what) for rows, _, what in SETS if rows in figures
    ) + (
        "\n\nRatio: the median of the job's rows a second over the other's, step by step on the same rows; with "
        "`group_by_length`, which chooses its own batches, over all steps, which have the same rows. Losses: the "
        "largest relative difference to the job's in any step."
    )  # fmt: skip


def _describe_one(figures: dict[str, Any], what: str) -> str:
    sides = {name: Measure.of(document) for name, document in figures["sides"].items()}
    job, batch_size = sides[JOB], figures["batch_size"]
    rows, ratios = [], {}
    for name, side in sides.items():
        rates = (
            tuple(batch_size / s for s in job.step_seconds[1:]),
            tuple(batch_size / s for s in side.step_seconds[1:]),
        )
        pairs = Pairs(*rates)
        whole = sum(side.step_seconds[1:]) / sum(job.step_seconds[1:])
        low, high = pairs.middle_half
        ratios[name] = whole if name == GROUPED else pairs.ratio
        supervised = sum(figures["supervised"]) / sum(side.step_seconds[1:])
        rows.append(
            [
                name,
                number(len(figures["lengths"]) / sum(side.step_seconds[1:])),
                number(supervised),
                "" if side is job else f"**{ratios[name]:.2f}**",
                "" if side is job or name == GROUPED else f"{low:.2f} to {high:.2f}",
                f"{sum(side.cpu_seconds[1:]) / sum(job.cpu_seconds[1:]):.2f}",
                f"{side.start_s:.1f} s",
                gibibytes(side.peak_memory_bytes[0]),
                "" if side is job or name == GROUPED else f"{largest_gap(side.losses, job.losses):.1e}",
            ]
        )
    lengths, tuned = figures["lengths"], min(ratios[GROUPED], ratios[FLAT])
    header = [
        "side", "rows/s", "supervised tok/s", "job is faster by", "half of the pairs", "by processor time",
        "start-up", "peak memory", "losses",
    ]  # fmt: skip
    return (
        f"**{what}**: {batch_size} rows a step, {len(job.step_seconds) - 1} pairs. Tokens a row: {min(lengths)} to "
        f"{max(lengths)}, median {median(lengths):g}; {sum(figures['supervised']) / sum(lengths):.0%} supervised.\n\n"
        f"{table(header, rows)}\n\n"
        f"At its defaults: {verdict(ratios[DEFAULTS], GOALS['defaults'])}. The better tuning: "
        f"{verdict(tuned, GOALS['tuned'])}."
    )
