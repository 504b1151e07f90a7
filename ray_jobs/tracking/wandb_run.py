"""A run in Weights & Biases; its id follows from the job, so that a resumed job continues it.

Online, W&B's own process sends what was logged and answers the run's last step. Offline, its files go into the
store, for `wandb sync`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.errors import MachineError
from ray_jobs.spec import WandbSection
from ray_jobs.storage import Workspace
from ray_jobs.tracking import files
from ray_jobs.tracking.tracker import End, Point, Run

if TYPE_CHECKING:
    import wandb

START_S, FINISH_S = 15.0, 20.0
"""Longest waits for W&B's server at a run's start and end."""
PART_S = 300.0
"""Least length of an offline file: a killed job loses the steps of the file that it was writing."""
_EXIT_CODES = {"finished": 0, "failed": 1, "stopped": 255, None: 255}


def finish_file(run: wandb.Run, exit_code: int | None = None) -> None:
    """Finish an offline run and wait until its file is complete: `finish` alone returns before W&B's process, which
    writes 256 KiB at a time, has written the end."""
    import wandb

    run.finish(exit_code=exit_code)
    wandb.teardown()


def init_arguments(section: WandbSection, run_id: str, directory: Path) -> dict[str, Any]:
    """Arguments of `wandb.init` for a run. Raises MachineError without a key for an online run."""
    if section.mode == "online" and not os.environ.get("WANDB_API_KEY"):
        raise MachineError("WANDB_API_KEY is not set where the job runs")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B would report its own crashes to its makers
    return {
        "project": section.project,
        "entity": section.entity,
        "id": run_id,
        "tags": list(section.tags) or None,
        "mode": section.mode,
        "dir": str(directory),
        "resume": "allow",
        # No code, machine or console output of the job is sent: only the metrics.
        "settings": {
            "console": "off",
            "silent": True,
            "disable_git": True,
            "disable_code": True,
            "save_code": False,
            "init_timeout": START_S,
            "finish_timeout": FINISH_S,
            "x_disable_stats": True,
            "x_disable_meta": True,
            "x_disable_machine_info": True,
            **({"base_url": section.base_url} if section.base_url else {}),
        },
    }


class WandbRun:
    """One run."""

    name = "W&B"

    def __init__(self, section: WandbSection, store: Workspace, run: Run) -> None:
        self._section, self._store, self._of = section, store, run
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._run: wandb.Run | None = None
        self._began_s = 0.0
        self._last_step = 0

    @property
    def _offline(self) -> bool:
        return self._section.mode == "offline"

    def open(self, began_at_step: int) -> int:
        if self._offline:  # a file is created with its first step
            self._last_step = files.last_step(self._store, self._of.job_id, self._of.path, self.name)
            return self._last_step
        self._run = self._new_run()
        return max(0, self._run.starting_step - 1)

    def write(self, points: Sequence[Point]) -> None:
        if self._run is None:
            self._run = self._new_run()
        for point in points:
            self._run.log(point.values, step=point.step, commit=True)
            self._last_step = point.step

    def flush(self) -> None:
        if self._offline and time.monotonic() - self._began_s >= PART_S:
            self._end_part(0)

    def close(self, end: End | None) -> None:
        if self._offline:
            self._end_part(_EXIT_CODES[end])
        elif self._run is not None:
            self._run.finish(exit_code=_EXIT_CODES[end])
            self._clean()

    def _new_run(self) -> wandb.Run:
        import wandb

        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="kitae-wandb-")
        self._began_s = time.monotonic()
        return wandb.init(
            **init_arguments(self._section, self._of.id, Path(self._scratch.name)),
            name=(self._section.name if self._of.name == files.TRAINING else None) or self._of.title,
            group=self._of.job_id,
            config=dict(self._of.params),
            reinit="create_new",
            allow_val_change=True,
        )

    def _end_part(self, exit_code: int) -> None:
        """Finish the offline file and upload it. A later step begins another file of the same run."""
        if self._run is not None:
            finish_file(self._run, exit_code)
            self._run = None
        if self._scratch is not None:
            files.upload_offline_runs(
                self._store, Path(self._scratch.name), self._of.job_id, self._of.path, self.name, self._last_step
            )
            self._clean()

    def _clean(self) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None
