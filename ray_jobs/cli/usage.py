"""`usage`: usage of the service by team, key, model or day.

Owns what the command prints. `serving.observability.usage_ledger` counts usage, `ray_jobs.tenancy.usage` stores it.
"""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from ray_jobs.cli import session

if TYPE_CHECKING:
    from ray_jobs.tenancy.usage import By, Total

DEFAULT_DAYS = 30
_DATE = click.DateTime(formats=["%Y-%m-%d"])


@click.command()
@click.option("--team", metavar="TEAM", help="Only this team's.  [default: every team's]")
@click.option("--since", type=_DATE, metavar="DATE", help=f"First day.  [default: {DEFAULT_DAYS} days with the last]")
@click.option("--until", type=_DATE, metavar="DATE", help="Last day.  [default: today]")
@click.option("--by", type=click.Choice(["team", "key", "model", "day"]), default="team", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def usage(
    team: str | None, since: datetime | None, until: datetime | None, by: By, as_json: bool, as_csv: bool
) -> None:
    """Show usage: requests, tokens, and worker and GPU hours of training. Days are in UTC.

    \b
    Example:
      kitae usage
      kitae usage --team blue --since 2026-11-01 --until 2026-11-30 --by model
      kitae usage --by key --csv > usage.csv
    """
    from ray_jobs.tenancy import usage as ledger

    last = until.date() if until else datetime.now(UTC).date()
    first = since.date() if since else last - timedelta(days=DEFAULT_DAYS - 1)
    if first > last:
        raise click.BadParameter(f"{first} is after the last day, {last}", param_hint="--since")
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    store = session.open_store(check=False)
    rows = ledger.read(store, team, first, last)
    totals, everything = ledger.group(rows, by), ledger.total("total", rows)
    if as_json:
        session.print_json(
            {
                "since": first,
                "until": last,
                "by": by,
                "rows": [{by: total.name} | total.model_dump(exclude={"name"}) for total in totals],
                "total": everything.model_dump(exclude={"name"}),
            }
        )
    elif as_csv:
        click.echo(_as_csv(by, totals), nl=False)
    else:
        columns = [by, "requests", "prompt tokens", "completion tokens", "runs", "trained tokens", "worker h", "GPU h"]
        shown = [_cells(total) for total in [*totals, everything]] if totals else []
        session.print_table(columns, shown, empty=f"no usage from {first} to {last} in {store.uri()}")


def _cells(total: Total) -> list[str]:
    counts = [total.requests, total.prompt_tokens, total.completion_tokens, total.training_runs, total.trained_tokens]
    hours = [total.worker_seconds / 3600, total.gpu_seconds / 3600]
    return [total.name, *(f"{count:,}" for count in counts), *(f"{value:.2f}" for value in hours)]


def _as_csv(by: By, totals: list[Total]) -> str:
    """One line per total, without their sum, so that a spreadsheet does not count twice."""
    from ray_jobs.tenancy.usage import Total

    fields = [name for name in Total.model_fields if name != "name"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([by, *fields])
    for total in totals:
        values = total.model_dump()
        writer.writerow([total.name, *(values[name] for name in fields)])
    return out.getvalue()
