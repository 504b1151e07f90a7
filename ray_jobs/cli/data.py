"""`data`: what a file of rows holds, and the versioned rows of jobs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import click

from ray_jobs.cli import audit, init, session


@session.completes
def digests(_: str) -> Iterable[str]:
    return session.open_workspace(check=False).list_dirs("datasets/")


@session.completes
def labels(_: str) -> Iterable[str]:
    from ray_jobs.data import versions

    store = session.open_workspace(check=False)
    return [*(version.label for version in versions.all_versions(store)), *store.list_dirs("datasets/")]


@click.group(invoke_without_command=True, options_metavar="[--json]")
@session.JSON
@click.pass_context
def data(context: click.Context, as_json: bool) -> None:
    """Show the datasets of the team in KITAE_TEAM: rows that jobs have read, cleaned, split and stored.

    \b
    Example:
      kitae data
      kitae data inspect reviews.xlsx
      kitae data report reviews@3 --language ja
      kitae data diff reviews@2 reviews@3
    """
    if context.invoked_subcommand is not None:
        return
    from ray_jobs.data import dataset, versions

    store = session.open_workspace(check=False)
    named: dict[str, list[str]] = {}
    for version in versions.all_versions(store):
        named.setdefault(version.digest, []).append(version.label)
    found = {digest: dataset.find(store, digest) for digest in store.list_dirs("datasets/")}
    held = {digest: each for digest, each in found.items() if each is not None}
    if as_json:
        session.print_json(
            [
                each.model_dump(exclude={"version"}) | {"versions": named.get(digest, [])}
                for digest, each in held.items()
            ]
        )
        return
    rows = [
        (", ".join(named.get(digest, [])), digest, each.task,
         *map(str, (each.train_rows, each.validation_rows, each.test_rows)))
        for digest, each in held.items()
    ]  # fmt: skip
    empty = f"no datasets in {store.uri()} yet; a job stores its own"
    session.print_table(["name", "dataset", "task", "train", "validation", "test"], sorted(rows), empty=empty)


@data.command()
@click.argument("label", metavar="DATASET", shell_complete=labels)
@session.JSON
def show(label: str, as_json: bool) -> None:
    """Show one DATASET, `reviews`, `reviews@3` or a digest: its rows and labels, and what its preparation did.

    \b
    Example:
      kitae data show reviews@3
    """
    from ray_jobs.data import dataset, prepare, versions

    store = session.open_workspace(check=False)
    found = versions.find_dataset(store, label)
    report = dataset.report_of(store, found.digest)
    if as_json:
        session.print_json(found.model_dump() | {"preparation": report and report.model_dump(mode="json")})
        return
    click.echo(f"{found.version or found.digest} ({found.digest}), task {found.task}")
    click.echo(prepare.Outline(found, {}).as_text())
    if found.labels:
        click.echo(f"labels: {', '.join(found.labels)}")
    if report is None:
        return
    click.echo(f"{report.read:,} rows were read from {', '.join(report.sources)}")
    rows = [(each.step.replace("_", " "), each.action, str(each.rows)) for each in report.steps if each.rows]
    session.print_table(["step", "action", "rows"], rows, empty="no step found anything")


@data.command()
@click.argument("label", metavar="DATASET", shell_complete=labels)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="PATH", help="Default: DATASET.html.")
@click.option("--language", type=click.Choice(["en", "ja"]), default="en", show_default=True, help="Of the page.")
def report(label: str, output: Path | None, language: Literal["en", "ja"]) -> None:
    """Write the report of a DATASET as one HTML page: what each step did, samples, and what to improve first.

    \b
    Example:
      kitae data report reviews@3 --language ja
    """
    from ray_jobs.data import dataset, versions
    from ray_jobs.data.page import page
    from ray_jobs.errors import DataError

    store = session.open_workspace(check=False)
    found = versions.find_dataset(store, label)
    prepared = dataset.report_of(store, found.digest)
    if prepared is None:
        raise DataError(f"{label} was prepared by an earlier version, which wrote no report: run its job again")
    target = output or Path(f"{(found.version or found.digest).replace('@', '-')}.html")
    try:
        target.write_text(page(prepared, language), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror}): name another --output") from error
    click.echo(f"wrote {target}")


@data.command()
@click.argument("old", shell_complete=labels)
@click.argument("new", shell_complete=labels)
@session.JSON
def diff(old: str, new: str, as_json: bool) -> None:
    """Count the rows of the dataset NEW that OLD does not have, those that it had, and those on another side.

    \b
    Example:
      kitae data diff reviews@2 reviews@3
    """
    from ray_jobs.data.version_diff import version_diff

    found = version_diff(session.open_workspace(check=False), old, new)
    if as_json:
        session.print_json(found.model_dump())
        return
    rows = [(side, *map(str, (each.new, each.moved, each.unchanged))) for side, each in found.sides.items()]
    session.print_table(["side", "new", "from another side", "unchanged"], rows, empty="")
    click.echo(f"only in {old}: {found.gone:,} rows")


@data.command()
@click.argument("label", metavar="DATASET", shell_complete=labels)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def export(label: str, directory: Path) -> None:
    """Write the rows of a DATASET to DIRECTORY: a file of JSON lines for each side, and the report.

    \b
    Example:
      kitae data export reviews@3 reviews-3
    """
    import shutil

    from ray_jobs.data import dataset, versions
    from ray_jobs.data.split import SIDES
    from ray_jobs.errors import DataError

    store = session.open_workspace(check=False)
    found = versions.find_dataset(store, label)
    if directory.exists() and any(directory.iterdir()):
        raise DataError(f"{directory} is not empty: name another directory")
    files = dataset.load(store, found.digest)
    directory.mkdir(parents=True, exist_ok=True)
    for side in SIDES:
        shutil.copyfile(files.path(side), directory / dataset.file_of(side))
    prepared = dataset.report_of(store, found.digest)
    if prepared is not None:
        (directory / dataset.REPORT_FILE).write_text(prepared.model_dump_json(indent=2), encoding="utf-8")
    click.echo(f"wrote {found.train_rows + found.validation_rows + found.test_rows:,} rows to {directory}")


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
