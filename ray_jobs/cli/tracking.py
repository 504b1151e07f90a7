"""`tracking`: a job's event files and offline W&B runs, from the store to a directory."""

from __future__ import annotations

from pathlib import Path

import click

from ray_jobs.cli import session


@click.command()
@session.JOB
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for the files.  [default: tracking/JOB]",
)
def tracking(job: str, directory: Path | None) -> None:
    """Download JOB's TensorBoard event files, and its W&B runs if they are offline; also while it runs.

    \b
    Example:
      kitae tracking faq-chat-1f0c2a9b3d --dir runs
      tensorboard --logdir runs/tensorboard
      wandb sync runs/wandb/*/*/offline-run-*
    """
    from ray_jobs.tracking import files

    store, job = session.find_job(job)
    directory = directory or Path("tracking") / job
    paths = files.download(store, job, directory)
    click.echo(f"{len(paths)} file(s) in {directory}")
    if (directory / "tensorboard").is_dir():
        click.echo(f"`tensorboard --logdir {directory / 'tensorboard'}` shows the metrics")
