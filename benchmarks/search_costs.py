"""Cost of searches until they reach a grid's best held-out loss.

Owns the protocol: each algorithm is a whole search on Ray Tune, seed by seed, with trials in one kept process. `search`
and `lora_search` say what is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks.figures import interval, number, table
from benchmarks.workbench import Show, Workbench
from ray_jobs import jobs
from ray_jobs.search.driver import Search
from ray_jobs.search.records import Problem, SearchRecords
from ray_jobs.sharing.segments import TrialSegment
from ray_jobs.sharing.shared_trainer import SharedTrainer
from ray_jobs.sharing.trial_group import TrialTask
from ray_jobs.spec import JobSpec, parse_spec
from ray_jobs.training import ray_workers
from ray_jobs.training.inputs import TrainInputs, TrainUntil

GOALS = {"grid": 8.0, "random": 3.0}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "asha": {"algorithm": "asha"},
    "asha_stopping": {"scheduler": "asha_stopping"},
    "random": {"algorithm": "random"},
}
"""What is compared with the grid, over the grid's ranges and with as many trials."""
_MEASURES = (("tokens", 0, 0.0), ("seconds", 1, 0.0), ("tokens, within 1 %", 0, 0.01))
"""Label, column of `came` and how much worse than the grid's best a loss may be."""


class KeptTrainer(SharedTrainer):
    """A shared trainer that outlives a search, so that its base model and features are loaded once."""

    def forget(self) -> None:
        """Drop the results: the next search's segments have the same names."""
        with self._changed:
            self._results.clear()


@dataclass(frozen=True)
class Kept:
    """A kept trainer's handle, which `ray.kill` refuses."""

    actor: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "actor":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.actor, name)


def job_spec(document: dict[str, Any], space: Mapping[str, Any], seed: int, search: Mapping[str, Any]) -> JobSpec:
    """The job of one search. Without a section `search`: the job of its trials."""
    if search:
        own = {"space": space, "finalists": 1, "seed": seed, "warm_start": False, **search}
        document = {**document, "search": own}
    return parse_spec(document)


def measure(
    bench: Workbench, show: Show, given: TrainInputs, sections: Mapping[str, Mapping[str, Any]], seeds: int,
    spec_of: Callable[..., JobSpec],
) -> dict[str, Any]:  # fmt: skip
    """Run every algorithm with every seed. `spec_of(seed, **section)`: the job of a search."""
    import ray

    found: dict[str, Any] = {"rows": bench.rows_of(given), "runs": {name: [] for name in sections}}
    actor = ray_workers.start_actor(KeptTrainer, bench.store, "cpu", compute=given.spec.compute)
    try:
        show(0, seeds, "seeds", doing="loading the base model")
        _warm_up(actor, given)
        for seed in range(seeds):
            for name, section in sections.items():
                show(seed, seeds, "seeds", doing=name)
                found["runs"][name].append(_search(bench, actor, spec_of(seed, **section), given))
                ray.get(actor.forget.remote())
                bench.keep(found)
    finally:
        ray.kill(actor)
    return found


def _warm_up(actor: Any, given: TrainInputs) -> None:
    """Train a trial of two steps, which loads the base model and the features."""
    import ray

    run = TrialSegment(trial=0, rung=0, params={}, until=2)
    inputs = given.model_copy(update={"checkpoints": "warm-up", "until": TrainUntil(stop_at_step=2)})
    ray.get(actor.submit.remote(TrialTask(run=run, inputs=inputs)))
    while ray.get(actor.state.remote(run.name)).result is None:
        time.sleep(0.2)
    ray.get(actor.forget.remote())


def _search(bench: Workbench, actor: Any, spec: JobSpec, given: TrainInputs) -> dict[str, Any]:
    """Run one search. `came` has (tokens so far, seconds so far, held-out loss) of each result."""
    assert spec.search is not None
    job = jobs.start_attempt(bench.store, spec)
    records = SearchRecords(bench.store, f"jobs/{job.id}/search/benchmark")
    problem = records.begin(Problem(spec=spec, space=dict(spec.search.space or {}), rows=bench.rows_of(given)))
    materials = {spec.base_model: given}
    started = time.time()
    with patch.object(ray_workers, "start_actor", lambda *_, **__: Kept(actor)):
        Search(job, records, problem, materials, lambda *_, **__: None, lambda _: None).run()
    seconds = time.time() - started
    tokens, came = 0, []
    for result in records.results().values():
        tokens += result.tokens
        if result.loss is not None:
            came.append((tokens, result.ended_at - started, result.loss))
    return {"came": came, "tokens": tokens, "seconds": seconds}


def until(came: Sequence[Sequence[float]], target: float, column: int) -> float | None:
    """Tokens (column 0) or seconds (column 1) until a loss was reached, or None. Pure."""
    return next((float(each[column]) for each in came if each[2] <= target), None)


def seeds_of(runs: Mapping[str, Sequence[object]]) -> int:
    """Seeds that every algorithm has run. Pure."""
    return min(map(len, runs.values()))


def describe(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Render table and verdict. `runs`: by algorithm and seed; a last seed that is not complete is left out. Pure."""
    seeds = seeds_of(runs)
    if not seeds:
        return "No seed is complete."
    runs = {name: each[:seeds] for name, each in runs.items()}
    grids, others = runs["grid"], [name for name in runs if name != "grid"]
    targets = [min(each[2] for each in grid["came"]) for grid in grids]
    rows = []
    shares: dict[str, list[float]] = {}
    for measure_, column, slack in _MEASURES:
        unit = ("tokens", "seconds")[column]
        whole = [grid[unit] for grid in grids]
        for name in others:
            aims = [target * (1 + slack) for target in targets]
            reached = [until(run["came"], aim, column) for run, aim in zip(runs[name], aims, strict=True)]
            # A run that never reached the loss counts with everything it spent, a lower bound.
            took = [run[unit] if there is None else there for run, there in zip(runs[name], reached, strict=True)]
            share = [mine / grid for mine, grid in zip(took, whole, strict=True)]
            shares[f"{name} {measure_}"] = share
            low, high = interval(share)
            rows.append([
                f"{name}, {measure_}", number(median(took)), f"{median(share):.3f}", f"{low:.3f} to {high:.3f}",
                f"{sum(there is not None for there in reached)} of {seeds}",
            ])  # fmt: skip
        if not slack:
            rows.append([f"the whole grid, {measure_}", number(median(whole)), "1", "", f"{seeds} of {seeds}"])
    header = ["until the grid's best loss", "median", "share of the grid's", "95 % interval of the median", "reached"]
    ends = [f"{name} {median(min(each[2] for each in run['came']) for run in runs[name]):.4f}" for name in runs]
    return f"{table(header, rows)}\n\nBest final loss, median: {', '.join(ends)}. {_verdict(shares)}"


def _verdict(shares: Mapping[str, Sequence[float]]) -> str:
    against = [a / r for a, r in zip(shares["asha tokens"], shares["random tokens"], strict=True)]
    low, high = interval(against)
    of_grid, of_random = median(shares["asha tokens"]), median(against)
    return (
        f"ASHA takes {of_grid:.3f} of the grid's tokens (goal ≤ 1/{GOALS['grid']:g}: "
        f"{'reached' if of_grid <= 1 / GOALS['grid'] else 'not reached'}) and {of_random:.2f} of random search's "
        f"({low:.2f} to {high:.2f}; goal ≤ 1/{GOALS['random']:g}: "
        f"{'reached' if of_random <= 1 / GOALS['random'] else 'not reached'})."
    )
