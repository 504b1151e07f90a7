"""Cost of reaching a grid's result with LoRA on SmolLM2-135M: the protocol of `search` on a nine-point grid.

Short rows and few steps, so that a seed takes some minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import search_costs
from benchmarks.workbench import MODEL, Show, Workbench
from ray_jobs.spec import JobSpec

SEEDS = 3
TRAIN_ROWS, HELD_OUT_ROWS, MAX_TOKENS = 30, 9, 96
"""FAQ rows of at most this many tokens; there are 39."""
RATES, RANKS = (2e-4, 1e-3, 5e-3), (4, 8, 16)
SPACE = {"learning_rate": {"min": RATES[0], "max": RATES[-1], "scale": "log"}, "lora.rank": RANKS}
SECTIONS: dict[str, dict[str, Any]] = {
    "grid": {"algorithm": "grid", "space": {"learning_rate": RATES, "lora.rank": RANKS}},
    **{name: {"trials": len(RATES) * len(RANKS), **section} for name, section in search_costs.ALGORITHMS.items()},
}


def run(bench: Workbench, show: Show, *, quick: bool) -> dict[str, Any]:
    given = bench.faq_inputs(faq_spec(), TRAIN_ROWS, HELD_OUT_ROWS)
    return search_costs.measure(bench, show, given, SECTIONS, 1 if quick else SEEDS, faq_spec)


def faq_spec(seed: int = 0, **search: Any) -> JobSpec:
    """A LoRA job over the short FAQ rows: one epoch of 15 steps, two rows each."""
    document: dict[str, Any] = {
        "name": "lora-search",
        "task": "chat",
        "base_model": MODEL,
        "data": {"train": "rows", "max_tokens": MAX_TOKENS},
        "training": {"method": "lora", "epochs": 1, "batch_size": 2, "precision": "fp32", "seed": seed},
        "compute": {"workers": 1, "threads_per_worker": 2},
    }
    return search_costs.job_spec(document, SPACE, seed, search)


def describe(found: Mapping[str, Any]) -> str:
    """Render the section of the report. Pure."""
    seeds = search_costs.seeds_of(found["runs"])
    return (
        f"**To the best held-out loss of a nine-point grid**: LoRA on {MODEL}, three learning rates × three ranks, "
        f"{found['rows']} FAQ rows of at most {MAX_TOKENS} tokens, two rows a step, "
        f"{seeds} seed(s), otherwise as in `search`.\n\n{search_costs.describe(found['runs'])}"
    )
