"""`usage`: usage of the service by team, key, model or day."""

from __future__ import annotations

import csv
import os
import sys
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

import click

from ray_jobs.cli import budget, session
from ray_jobs.errors import BudgetError, StoreAccessDenied

if TYPE_CHECKING:
    from ray_jobs.tenancy.usage import By


@click.command()
@click.option("--team", metavar="TEAM", help="Only this team's.  [default: every team's]")
@session.SINCE
@session.UNTIL
@click.option("--by", type=click.Choice(["team", "key", "model", "day"]), default="team", show_default=True)
@session.JSON
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def usage(
    team: str | None, since: datetime | None, until: datetime | None, by: By, as_json: bool, as_csv: bool
) -> None:
    """Show usage: requests, tokens, worker and GPU hours of training and their cost. Days are in UTC.

    Below the table are the teams' budgets and what this month has used of them.

    \b
    Example:
      kitae usage
      kitae usage --team blue --since 2026-11-01 --until 2026-11-30 --by model
      kitae usage --by key --csv > usage.csv
    """
    from ray_jobs.cluster import prices
    from ray_jobs.quota import bookings
    from ray_jobs.tenancy import usage as ledger

    first, last = session.days(since, until)
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    store = session.open_store(check=False)
    with suppress(StoreAccessDenied):  # then only the endpoint books
        bookings.book(store, store.now_s())
    rows = ledger.read(store, team, first, last)
    totals, everything = ledger.group(rows, by), ledger.total("total", rows)
    known = prices.from_environment(os.environ)
    try:
        standings = budget.standings(store, team)
    except BudgetError as error:  # without prices there is no cost either
        click.echo(f"note: {error.message}", err=True)
        standings = []

    def document(one: ledger.Total) -> dict[str, object]:
        cost = {} if known is None else {"cost": round(known.cost(one), 4)}
        return one.model_dump(exclude={"name"}) | cost

    numbers = [{by: total.name} | document(total) for total in totals]
    if as_json:
        budgets = [budget.as_document(each) for each in standings]
        document_of_all = {"since": first, "until": last, "by": by, "rows": numbers, "total": document(everything)}
        session.print_json(document_of_all | {"budgets": budgets})
    elif as_csv:  # without their sum, so that a spreadsheet does not count twice
        columns = [by, *document(everything)]
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(numbers)
    else:
        columns = [by, "requests", "prompt tokens", "completion tokens", "runs", "trained tokens", "worker h", "GPU h"]
        columns += [] if known is None else ["cost"]
        shown = []
        for one in [*totals, everything] if totals else []:
            counts = (one.requests, one.prompt_tokens, one.completion_tokens, one.training_runs, one.trained_tokens)
            hours = (one.worker_seconds / 3600, one.gpu_seconds / 3600)
            cost = [] if known is None else [f"{known.cost(one):,.2f}"]
            shown.append([one.name, *(f"{count:,}" for count in counts), *(f"{value:.2f}" for value in hours), *cost])
        session.print_table(columns, shown, empty=f"no usage from {first} to {last} in {store.uri()}")
        for each in standings:
            click.echo(each.as_text() if each.level == "ok" else f"warning: {each.as_text()}")
