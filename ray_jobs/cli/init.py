"""`init`: a file of rows becomes a job file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ray_jobs.data.overview import Overview

_SHOWN_LABELS, _SHOWN_CHARACTERS = 12, 60


class Mapped(click.ParamType[tuple[str, str]]):
    """`TASK_COLUMN=FILE_COLUMN`."""

    name = "column"

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return str(value[0]), str(value[1])
        column, equals, of_file = str(value).partition("=")
        if not equals or not column or not of_file:
            self.fail(f"{value!r} is not a column of the task, '=' and one of the file: text=BODY", param, context)
        return column, of_file


TASK = click.option("--task", metavar="TASK", help="What to train. Default: what the columns suggest.")
COLUMNS = click.option(
    "--column",
    "columns",
    type=Mapped(),
    multiple=True,
    metavar="NAME=COLUMN",
    help="A column of the task and the file's column for it, such as text=BODY. May be given several times.",
)
SHEET = click.option("--sheet", metavar="SHEET", help="Sheet of an Excel workbook. Default: the only one with rows.")
ENCODING = click.option("--encoding", metavar="NAME", help="Encoding of a text file, such as cp932. Default: found.")


@click.command()
@click.argument("rows", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="PATH", help="Default: ROWS with .yaml.")
@TASK
@COLUMNS
@SHEET
@ENCODING
@click.option("--base-model", metavar="MODEL", help="Hub id, path or s3:// address. Default: a small multilingual one.")
@click.option("--name", metavar="NAME", help="Name of the model. Default: the file's.")
@click.option("--force", is_flag=True, help="Overwrite the job file.")
def init(
    rows: Path,
    output: Path | None,
    task: str | None,
    columns: tuple[tuple[str, str], ...],
    sheet: str | None,
    encoding: str | None,
    base_model: str | None,
    name: str | None,
    force: bool,
) -> None:
    """Write a job file for the file ROWS: its task, its columns and a base model are guessed and shown.

    \b
    Example:
      kitae init reviews.xlsx
      kitae init log.csv --task text_classification --column text=body --column label=team
    """
    from ray_jobs.errors import SpecError
    from ray_jobs.spec import parse_spec, parse_yaml
    from ray_jobs.spec.first_job import first_job, name_for
    from ray_jobs.tasks import TASKS

    target = output or Path(f"{rows.name.split('.')[0] or 'job'}.yaml")
    if target.exists() and not force:
        raise SpecError(f"{target} exists: name another --output, or --force to overwrite it")
    seen = look(rows, task, columns, sheet, encoding)
    found = TASKS[seen.guess.task]
    document = first_job(
        name=name or name_for(rows.name.split(".")[0]),
        task=found.name,
        base=base_model or found.required_base.suggested,
        train=str(rows),
        columns=seen.guess.columns,
        rows=len(seen.records) if seen.whole else None,
        characters=seen.longest,
        truncates=found.label_column is not None,
        sheet=sheet,
        encoding=encoding,
    )
    parse_spec(parse_yaml(document), source=str(target))
    try:
        target.write_text(document, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{target} cannot be written ({error.strerror}): name another --output") from error
    show(seen)
    first = "Correct the rows first; then" if seen.findings.count else "Next"
    click.echo(
        f"\nwrote {target}. {first}, with a store (`kitae local up`):\n  kitae plan {target}\n  kitae run {target}"
    )


def look(
    rows: Path, task: str | None, columns: tuple[tuple[str, str], ...], sheet: str | None, encoding: str | None
) -> Overview:
    """The first rows of a file. Raises DataError and SpecError."""
    from ray_jobs.data.columns import check_mapping
    from ray_jobs.data.overview import overview
    from ray_jobs.errors import SpecError, suggestion
    from ray_jobs.tasks import TASKS

    if task is not None and task not in TASKS:
        raise SpecError(f"no task {task!r}: {suggestion(task, TASKS)}")
    if columns and task is None:
        raise SpecError("--column needs --task, whose columns it names")
    if task is not None:
        check_mapping(TASKS[task], dict(columns))
    _check_readable(rows)
    return overview(rows, rows.name, task=task, columns=dict(columns), sheet=sheet, encoding=encoding)


def _check_readable(rows: Path) -> None:
    """Raise DataError for a path that is no file of rows, or that may not be read."""
    import os
    import unicodedata

    from ray_jobs.errors import DataError

    if any(unicodedata.category(char) in ("Cc", "Cs") for char in str(rows)):
        raise DataError(f"the name {str(rows)!r} has a line end or bytes that are not UTF-8: rename the file")
    if not rows.is_file():
        kind = "is a directory" if rows.is_dir() else "is no regular file" if rows.exists() else "does not exist"
        if rows.is_symlink() and not rows.exists():
            kind = f"is a link to {os.readlink(rows)}, which does not exist"
        raise DataError(f"{rows} {kind}: name a file of rows")
    if not os.access(rows, os.R_OK):
        raise DataError(f"{rows} may not be read by this user: correct its permissions, or copy it")


def show(seen: Overview) -> None:
    """Print the guess, the labels, what is wrong and what was noticed."""
    count = f"{len(seen.records):,} rows" if seen.whole else f"more than {len(seen.records):,} rows"
    click.echo(f"{count}; task {seen.guess.task}, {seen.guess.reason}")
    for name, of_file in seen.guess.columns.items():
        click.echo(f"  {name}: the column {of_file!r}")
    if seen.labels:
        more = f" and {len(seen.labels) - _SHOWN_LABELS} more" if len(seen.labels) > _SHOWN_LABELS else ""
        click.echo(f"  labels: {', '.join(map(cell, seen.labels[:_SHOWN_LABELS]))}{more}")
    for notice in seen.findings.notices:
        click.echo(f"note: {notice}")
    if seen.findings.count:
        click.echo(f"{seen.findings.counted}, with which `kitae run` would refuse the rows:")
        for detail in seen.findings.listed:
            click.echo(f"  - {detail}")


def cell(value: object) -> str:
    """A value as a table shows it: one line, cut."""
    import json

    from ray_jobs.errors import one_line

    text = one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def first_rows(seen: Overview, count: int) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of a table of the first rows, as the file has them."""
    names = [column.name for column in seen.columns]
    records: list[Mapping[str, object]] = [dict(record) for record in seen.records[:count]]
    return names, [[cell(record.get(name, "")) for name in names] for record in records]
