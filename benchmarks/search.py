"""What a search takes to a result: against a grid and random search, and what trials that share a process save.

Found: a frozen multilingual-e5-small with a new head on 800 food reviews; every algorithm trains real trials, of one
process, from the same features. Sharing: eight LoRA trials of SmolLM2 in one process, against Ray Tune with one process
a trial. Frozen: twenty trials on the same backbone, against runs that each load the model and run it over the rows.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.figures import gibibytes, largest_gap, number, table
from benchmarks.separate import MeasuredHost, run_separately
from benchmarks.workbench import Show, Workbench, make_spec
from ray_jobs import checkpoint, jobs, workers
from ray_jobs.search.decide import trial_spec
from ray_jobs.search.host import Host, Task
from ray_jobs.search.records import Problem, Result, Run, SearchRecords
from ray_jobs.search.runner import Search
from ray_jobs.spec import JobSpec, parse_spec
from ray_jobs.train import Stretch, TrainInputs

GOALS = {"grid": 8.0, "random": 3.0, "frozen": 10.0, "start_s": 1.0, "memory": 1.5, "wall": 1.5}
SEEDS = 5
RATES, SIZES, DECAYS = (3e-4, 3e-3, 3e-2), (8, 16, 32), (0.0, 0.01, 0.1)
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grid": {"algorithm": "grid", "space": {"learning_rate": RATES, "batch_size": SIZES, "weight_decay": DECAYS}},
    "random": {"algorithm": "random", "trials": 27},
    "asha": {"algorithm": "asha", "trials": 27},
}
SPACE = {
    "learning_rate": {"min": RATES[0], "max": RATES[-1], "scale": "log"},
    "batch_size": SIZES,
    "weight_decay": {"min": DECAYS[0], "max": DECAYS[-1]},
}
"""What random search and ASHA search: the grid's ranges."""
TRIALS = 8
STEPS = (3, 9)
FROZEN_TRIALS, FROZEN_PAIRS = 20, 5


def run(bench: Workbench, show: Show, *, quick: bool) -> dict[str, Any]:
    return {
        "found": _found(bench, show, 2 if quick else SEEDS),
        "sharing": [_sharing(bench, show, steps) for steps in (STEPS[:1] if quick else STEPS)],
        "frozen": _frozen(bench, show, 2 if quick else FROZEN_PAIRS),
    }


def review_spec(seed: int = 0, **search: Any) -> JobSpec:
    """The reviews over two epochs with a frozen backbone."""
    document: dict[str, Any] = {
        "name": "search",
        "task": "text_classification",
        "base_model": "multilingual-e5-small",
        "data": {"train": "rows", "max_tokens": 128},
        "training": {
            "method": "frozen", "epochs": 2, "batch_size": 16, "micro_batch_tokens": 2048, "precision": "fp32",
            "seed": seed,
        },
        "compute": {"workers": 1, "threads_per_worker": 2},
    }  # fmt: skip
    if search:
        document["search"] = {"space": SPACE, "finalists": 1, "seed": seed, "warm_start": False, **search}
    return parse_spec(document)


@dataclass
class Inline:
    """A search's trials in one host of this process."""

    host: Host
    parallel: int
    steps: dict[str, int] = field(default_factory=dict)
    _since: dict[str, float] = field(default_factory=dict)

    def running(self) -> dict[str, float]:
        return dict(self._since)

    def busy_workers(self) -> int:
        return 1

    def has_room(self, task: Task) -> bool:
        return len(self._since) < self.parallel

    def start(self, task: Task) -> None:
        self._since[task.run.name] = time.monotonic()
        self.host.submit(task)

    def drop(self, name: str) -> None:
        self._since.pop(name)
        self.host.drop(name)

    def poll(self) -> list[Result]:
        state = self.host.poll()
        for result in state.results:
            self._since.pop(result.run.name)
        return list(state.results)


def _found(bench: Workbench, show: Show, seeds: int) -> dict[str, Any]:
    given = bench.review_inputs(review_spec())
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ALGORITHMS}
    host = Host(bench.store, "cpu")
    try:
        for seed in range(seeds):
            for name, section in ALGORITHMS.items():
                show(seed, seeds, "seeds", doing=name)
                spec = review_spec(seed, **section)
                runs[name].append(_search(bench, host, spec, given))
    finally:
        host.close()
    return {"rows": bench.rows_of(given), "runs": runs}


def _search(bench: Workbench, host: Host, spec: JobSpec, given: TrainInputs) -> dict[str, Any]:
    """One search, and when its results came: (tokens until then, seconds, held-out loss)."""
    assert spec.search is not None
    job = jobs.start_attempt(bench.store, spec)
    records = SearchRecords(bench.store, f"jobs/{job.id}/search/benchmark")
    problem = records.begin(Problem(spec=spec, space=dict(spec.search.space or {}), rows=bench.rows_of(given)))

    def inputs(run: Run) -> TrainInputs:
        return given.model_copy(update={"spec": trial_spec(problem, run)})

    started = time.time()
    Search(job, records, problem, inputs, Inline(host, spec.search.parallel), lambda *_, **__: None).run()
    tokens, came = 0, []
    for result in records.results().values():
        tokens += result.tokens
        if result.loss is not None:
            came.append((tokens, result.ended_at - started, result.loss))
    return {"came": came, "tokens": tokens, "seconds": time.time() - started}


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


def _frozen(bench: Workbench, show: Show, pairs: int) -> dict[str, Any]:
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

    shared, separate = [], []
    for pair in range(pairs):
        show(pair, pairs, "pairs", doing="frozen trials")
        shared.append(_on_host(bench, [task(i, f"shared-{pair}") for i in range(FROZEN_TRIALS)])["wall_s"])
        alone = task(pair, "alone")
        separate.append(run_separately(bench.store, [alone.inputs], at_once=1, threads=2)["wall_s"])
    return {"trials": FROZEN_TRIALS, "steps": steps, "shared_s": shared, "separate_s": separate}


def _losses(bench: Workbench, inputs: TrainInputs) -> tuple[float, ...]:
    return checkpoint.committed(bench.store, inputs.checkpoints)[-1].position.losses


def until(came: Sequence[Sequence[float]], target: float, column: int) -> float | None:
    """Tokens (0) or seconds (1) until a loss was reached; None: it never was. Pure."""
    return next((float(each[column]) for each in came if each[2] <= target), None)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of a median, by 2,000 bootstrap samples. Pure."""
    dice = random.Random(0)
    medians = sorted(median(dice.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[1949]


def describe(figures: Mapping[str, Any]) -> str:
    """The section of the report. Pure."""
    parts = (
        _describe_found(figures["found"]),
        _describe_sharing(figures["sharing"]),
        _describe_frozen(figures["frozen"]),
    )
    return "\n\n".join(parts)


def _describe_found(found: Mapping[str, Any]) -> str:
    runs = found["runs"]
    seeds = len(runs["grid"])
    targets = [min(each[2] for each in grid["came"]) for grid in runs["grid"]]
    rows = []
    shares: dict[str, list[float]] = {}
    for name, column in (("tokens", 0), ("seconds", 1)):
        whole = [grid["tokens"] if column == 0 else grid["seconds"] for grid in runs["grid"]]
        for algorithm in ("random", "asha"):
            reached = [until(run["came"], target, column) for run, target in zip(runs[algorithm], targets, strict=True)]
            # One that never came there counts with all that it spent: it is at least so much.
            spent = [run["tokens"] if column == 0 else run["seconds"] for run in runs[algorithm]]
            took = [there if there is not None else all_ for there, all_ in zip(reached, spent, strict=True)]
            share = [mine / grid for mine, grid in zip(took, whole, strict=True)]
            shares[f"{algorithm} {name}"] = share
            low, high = interval(share)
            rows.append([
                f"{algorithm}, {name}", number(median(took)), f"{median(share):.3f}", f"{low:.3f} to {high:.3f}",
                f"{sum(there is not None for there in reached)} of {seeds}",
            ])  # fmt: skip
        rows.append([f"the whole grid, {name}", number(median(whole)), "1", "", f"{seeds} of {seeds}"])
    against = [a / r for a, r in zip(shares["asha tokens"], shares["random tokens"], strict=True)]
    low, high = interval(against)
    grid_share, random_share = median(shares["asha tokens"]), median(against)
    header = ["until the grid's best loss", "median", "share of the grid's", "95 % interval of the median", "reached"]
    return (
        f"**To the best held-out loss of a 27-point grid**: frozen multilingual-e5-small, {found['rows']} reviews, two "
        f"epochs, {seeds} seeds; a seed that never reaches it counts with all it spent.\n\n{table(header, rows)}\n\n"
        f"ASHA takes {grid_share:.3f} of the grid's tokens (goal ≤ 1/8: "
        f"{'reached' if grid_share <= 1 / GOALS['grid'] else 'not reached'}) and {random_share:.2f} of random search's "
        f"({low:.2f} to {high:.2f}; goal ≤ 1/3: {'reached' if random_share <= 1 / GOALS['random'] else 'not reached'})."
    )


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
    each = [shared / frozen["trials"] for shared in frozen["shared_s"]]
    ratios = [alone / mine for alone, mine in zip(frozen["separate_s"], each, strict=True)]
    low, high = interval(ratios)
    return (
        f"**{frozen['trials']} trials on a frozen backbone**, {frozen['steps']} steps: {median(each):.2f} s a trial "
        f"in a shared process, its start and the features included, {median(frozen['separate_s']):.1f} s by itself. "
        f"Faster by {median(ratios):.1f} ({low:.1f} to {high:.1f}; {len(ratios)} pairs; goal ≥ "
        f"{GOALS['frozen']:g}: {'reached' if median(ratios) >= GOALS['frozen'] else 'not reached'})."
    )
