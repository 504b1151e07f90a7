"""`datasets`: the versioned rows of jobs, and their deletion."""

from __future__ import annotations

from collections.abc import Iterable

import click

from ray_jobs.cli import audit, session


@session.completes
def digests(_: str) -> Iterable[str]:
    return session.open_workspace(check=False).list_dirs("datasets/")


@click.group(invoke_without_command=True, options_metavar="[--json]")
@session.JSON
@click.pass_context
def datasets(context: click.Context, as_json: bool) -> None:
    """Show the datasets of the team in KITAE_TEAM: rows that jobs have read, split and stored.

    \b
    Example:
      kitae datasets
      kitae datasets delete 3f0c2a9b3d1e7a55
    """
    if context.invoked_subcommand is not None:
        return
    store = session.open_workspace(check=False)
    found = {}
    for digest in store.list_dirs("datasets/"):
        manifest = store.read_manifest(f"datasets/{digest}")
        if manifest is not None:
            found[digest] = manifest.meta
    if as_json:
        session.print_json([{"digest": digest, **meta} for digest, meta in found.items()])
        return
    shown = ("task", "train_rows", "held_out_rows")
    rows = [(digest, *(str(meta.get(name, "?")) for name in shown)) for digest, meta in found.items()]
    empty = f"no datasets in {store.uri()} yet; a job stores its own"
    session.print_table(["dataset", "task", "rows", "held out"], rows, empty=empty)


@datasets.command()
@click.argument("digest", shell_complete=digests)
@session.YES
def delete(digest: str, yes: bool) -> None:
    """Delete the dataset DIGEST. Refused while an open job needs it. Lists the jobs and models made from it first.

    \b
    Example:
      kitae datasets delete 3f0c2a9b3d1e7a55
    """
    from ray_jobs.jobs import uses

    store = session.open_workspace(check=False)
    found = uses.of_dataset(store, digest)
    found.require_unused(f"the dataset {digest}")
    for line in found.lines():
        click.echo(line)
    if not yes:
        click.confirm(f"Delete the dataset {digest}? The models stay.", abort=True)
    with audit.recorded(
        store, "dataset.delete", digest, team=store.team, jobs=list(found.jobs), models=list(found.models)
    ):
        uses.delete_dataset(store, digest)
    click.echo(f"the dataset {digest} is deleted")
