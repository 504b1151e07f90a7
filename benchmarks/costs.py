"""Time that a job spends outside its steps: starting Ray and the workers, and waiting for checkpoints."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.figures import gibibytes, table
from benchmarks.workbench import Show, Workbench, make_spec

SAVES, STEPS_A_SAVE = 4, 2


def run(bench: Workbench, show: Show, *, quick: bool) -> dict[str, Any]:
    saves = 2 if quick else SAVES
    runs = []
    # Fetch the model's files first, as on a machine that has run an earlier attempt or stage.
    inputs = bench.inputs("faq", make_spec(steps=1, batch_size=4))
    bench.store.fetch(inputs.base_key)
    for i, workers in enumerate((1, 2)):
        show(i, 2, "runs", doing=f"{workers} worker(s), {saves} checkpoints")
        spec = make_spec(
            name=f"costs-{workers}",
            steps=saves * STEPS_A_SAVE,
            batch_size=4,
            workers=workers,
            threads=2 // workers,
            checkpoint_every_steps=STEPS_A_SAVE,
        )
        started = time.perf_counter()
        outcome = bench.train("faq", spec)
        wall_s = time.perf_counter() - started
        runs.append(
            {
                "workers": workers,
                "saves": saves,
                "stall_s": outcome.checkpoint_stall_s,
                "steps_s": outcome.seconds,
                "wall_s": wall_s,
                "peak_memory_bytes": outcome.peak_memory_bytes,
            }
        )
    return {"runs": runs, "ray_start_s": bench.ray_start_s}


def describe(figures: dict[str, Any]) -> str:
    """Render the section of the report. Pure."""
    rows = [
        [
            f"{run['workers']} worker(s)",
            str(run["saves"]),
            f"{run['stall_s'] / run['saves']:.2f} s",
            f"{run['steps_s']:.1f} s",
            f"{run['wall_s'] - run['steps_s'] - run['stall_s']:.1f} s",
            gibibytes(run["peak_memory_bytes"]),
        ]
        for run in figures["runs"]
    ]
    header = ["job", "checkpoints", "stall a save", "steps", "everything else", "peak memory of the first worker"]
    return (
        f"{table(header, rows)}\n\n"
        "Stall: the time that the loop waits in a save (adapters and AdamW's moments, 59 MB); the upload runs in the "
        "background. Everything else: starting and ending the workers, loading the model, one held-out evaluation of "
        "two rows, the last upload; the machine has the model's files. Starting a Ray cluster on this machine took "
        f"{figures['ray_start_s']:.1f} s; `make demo` uses a running one."
    )
