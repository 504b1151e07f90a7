"""Cost of reaching a grid's result: random search, ASHA with TPE and Ray's own ASHA, over the grid's ranges.

A frozen multilingual-e5-small with a new head on food reviews.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import search_costs
from benchmarks.workbench import ENCODER, Show, Workbench
from ray_jobs.spec import JobSpec

SEEDS = 5
TRIALS = 27
RATES, SIZES, DECAYS = (3e-4, 3e-3, 3e-2), (8, 16, 32), (0.0, 0.01, 0.1)
GRID = {"learning_rate": RATES, "batch_size": SIZES, "weight_decay": DECAYS}
SPACE = {
    "learning_rate": {"min": RATES[0], "max": RATES[-1], "scale": "log"},
    "batch_size": SIZES,
    "weight_decay": {"min": DECAYS[0], "max": DECAYS[-1]},
}
"""The space of the other algorithms: the grid's ranges."""
SECTIONS: dict[str, dict[str, Any]] = {
    "grid": {"algorithm": "grid", "space": GRID},
    **{name: {"trials": TRIALS, **section} for name, section in search_costs.ALGORITHMS.items()},
}


def run(bench: Workbench, show: Show, *, quick: bool) -> dict[str, Any]:
    given = bench.review_inputs(review_spec())
    return search_costs.measure(bench, show, given, SECTIONS, 2 if quick else SEEDS, review_spec)


def review_spec(seed: int = 0, **search: Any) -> JobSpec:
    """A job over the reviews: two epochs, frozen backbone."""
    document: dict[str, Any] = {
        "name": "search",
        "task": "text_classification",
        "base_model": ENCODER,
        "data": {"train": "rows", "max_tokens": 128},
        "training": {
            "method": "frozen", "epochs": 2, "batch_size": 16, "micro_batch_tokens": 2048, "precision": "fp32",
            "seed": seed,
        },
        "compute": {"workers": 1, "threads_per_worker": 2},
    }  # fmt: skip
    return search_costs.job_spec(document, SPACE, seed, search)


def describe(found: Mapping[str, Any]) -> str:
    """Render the section of the report. Pure."""
    seeds = search_costs.seeds_of(found["runs"])
    return (
        f"**To the best held-out loss of a 27-point grid**: frozen {ENCODER}, {found['rows']} reviews, two epochs, "
        f"{seeds} seeds; a seed that never reaches it counts with everything it spent. Every "
        "search runs on Ray Tune; the trainer's process keeps the base model and its features from one search to the "
        f"next.\n\n{search_costs.describe(found['runs'])}"
    )
