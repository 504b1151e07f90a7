"""A job's tracking files in the store: event files, offline W&B runs, and the last step of each.

jobs/{id}/tensorboard/training-{digest}/…    event files of the job's own training
jobs/{id}/tensorboard/trial-{n}-{digest}/…   those of a search's trial
jobs/{id}/wandb/{run}/{part}/…               offline W&B runs, for `wandb sync`
jobs/{id}/tracked/{run}.json                 last step of each tracker's files
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ray_jobs.errors import JobError, ObjectNotFound
from ray_jobs.storage import Workspace

TRAINING = "training"
"""Name of the run of a job's own training."""
FOLDERS = ("tensorboard", "wandb")


def trial_run(config: Mapping[str, Any]) -> str:
    """Name of a trial's run within its job, from Tune's config; a finalist's second training has a run of its own."""
    again = config.get("segment", {}).get("again", False)
    return f"trial-{config['trial']}{'-again' if again else ''}"


def key_of(job_id: str, folder: str, run: str, name: str) -> str:
    """Key of one file of a run."""
    return f"jobs/{job_id}/{folder}/{run}/{name}"


def upload(store: Workspace, directory: Path, pattern: str, job_id: str, folder: str, run: str) -> None:
    """Copy the files that match into the store, replacing their earlier copies. Symbolic links are left out."""
    for path in sorted(directory.glob(pattern)):
        if path.is_file() and not path.is_symlink():
            store.put(key_of(job_id, folder, run, path.relative_to(directory).as_posix()), path.read_bytes())


def upload_offline_runs(store: Workspace, directory: Path, job_id: str, run: str, tracker: str, step: int) -> None:
    """Copy finished offline W&B runs into the store, and record the last step that they hold."""
    part = f"{run}/{time.time_ns() // 1_000_000}"  # later parts sort behind earlier ones: `wandb sync` needs the order
    upload(store, directory / "wandb", "offline-run-*/*.wandb", job_id, "wandb", part)
    write_last_step(store, job_id, run, tracker, step)


def download(store: Workspace, job_id: str, directory: Path) -> list[Path]:
    """Copy a job's event files and offline runs into `directory`. Raises JobError if the job has none."""
    paths = []
    for key, path in _files(store, job_id):
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        store.download_file(key, target)
        paths.append(target)
    if not paths:
        raise JobError(f"job {job_id} has no tracking files; its training has not begun, or `tracking` turns them off")
    return paths


def last_step(store: Workspace, job_id: str, run: str, tracker: str) -> int:
    """Last step that a tracker's files of a run hold; 0 without files."""
    try:
        document = store.get_json(_reach_key(job_id, run))
    except ObjectNotFound:
        return 0
    return int(document.get(tracker, 0))


def write_last_step(store: Workspace, job_id: str, run: str, tracker: str, step: int) -> None:
    """Record the last step that a tracker's uploaded files hold."""
    store.update_json(_reach_key(job_id, run), lambda old: {**(old or {}), tracker: step})


def _files(store: Workspace, job_id: str) -> Iterator[tuple[str, PurePosixPath]]:
    """(key, path below the job) of each file whose path stays in its directory."""
    for folder in FOLDERS:
        for found in store.list(f"jobs/{job_id}/{folder}/"):
            path = PurePosixPath(found.key.removeprefix(f"jobs/{job_id}/"))
            if not path.is_absolute() and ".." not in path.parts:
                yield found.key, path


def _reach_key(job_id: str, run: str) -> str:
    return f"jobs/{job_id}/tracked/{run}.json"
