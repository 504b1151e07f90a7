"""Savings of trials that share a process.

Eight LoRA trials of SmolLM2 in one process, against Ray Tune with a process for each trial; and twenty trials on a
frozen multilingual-e5-small, against runs that each load the model and compute its features.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.figures import gibibytes, interval, largest_gap, table, verdict
from benchmarks.search import review_spec
from benchmarks.separate import MeasuredTrainer, run_separately
from benchmarks.workbench import Show, Workbench, make_spec
from ray_jobs.sharing.segments import Result, TrialSegment
from ray_jobs.sharing.trial_group import TrialTask
from ray_jobs.training import checkpoint, ray_workers
from ray_jobs.training.inputs import TrainInputs, TrainUntil

GOALS = {"frozen": 10.0, "start_s": 1.0, "memory": 1.5, "wall": 1.5}
TRIALS = 8
SIZES = {2: 3, 14: 1}
"""Steps of a trial → number of measured pairs. The larger size takes about a minute alone; the two sizes show how the
ratio falls as trials grow. They fit into twenty minutes."""
FROZEN_TRIALS, FROZEN_RUNS = 20, 3
FROZEN_PASS_TOKENS = 512
"""Tokens in a pass of a separate run. Its passes are padded: in one of 16 rows two fifths of the tokens are padding."""


def run(bench: Workbench, show: Show, *, quick: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {"frozen": _frozen(bench, show, 1 if quick else FROZEN_RUNS), "sharing": []}
    bench.keep(figures)
    for steps, pairs in list(SIZES.items())[: 1 if quick else None]:
        size: dict[str, Any] = {"steps": steps, "pairs": []}
        for i in range(1 if quick else pairs):
            size["pairs"].append(_pair(bench, show, steps, i))
            if i == 0:
                figures["sharing"].append(size)
            bench.keep(figures)
    return figures


def describe(figures: Mapping[str, Any]) -> str:
    """Render the section of the report. Pure."""
    frozen = _describe_frozen(figures["frozen"])
    return f"{_describe_sharing(figures['sharing'])}\n\n{frozen}" if figures["sharing"] else frozen


def _pair(bench: Workbench, show: Show, steps: int, pair: int) -> dict[str, Any]:
    """Run eight trials of the same number of steps in one process, and in one process each; in the first pair also a
    single trial."""
    spec = make_spec(steps=steps, batch_size=2, schedule="warmup_stable_decay")
    given = bench.inputs("faq", spec).model_copy(update={"spec": spec})
    tasks = [_lora_task(given, i, steps, f"shared-{steps}-{pair}") for i in range(TRIALS)]
    one = None
    if pair == 0:
        show(0, 3, "sides", doing=f"one trial of {steps} steps")
        one = _on_shared_trainer(bench, [_lora_task(given, 0, steps, f"one-{steps}")])
    show(1, 3, "sides", doing=f"{TRIALS} trials of {steps} steps in one process")
    shared = _on_shared_trainer(bench, tasks)
    show(2, 3, "sides", doing=f"{TRIALS} trials of {steps} steps under Ray Tune")
    alone = [_lora_task(given, i, steps, f"alone-{steps}-{pair}") for i in range(TRIALS)]
    separate = run_separately(bench.store, [task.inputs for task in alone], at_once=2, threads=1)
    gaps = [largest_gap(_losses(bench, a.inputs), _losses(bench, b.inputs)) for a, b in zip(tasks, alone, strict=True)]
    return {"one": one, "shared": shared, "separate": separate, "gap": max(gaps)}


def _lora_task(given: TrainInputs, i: int, steps: int, name: str) -> TrialTask:
    values = {"learning_rate": 1e-4 * 1.5**i, "lora.rank": (8, 16)[i % 2], "seed": i}
    spec = given.spec.with_values(values)
    return TrialTask(
        run=TrialSegment(trial=i, rung=0, params=values, until=steps),
        inputs=given.model_copy(
            update={"spec": spec, "checkpoints": f"sharing/{name}/{i}", "until": TrainUntil(stop_at_step=steps)}
        ),
    )


def _on_shared_trainer(bench: Workbench, tasks: Sequence[TrialTask]) -> dict[str, Any]:
    """Trials that share an actor: the wall clock from its start to the last result, and what each trial's start took
    once the process and the base were there."""
    import ray

    started = time.monotonic()
    actor = ray_workers.start_actor(MeasuredTrainer, bench.store, "cpu", compute=tasks[0].inputs.spec.compute)
    results: list[Result] = []
    try:
        for task in tasks:
            actor.submit.remote(task)
        for task in tasks:
            while (state := ray.get(actor.state.remote(task.run.name))).result is None:
                time.sleep(0.1)
            results.append(state.result)
        wall_s = time.monotonic() - started
        peak = ray.get(actor.peak_memory_bytes.remote())
    finally:
        ray.kill(actor)
    starts = [result.start_s for result in results]
    return {"wall_s": wall_s, "peak_memory_bytes": peak, "start_s": starts, "statuses": [r.status for r in results]}


def _frozen(bench: Workbench, show: Show, runs: int) -> dict[str, Any]:
    given = bench.review_inputs(review_spec())
    steps = 2 * -(-bench.rows_of(given) // 16)

    def task(i: int, name: str) -> TrialTask:
        values = {"learning_rate": 3e-4 * 1.3**i, "seed": i}
        update = {
            "spec": given.spec.with_values(values),
            "checkpoints": f"frozen/{name}/{i}",
            "until": TrainUntil(stop_at_step=steps),
        }
        run = TrialSegment(trial=i, rung=0, params=values, until=steps)
        return TrialTask(run=run, inputs=given.model_copy(update=update))

    show(0, runs + 1, "runs", doing=f"{FROZEN_TRIALS} frozen trials in one process")
    shared_s = _on_shared_trainer(bench, [task(i, "shared") for i in range(FROZEN_TRIALS)])["wall_s"]
    separate = []
    for i in range(runs):
        show(i + 1, runs + 1, "runs", doing="a separate frozen trial")
        alone = task(i, "alone").inputs
        spec = alone.spec.with_values({"micro_batch_tokens": FROZEN_PASS_TOKENS})
        inputs = [alone.model_copy(update={"spec": spec})]
        separate.append(run_separately(bench.store, inputs, at_once=1, threads=2)["wall_s"])
    return {"trials": FROZEN_TRIALS, "steps": steps, "shared_s": shared_s, "separate_s": separate}


def _losses(bench: Workbench, inputs: TrainInputs) -> tuple[float, ...]:
    return checkpoint.committed(bench.store, inputs.checkpoints)[-1].position.losses


def _describe_sharing(sizes: Sequence[Mapping[str, Any]]) -> str:
    rows = [_row(size["steps"], size["pairs"]) for size in sizes]
    header = [
        "a trial under Ray Tune", "pairs", "wall clock, shared : one process a trial", "faster by", "start of a trial",
        "memory of eight", "of one", "of one under Ray Tune", "losses",
    ]  # fmt: skip
    return (
        f"**Eight LoRA trials of SmolLM2-135M** in one process of two threads, against Ray Tune, a process each, two "
        f"at once, one thread each; two rows a step. Medians over the pairs, measured in turn.\n\n{table(header, rows)}"
        "\n\nStart: from a trial's turn to its first step; in the shared process from the second trial on, since the "
        f"first one loads the base (goal ≤ {GOALS['start_s']:g} s). Memory: relative to one trial in such a process, "
        f"and to one in its own process under Ray Tune, where two run at once; goal ≤ {GOALS['memory']:g}×. Wall "
        f"clock: goal ≥ {GOALS['wall']:g}. Losses: the largest relative difference in any step of any trial."
    )


def _row(steps: int, pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    shared, separate = [pair["shared"] for pair in pairs], [pair["separate"] for pair in pairs]
    walls = [side["wall_s"] for side in shared], [side["wall_s"] for side in separate]
    ratio = median(alone / together for together, alone in zip(*walls, strict=True))
    starts = [s for side in shared for s in side["start_s"][1:]], [s for side in separate for s in side["start_s"]]
    peak = median(side["peak_memory_bytes"] for side in shared)
    return [
        f"{steps} steps, {median(s for side in separate for s in side['trial_s']):.0f} s",
        f"{len(pairs)}",
        f"{median(walls[0]):.0f} : {median(walls[1]):.0f} s",
        f"**{ratio:.2f}**",
        f"{median(starts[0]):.2f} : {median(starts[1]):.1f} s",
        gibibytes(peak),
        _share(peak, pairs[0]["one"]["peak_memory_bytes"]),
        _share(peak, median(size for side in separate for size in side["peak_memory_bytes"])),
        f"{max(pair['gap'] for pair in pairs):.1e}",
    ]


def _share(eight_bytes: float, one_bytes: float) -> str:
    return f"{gibibytes(one_bytes)} ({eight_bytes / one_bytes:.2f}×)"


def _describe_frozen(frozen: Mapping[str, Any]) -> str:
    each = frozen["shared_s"] / frozen["trials"]
    ratios = [alone / each for alone in frozen["separate_s"]]
    low, high = interval(ratios)
    return (
        f"**{frozen['trials']} trials on a frozen backbone**, {frozen['steps']} steps each: {each:.2f} s a trial in a "
        f"shared process, its start and the features included; {median(frozen['separate_s']):.1f} s in a separate "
        f"process (median of {len(ratios)}). Faster by {median(ratios):.1f} ({low:.1f} to {high:.1f}): "
        f"{verdict(median(ratios), GOALS['frozen'])}."
    )
