"""Cost of reaching a grid's result: random search and ASHA with TPE over the grid's ranges.

A frozen multilingual-e5-small with a new head on food reviews. Every algorithm trains real trials in one process, from
the same features.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ray_jobs.search.decide import trial_spec
from ray_jobs.search.runner import Search

from benchmarks.figures import interval, number, table
from benchmarks.workbench import Show, Workbench
from ray_jobs import jobs
from ray_jobs.search.records import Problem, SearchRecords
from ray_jobs.sharing.segments import Result, TrialSegment
from ray_jobs.sharing.shared_trainer import SharedTrainer
from ray_jobs.sharing.trial_group import TrialTask
from ray_jobs.spec import JobSpec, parse_spec
from ray_jobs.training.inputs import TrainInputs

GOALS = {"grid": 8.0, "random": 3.0}
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
"""The space of random search and ASHA: the grid's ranges."""


def run(bench: Workbench, show: Show, *, quick: bool) -> dict[str, Any]:
    given = bench.review_inputs(review_spec())
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ALGORITHMS}
    trainer = SharedTrainer(bench.store, "cpu")
    try:
        for seed in range(2 if quick else SEEDS):
            for name, section in ALGORITHMS.items():
                show(seed, SEEDS, "seeds", doing=name)
                runs[name].append(_search(bench, trainer, review_spec(seed, **section), given))
    finally:
        trainer.close()
    return {"rows": bench.rows_of(given), "runs": runs}


def review_spec(seed: int = 0, **search: Any) -> JobSpec:
    """A job over the reviews: two epochs, frozen backbone."""
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

    trainer: SharedTrainer
    parallel: int
    steps: dict[str, int] = field(default_factory=dict)
    _since: dict[str, float] = field(default_factory=dict)

    def running(self) -> dict[str, float]:
        return dict(self._since)

    def busy_workers(self) -> int:
        return 1

    def has_room(self, task: TrialTask) -> bool:
        return len(self._since) < self.parallel

    def start(self, task: TrialTask) -> None:
        self._since[task.run.name] = time.monotonic()
        self.trainer.submit(task)

    def drop(self, name: str) -> None:
        self._since.pop(name)
        self.trainer.drop(name)

    def poll(self) -> list[Result]:
        state = self.trainer.poll()
        for result in state.results:
            self._since.pop(result.run.name)
        return list(state.results)


def _search(bench: Workbench, trainer: SharedTrainer, spec: JobSpec, given: TrainInputs) -> dict[str, Any]:
    """Run one search. `came` has (tokens so far, seconds so far, held-out loss) of each result."""
    assert spec.search is not None
    job = jobs.start_attempt(bench.store, spec)
    records = SearchRecords(bench.store, f"jobs/{job.id}/search/benchmark")
    problem = records.begin(Problem(spec=spec, space=dict(spec.search.space or {}), rows=bench.rows_of(given)))

    def inputs(run: TrialSegment) -> TrainInputs:
        return given.model_copy(update={"spec": trial_spec(problem, run)})

    started = time.time()
    Search(job, records, problem, inputs, Inline(trainer, spec.search.parallel), lambda *_, **__: None).run()
    tokens, came = 0, []
    for result in records.results().values():
        tokens += result.tokens
        if result.loss is not None:
            came.append((tokens, result.ended_at - started, result.loss))
    return {"came": came, "tokens": tokens, "seconds": time.time() - started}


def until(came: Sequence[Sequence[float]], target: float, column: int) -> float | None:
    """Tokens (column 0) or seconds (column 1) until a loss was reached, or None. Pure."""
    return next((float(each[column]) for each in came if each[2] <= target), None)


def describe(found: Mapping[str, Any]) -> str:
    """Render the section of the report. Pure."""
    runs = found["runs"]
    seeds = len(runs["grid"])
    targets = [min(each[2] for each in grid["came"]) for grid in runs["grid"]]
    rows = []
    shares: dict[str, list[float]] = {}
    for name, column, slack in (("tokens", 0, 0.0), ("seconds", 1, 0.0), ("tokens, within 1 %", 0, 0.01)):
        whole = [grid["tokens"] if column == 0 else grid["seconds"] for grid in runs["grid"]]
        for algorithm in ("random", "asha"):
            aims = [target * (1 + slack) for target in targets]
            reached = [until(run["came"], aim, column) for run, aim in zip(runs[algorithm], aims, strict=True)]
            # A run that never reached the loss counts with everything it spent, a lower bound.
            spent = [run["tokens"] if column == 0 else run["seconds"] for run in runs[algorithm]]
            took = [there if there is not None else all_ for there, all_ in zip(reached, spent, strict=True)]
            share = [mine / grid for mine, grid in zip(took, whole, strict=True)]
            shares[f"{algorithm} {name}"] = share
            low, high = interval(share)
            rows.append([
                f"{algorithm}, {name}", number(median(took)), f"{median(share):.3f}", f"{low:.3f} to {high:.3f}",
                f"{sum(there is not None for there in reached)} of {seeds}",
            ])  # fmt: skip
        if not slack:
            rows.append([f"the whole grid, {name}", number(median(whole)), "1", "", f"{seeds} of {seeds}"])
    against = [a / r for a, r in zip(shares["asha tokens"], shares["random tokens"], strict=True)]
    low, high = interval(against)
    grid_share, random_share = median(shares["asha tokens"]), median(against)
    ends = {name: median(min(each[2] for each in run["came"]) for run in runs[name]) for name in runs}
    header = ["until the grid's best loss", "median", "share of the grid's", "95 % interval of the median", "reached"]
    return (
        f"**To the best held-out loss of a 27-point grid**: frozen multilingual-e5-small, {found['rows']} reviews, two "
        f"epochs, {seeds} seeds; a seed that never reaches it counts with everything it spent.\n\n"
        f"{table(header, rows)}\n\n"
        f"Best final loss, median: grid {ends['grid']:.4f}, random {ends['random']:.4f}, ASHA {ends['asha']:.4f}. "
        f"ASHA takes {grid_share:.3f} of the grid's tokens (goal ≤ 1/8: "
        f"{'reached' if grid_share <= 1 / GOALS['grid'] else 'not reached'}) and {random_share:.2f} of random search's "
        f"({low:.2f} to {high:.2f}; goal ≤ 1/3: {'reached' if random_share <= 1 / GOALS['random'] else 'not reached'})."
    )
