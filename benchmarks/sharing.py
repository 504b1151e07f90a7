"""What trials that share a process save.

Eight LoRA trials of SmolLM2 in one process, against Ray Tune with one process a trial; and twenty trials on a frozen
multilingual-e5-small, against runs that each load the model and run it over the rows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.figures import gibibytes, interval, largest_gap, table, verdict
from benchmarks.search import review_spec
from benchmarks.separate import MeasuredHost, run_separately
from benchmarks.workbench import Show, Workbench, make_spec
from ray_jobs import checkpoint, workers
from ray_jobs.search.host import Task
from ray_jobs.search.records import Result, Run
from ray_jobs.train import Stretch, TrainInputs

GOALS = {"frozen": 10.0, "start_s": 1.0, "memory": 1.5, "wall": 1.5}
TRIALS = 8
STEPS = (3, 9)
"""Of a trial; two sizes, to see how the ratio falls as trials grow."""
FROZEN_TRIALS, FROZEN_RUNS = 20, 5


def run(bench: Workbench, show: Show, *, quick: bool) -> dict[str, Any]:
    frozen = _frozen(bench, show, 2 if quick else FROZEN_RUNS)
    return {"frozen": frozen, "sharing": [_sharing(bench, show, steps) for steps in (STEPS[:1] if quick else STEPS)]}


def describe(figures: Mapping[str, Any]) -> str:
    """The section of the report. Pure."""
    return _describe_sharing(figures["sharing"]) + "\n\n" + _describe_frozen(figures["frozen"])


def _sharing(bench: Workbench, show: Show, steps: int) -> dict[str, Any]:
    """Eight trials at the same number of steps, in one process and in one each."""
    spec = make_spec(steps=steps, batch_size=2, schedule="warmup_stable_decay")
    given = bench.inputs("faq", spec).model_copy(update={"spec": spec})
    tasks = [_lora_task(given, i, steps, f"shared-{steps}") for i in range(TRIALS)]
    show(0, 3, "sides", doing=f"one trial of {steps} steps")
    one = _on_host(bench, [_lora_task(given, 0, steps, f"one-{steps}")])
    show(1, 3, "sides", doing=f"{TRIALS} trials of {steps} steps in one process")
    shared = _on_host(bench, tasks)
    show(2, 3, "sides", doing=f"{TRIALS} trials of {steps} steps under Ray Tune")
    alone = [_lora_task(given, i, steps, f"alone-{steps}") for i in range(TRIALS)]
    separate = run_separately(bench.store, [task.inputs for task in alone], at_once=2, threads=1)
    gaps = [largest_gap(_losses(bench, a.inputs), _losses(bench, b.inputs)) for a, b in zip(tasks, alone, strict=True)]
    return {"steps": steps, "one": one, "shared": shared, "separate": separate, "gap": max(gaps)}


def _lora_task(given: TrainInputs, i: int, steps: int, name: str) -> Task:
    values = {"learning_rate": 1e-4 * 1.5**i, "lora.rank": (8, 16)[i % 2], "seed": i}
    spec = given.spec.with_values(values)
    return Task(
        run=Run(trial=i, rung=0, params=values, until=steps),
        inputs=given.model_copy(
            update={"spec": spec, "checkpoints": f"sharing/{name}/{i}", "stretch": Stretch(rung=steps)}
        ),
    )


def _on_host(bench: Workbench, tasks: Sequence[Task]) -> dict[str, Any]:
    """Trials that share an actor: the wall clock from its start to the last result, and what each trial's start took
    once the process and the base were there."""
    import ray

    started = time.monotonic()
    actor = workers.start_actor(MeasuredHost, bench.store, "cpu", compute=tasks[0].inputs.spec.compute)
    results: list[Result] = []
    try:
        for task in tasks:
            actor.submit.remote(task)
        while len(results) < len(tasks):
            results += ray.get(actor.poll.remote()).results
            time.sleep(0.1)
        wall_s = time.monotonic() - started
        peak = ray.get(actor.peak_memory_bytes.remote())
    finally:
        ray.kill(actor)
    starts = [result.start_s for result in sorted(results, key=lambda result: result.run.trial)]
    return {"wall_s": wall_s, "peak_memory_bytes": peak, "start_s": starts, "statuses": [r.status for r in results]}


def _frozen(bench: Workbench, show: Show, runs: int) -> dict[str, Any]:
    given = bench.review_inputs(review_spec())
    steps = 2 * -(-bench.rows_of(given) // 16)

    def task(i: int, name: str) -> Task:
        values = {"learning_rate": 3e-4 * 1.3**i, "seed": i}
        update = {
            "spec": given.spec.with_values(values),
            "checkpoints": f"frozen/{name}/{i}",
            "stretch": Stretch(rung=steps),
        }
        run = Run(trial=i, rung=0, params=values, until=steps)
        return Task(run=run, inputs=given.model_copy(update=update))

    show(0, runs + 1, "runs", doing=f"{FROZEN_TRIALS} frozen trials in one process")
    shared_s = _on_host(bench, [task(i, "shared") for i in range(FROZEN_TRIALS)])["wall_s"]
    separate = []
    for i in range(runs):
        show(i + 1, runs + 1, "runs", doing="a frozen trial by itself")
        separate.append(run_separately(bench.store, [task(i, "alone").inputs], at_once=1, threads=2)["wall_s"])
    return {"trials": FROZEN_TRIALS, "steps": steps, "shared_s": shared_s, "separate_s": separate}


def _losses(bench: Workbench, inputs: TrainInputs) -> tuple[float, ...]:
    return checkpoint.committed(bench.store, inputs.checkpoints)[-1].position.losses


def _describe_sharing(sizes: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for size in sizes:
        shared, separate, one = size["shared"], size["separate"], size["one"]
        rows.append([
            f"{size['steps']} steps",
            f"{shared['wall_s']:.0f} : {separate['wall_s']:.0f} s",
            f"**{separate['wall_s'] / shared['wall_s']:.2f}**",
            f"{median(shared['start_s'][1:]):.2f} : {median(separate['start_s']):.1f} s",
            f"{gibibytes(shared['peak_memory_bytes'])} ({shared['peak_memory_bytes'] / one['peak_memory_bytes']:.2f}×)",
            gibibytes(2 * median(separate["peak_memory_bytes"])),
            f"{size['gap']:.1e}",
        ])  # fmt: skip
    header = [
        "a trial", "wall clock, shared : one process a trial", "faster by", "start of a trial",
        "memory of eight (of one's)", "memory of two at once", "losses",
    ]  # fmt: skip
    return (
        f"**Eight LoRA trials of SmolLM2-135M** in one process of two threads, against Ray Tune, a process each, two "
        f"at once, one thread each; two rows a step. One run a size.\n\n{table(header, rows)}\n\n"
        "Start: from a trial's turn to its first step; in the shared process from the second trial on, since the first "
        f"one's loads the base (goal ≤ {GOALS['start_s']:g} s). Memory's goal is ≤ {GOALS['memory']:g}×, the wall "
        f"clock's ≥ {GOALS['wall']:g}. Losses: the largest relative difference in any step of any trial."
    )


def _describe_frozen(frozen: Mapping[str, Any]) -> str:
    each = frozen["shared_s"] / frozen["trials"]
    ratios = [alone / each for alone in frozen["separate_s"]]
    low, high = interval(ratios)
    return (
        f"**{frozen['trials']} trials on a frozen backbone**, {frozen['steps']} steps each: {each:.2f} s a trial in a "
        f"shared process, its start and the features included; {median(frozen['separate_s']):.1f} s by itself, of "
        f"{len(ratios)} the median. Faster by {median(ratios):.1f} ({low:.1f} to {high:.1f}): "
        f"{verdict(median(ratios), GOALS['frozen'])}."
    )
