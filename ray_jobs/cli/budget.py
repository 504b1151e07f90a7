"""`budget`: monthly budgets of teams in money; and the check before a job of the command line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from ray_jobs.cli import audit, session
from ray_jobs.errors import BudgetError, StoreAccessDenied

if TYPE_CHECKING:
    from ray_jobs.spec import JobSpec
    from ray_jobs.storage import Store, Workspace
    from ray_jobs.tenancy.budgets import BudgetStanding

_TEAM = click.argument("team")


@click.group()
def budget() -> None:
    """Set, show and clear the monthly budgets of teams: a job that would exceed one is refused when it is created.

    Prices are those of the flavors in KITAE_CLUSTER, or without a cluster KITAE_PRICES.

    \b
    Example:
      kitae budget set blue --per-month 500
      kitae budget show
      kitae budget clear blue
    """


@budget.command("set")
@_TEAM
@click.option(
    "--per-month",
    required=True,
    type=click.FloatRange(0, 1e12, min_open=True),
    help="Amount a calendar month (UTC), in the currency of the prices.",
)
def set_budget(team: str, per_month: float) -> None:
    """Set the budget of TEAM. It counts at once, also for what the month has used already.

    \b
    Example:
      kitae budget set blue --per-month 500
    """
    from ray_jobs.cluster import prices
    from ray_jobs.tenancy import budgets

    known = prices.from_environment(os.environ)
    if known is None:
        raise BudgetError(
            "a budget needs prices: set price_per_hour of the flavors in the file of KITAE_CLUSTER, or without a "
            'cluster KITAE_PRICES, such as {"gpu_hour": 3.2, "cpu_hour": 0.1}, here and for the endpoint'
        )
    store = session.open_store(check=False)
    before = budgets.read(store, team)
    with audit.recorded(
        store, "budget.set", team, team=team, per_month=per_month, before=before.per_month if before else None
    ):
        made = budgets.set_budget(store, team, per_month)
    click.echo(budgets.standing(store, team, made, known, store.now()).as_text())


@budget.command()
@click.argument("team", required=False)
@session.JSON
def show(team: str | None, as_json: bool) -> None:
    """Show the budgets with what this month has booked and reserved, or that of TEAM.

    \b
    Example:
      kitae budget show
      kitae budget show blue --json
    """
    store = session.open_store(check=False)
    found = standings(store, team)
    if as_json:
        session.print_json([as_document(each) for each in found])
        return
    rows = [
        (
            each.team,
            f"{each.per_month:,.2f}",
            f"{each.booked:,.2f}",
            f"{each.reserved:,.2f}",
            f"{each.share:.0%}",
            each.level,
        )
        for each in found
    ]
    columns = ["team", "per month", "booked", "reserved", "used", "state"]
    whose = "" if team is None else f" of team {team}"
    session.print_table(columns, rows, empty=f"no budget{whose} in {store.uri()}; `kitae budget set` sets one")


@budget.command()
@_TEAM
def clear(team: str) -> None:
    """Remove the budget of TEAM: its jobs are limited by quotas alone.

    \b
    Example:
      kitae budget clear blue
    """
    from ray_jobs.tenancy import budgets

    store = session.open_store(check=False)
    with audit.recorded(store, "budget.clear", team, team=team):
        budgets.clear(store, team)
    click.echo(f"team {team} has no budget")


def standings(store: Store, team: str | None) -> list[BudgetStanding]:
    """The budgets of all teams, or of one, in this month."""
    from ray_jobs.cluster import prices
    from ray_jobs.tenancy import budgets

    known, now = prices.from_environment(os.environ), store.now()
    found = {name: each for name, each in budgets.read_all(store).items() if team in (None, name)}
    return [budgets.standing(store, name, each, known, now) for name, each in found.items()]


def as_document(each: BudgetStanding) -> dict[str, object]:
    return vars(each) | {"share": round(each.share, 4), "state": each.level}


def checked(store: Workspace, spec: JobSpec) -> Workspace:
    """The store, once a new job is checked against its team's budget; warns from 80 %. Raises BudgetError."""
    from ray_jobs import jobs
    from ray_jobs.cluster import prices
    from ray_jobs.tenancy import budgets

    team, now = store.team, store.now()
    try:
        if budgets.read(store, team) is None or jobs.exists(store, jobs.id_of(store, spec)):
            return store
        estimate = budgets.estimate_of(store, spec, team, None, now)
        found = budgets.check(store, team, estimate, prices.from_environment(os.environ), now)
    except StoreAccessDenied:
        click.echo(f"note: these credentials may not read the budget of team {team}: it is not checked here", err=True)
        return store
    if found is not None and found.level != "ok":
        click.echo(f"warning: {found.as_text()}", err=True)
    return store
