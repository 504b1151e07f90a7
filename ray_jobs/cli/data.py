"""`data`: what a file of rows holds, and the versioned rows of jobs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from ray_jobs.cli import audit, init, session


@session.completes
def digests(_: str) -> Iterable[str]:
    return session.open_workspace(check=False).list_dirs("datasets/")


@click.group(invoke_without_command=True, options_metavar="[--json]")
@session.JSON
@click.pass_context
def data(context: click.Context, as_json: bool) -> None:
    """Show the datasets of the team in KITAE_TEAM: rows that jobs have read, split and stored.

    \b
    Example:
      kitae data
      kitae data inspect reviews.xlsx
      kitae data delete 3f0c2a9b3d1e7a55
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


@data.command()
@click.argument("rows", type=click.Path(path_type=Path))
@init.TASK
@init.COLUMNS
@init.SHEET
@init.ENCODING
@click.option("--rows", "count", type=click.IntRange(0, 100), default=5, show_default=True, help="Rows shown.")
@session.JSON
def inspect(
    rows: Path,
    task: str | None,
    columns: tuple[tuple[str, str], ...],
    sheet: str | None,
    encoding: str | None,
    count: int,
    as_json: bool,
) -> None:
    """Show what the file ROWS holds: its columns, first rows, the task that they suggest, and what is wrong.

    \b
    Example:
      kitae data inspect reviews.xlsx
    """
    from dataclasses import asdict

    seen = init.look(rows, task, columns, sheet, encoding)
    if as_json:
        session.print_json(
            {
                "task": seen.guess.task,
                "columns": seen.guess.columns,
                "reason": seen.guess.reason,
                "rows": len(seen.records),
                "whole": seen.whole,
                "labels": seen.labels,
                "file_columns": [asdict(column) for column in seen.columns],
                "notices": seen.findings.notices,
                "problems": seen.findings.listed,
            }
        )
        return
    names, cells = init.first_rows(seen, count)
    session.print_table(names, cells, empty="")
    click.echo()
    held = [
        (
            column.name,
            column.kind,
            str(column.filled),
            str(column.distinct),
            f"{column.mean_length:.0f}",
            str(column.longest),
        )
        for column in seen.columns
    ]
    session.print_table(["column", "holds", "filled", "distinct", "mean length", "longest"], held, empty="")
    click.echo()
    init.show(seen)


@data.command()
@click.argument("digest", shell_complete=digests)
@session.YES
def delete(digest: str, yes: bool) -> None:
    """Delete the dataset DIGEST. Refused while an open job needs it. Lists the jobs and models made from it first.

    \b
    Example:
      kitae data delete 3f0c2a9b3d1e7a55
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
