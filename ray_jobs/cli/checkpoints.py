"""`checkpoints`: deletes what a job's training left in the store."""

from __future__ import annotations

import click

from ray_jobs.cli import audit, session


@click.group()
def checkpoints() -> None:
    """Delete the checkpoints of jobs that have ended.

    \b
    Example:
      kitae checkpoints delete faq-chat-1f0c2a9b3d
    """


@checkpoints.command()
@session.JOB
@session.YES
def delete(job: str, yes: bool) -> None:
    """Delete the checkpoints, candidates and search of JOB. Refused until it has ended; its models stay.

    \b
    Example:
      kitae checkpoints delete faq-chat-1f0c2a9b3d
    """
    from ray_jobs.jobs import uses

    store, job = session.find_job(job)
    found = uses.of_checkpoints(store, job)
    found.require_unused(f"the training of {job}")
    made = ", ".join(found.models) or "none; it trains from the start if it is run again"
    click.echo(f"models made from them: {made}")
    if not yes:
        click.confirm(f"Delete the checkpoints of {job}?", abort=True)
    with audit.recorded(store, "checkpoint.delete", job, team=store.team, models=list(found.models)):
        uses.delete_checkpoints(store, job)
    click.echo(f"the checkpoints of {job} are deleted")
