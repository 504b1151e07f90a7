"""`store`: the layout of the object store."""

from __future__ import annotations

import click

from ray_jobs.cli import session
from ray_jobs.errors import StoreError


@click.group()
def store() -> None:
    """Maintain the object store (docs/upgrade.md).

    \b
    Example:
      kitae store migrate
    """


@store.command()
@click.option("--dry-run", is_flag=True, help="Show what would be moved; write nothing.")
@click.option("--delete-earlier", is_flag=True, help="After the move: delete the keys of the earlier layout.")
@session.YES
def migrate(dry_run: bool, delete_earlier: bool, yes: bool) -> None:
    """Move a store of Kitae 0.2 or earlier to the present layout: a team's keys get the team as a prefix.

    Stop the endpoint and all jobs first. The earlier keys stay until `--delete-earlier`. An interrupted move resumes
    where it stopped.

    \b
    Example:
      kitae store migrate --dry-run
      kitae store migrate
      kitae store migrate --delete-earlier
    """
    from ray_jobs import migration
    from ray_jobs.jobs.progress import StageProgress

    place = session.open_store(layout=False)
    moved = migration.read_layout(place) == migration.LAYOUT
    if delete_earlier:
        if not moved:
            raise StoreError("the store is not moved yet: `kitae store migrate` first")
        keys = migration.earlier_keys(place)
        if not yes and keys and not dry_run:
            click.confirm(f"Delete {len(keys)} object(s) of the earlier layout?", abort=True)
        if not dry_run:
            place.delete(keys)
        click.echo(f"{len(keys)} object(s) of the earlier layout {'would be' if dry_run else 'are'} deleted")
        return
    if moved:
        click.echo(f"{place.uri()} has the present layout already")
        return
    plan = migration.plan(place)
    for line in plan.describe():
        click.echo(line)
    if dry_run:
        click.echo(f"{len(plan.copies)} object(s) would be copied")
        return
    if not yes:
        click.confirm("Are the endpoint and all jobs stopped?", abort=True)
    with StageProgress("copy") as progress:
        migration.run(place, plan, lambda done, total: progress.update(done, total, "objects"))
    click.echo(f"{len(plan.copies)} object(s) are copied; `kitae store migrate --delete-earlier` frees the room")
