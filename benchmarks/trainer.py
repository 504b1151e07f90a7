"""The job against `transformers.Trainer` with PEFT on the same rows of uneven length.

Trainer runs with its defaults and with two settings for uneven rows: grouped by length, and padding-free. Both sides
compute in fp32 with the same model, rows a step, learning rates and threads.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.figures import Pairs, gibibytes, largest_gap, number, table, verdict
from benchmarks.turns import Measure
from benchmarks.workbench import Contest, Rows, Show, Workbench, make_spec
from ray_jobs.training.batching import batch_plan

GOALS = {"defaults": 3.0, "tuned": 1.2}
JOB, DEFAULTS, GROUPED, FLAT = "job", "Trainer, defaults", "Trainer, group_by_length", "Trainer, padding-free"
KINDS = {DEFAULTS: "defaults", GROUPED: "grouped", FLAT: "flat"}
SETS: tuple[tuple[Rows, int, str], ...] = (
    ("faq", 8, "FAQ rows (questions and answers, 25 to 370 tokens)"),
    ("mixed", 4, "FAQ rows and e-mails to be sorted (up to 512 tokens, answered by a word)"),
)
"""(rows, rows a step, description)"""


def run(bench: Workbench, show: Show, *, quick: bool) -> dict[str, Any]:
    return {rows: _run_one(bench, rows, batch_size, show, 5 if quick else 6) for rows, batch_size, _ in SETS}


def _run_one(bench: Workbench, rows: Rows, batch_size: int, show: Show, steps: int) -> dict[str, Any]:
    """Run the job against each kind of Trainer: two sides at a time, since each Trainer takes several GiB."""
    matches = {}
    for name, kind in KINDS.items():
        contests = {JOB: Contest(), name: Contest("benchmarks.hf_trainer", kind)}
        measures = bench.contend(rows, steps, batch_size, contests, show)
        matches[name] = {side: vars(measure) for side, measure in measures.items()}
    encoded = bench.encoded(rows)
    plan = batch_plan(make_spec(steps=steps + 2, batch_size=batch_size), encoded)
    used = [i for step in range(1, steps + 1) for i in plan.rows_of(step)]
    return {
        "batch_size": batch_size,
        "lengths": [encoded.lengths[i] for i in used],
        "supervised": [encoded.supervised[i] for i in used],
        "matches": matches,
    }


def describe(figures: dict[str, Any]) -> str:
    """Render the section of the report. Pure."""
    return "\n\n".join(
        _describe_one(figures[rows], what) for rows, _, what in SETS if rows in figures
    ) + (
        "\n\nRatio: the median of the job's rows a second over the other's, step by step on the same rows; with "
        "`group_by_length`, which chooses its own batches, over all steps, which have the same rows in total. "
        "Losses: the largest relative difference from the job's loss in any step."
    )  # fmt: skip


def _describe_one(figures: dict[str, Any], what: str) -> str:
    batch_size, lengths, supervised = figures["batch_size"], figures["lengths"], sum(figures["supervised"])
    rows, ratios, steps = [], {}, 0
    for name, sides in figures["matches"].items():
        job, other = Measure.of(sides[JOB]), Measure.of(sides[name])
        steps = len(job.step_seconds) - 1
        pairs = Pairs(
            tuple(batch_size / s for s in job.step_seconds[1:]), tuple(batch_size / s for s in other.step_seconds[1:])
        )
        job_s, other_s = sum(job.step_seconds[1:]), sum(other.step_seconds[1:])
        own_batches = name == GROUPED
        ratios[name] = other_s / job_s if own_batches else pairs.ratio
        low, high = pairs.middle_half
        rows.append(
            [
                name,
                f"{number(len(lengths) / job_s)} : {number(len(lengths) / other_s)}",
                f"{number(supervised / job_s)} : {number(supervised / other_s)}",
                f"**{ratios[name]:.2f}**",
                "" if own_batches else f"{low:.2f} to {high:.2f}",
                f"{sum(other.cpu_seconds[1:]) / sum(job.cpu_seconds[1:]):.2f}",
                f"{job.start_s:.0f} : {other.start_s:.0f} s",
                f"{gibibytes(job.peak_memory_bytes[0])} : {gibibytes(other.peak_memory_bytes[0])}",
                f"{job.others_share:.0%} : {other.others_share:.0%}",
                "" if own_batches else f"{largest_gap(other.losses, job.losses):.1e}",
            ]
        )
    tuned = min(ratios[GROUPED], ratios[FLAT])
    header = [
        "job : other", "rows/s", "supervised tok/s", "job is faster by", "half of the pairs", "by processor time",
        "start-up", "peak memory", "others' share", "losses",
    ]  # fmt: skip
    return (
        f"**{what}**: {batch_size} rows a step, {steps} pairs. Tokens a row: {min(lengths)} to {max(lengths)}, median "
        f"{median(lengths):g}; {supervised / sum(lengths):.0%} supervised.\n\n"
        f"{table(header, rows)}\n\n"
        f"At its defaults: {verdict(ratios[DEFAULTS], GOALS['defaults'])}. The better tuning: "
        f"{verdict(tuned, GOALS['tuned'])}."
    )
