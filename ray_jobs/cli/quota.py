"""`quota`: what teams may use of a cluster, what they use, and what another quota would do.

Owns what `quota show` and `quota set` print; `quota simulate` and `quota report` are in
`quota_past`. Does not know how anything is worked out (`ray_jobs.quota`). Only `set --apply` writes.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from ray_jobs.cli import quota_past, session
from ray_jobs.errors import suggestion

if TYPE_CHECKING:
    from ray_jobs.quota.pool import Limits
    from ray_jobs.quota.status import Row, Waiting

HISTORY_DAYS = 30
"""How long ago jobs may have come that the estimates of `show` are made from."""


def team_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes a team that has a quota."""
    return session.matching(incomplete, lambda: sorted(_known()[0]))


def flavor_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes a flavour."""
    return session.matching(incomplete, lambda: sorted(_known()[1]))


@click.group()
def quota() -> None:
    """Show, change, simulate and account for the quotas of teams on Kubernetes (Kueue).

    \b
    Example:
      kitae quota show
      kitae quota set blue --flavor h100 --nominal 8
      kitae quota simulate --set blue.h100=8 --html quota.html
      kitae quota report --since 2026-11-01
    """


@quota.command()
@click.option("--team", metavar="TEAM", shell_complete=team_names, help="Only this team's.  [default: every team's]")
@click.option("--all", "everything", is_flag=True, help="CPU and memory of GPU flavours, too.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def show(team: str | None, everything: bool, as_json: bool) -> None:
    """Show what each team has of each flavour, uses, borrows and waits for; and what waits, why, and until when.

    When a job starts is estimated from how long the last jobs ran: it is no promise.

    \b
    Example:
      kitae quota show
      kitae quota show --team blue --json
    """
    from ray_jobs.cluster.client import CLUSTER_QUEUE, COHORT, LOCAL_QUEUE, WORKLOAD
    from ray_jobs.errors import SpecError
    from ray_jobs.quota import queues, status

    cluster = session.connect_cluster()
    found = cluster.list(CLUSTER_QUEUE)
    teams = {queues.team_of(queue) for queue in found}
    if team is not None and team not in teams:
        raise SpecError(f"no team {team!r} in this cluster; {suggestion(team, teams)}")
    local, workloads = cluster.list(LOCAL_QUEUE), cluster.list(WORKLOAD)
    cohorts = session.list_if_allowed(cluster, COHORT)
    now = datetime.now(UTC)
    waits = status.waiting(found, workloads, local, now=now, durations=_durations(now), cohorts=cohorts)
    waits = [each for each in waits if team in (None, each.team)]
    rows = [row for row in status.rows(found, workloads, local, cohorts) if team in (None, row.team)]
    if as_json:
        session.print_json({"at": now, "quotas": [_row_json(row) for row in rows], "waiting": list(map(_json, waits))})
        return
    columns = ["team", "flavour", "resource", "nominal", "used", "borrowed", "lent", "may borrow", "free", "waiting"]
    shown = [_row_cells(row) for row in rows if everything or row.counted]
    session.print_table(columns, shown, empty="no ClusterQueue in this cluster: install the chart with `teams:`")
    if waits:
        click.echo()
        columns = ["waits", "team", "asks for", "since", "starts", "because"]
        session.print_table(columns, [_waiting_cells(each, now) for each in waits], empty="")


@quota.command("set")
@click.argument("team", shell_complete=team_names)
@click.option("--flavor", required=True, metavar="FLAVOR", shell_complete=flavor_names, help="Of which flavour.")
@click.option("--nominal", metavar="N", help="What the team can always have.")
@click.option("--borrow", metavar="N", help="Most it may use beyond that of what others lend; `none`: no limit.")
@click.option("--lend", metavar="N", help="Most of its nominal quota that others may use; `none`: all of it.")
@click.option("--resource", metavar="NAME", help="Such as cpu or memory.  [default: GPUs, of a CPU flavour cpu]")
@click.option("--apply", "apply_it", is_flag=True, help="Change the cluster.  [default: only print the change]")
@click.option("--values", "as_values", is_flag=True, help="Print the chart's values instead, for a repository.")
def set_quota(
    team: str,
    flavor: str,
    nominal: str | None,
    borrow: str | None,
    lend: str | None,
    resource: str | None,
    apply_it: bool,
    as_values: bool,
) -> None:
    """Change the quota of TEAM: print the change as a diff, or make it (--apply). What is not given stays.

    If somebody else changed the queue meanwhile, nothing is changed.

    \b
    Example:
      kitae quota set blue --flavor h100 --nominal 8
      kitae quota set blue --flavor h100 --nominal 8 --borrow 4 --lend 2 --apply
      kitae quota set blue --flavor h100 --nominal 8 --values >> values.yaml
    """
    from ray_jobs.cluster.client import CLUSTER_QUEUE, NODE, RESOURCE_FLAVOR
    from ray_jobs.errors import ObjectChanged
    from ray_jobs.quota import change, queues

    if apply_it and as_values:
        raise click.UsageError("--apply changes the cluster and --values only prints: leave one out")
    cluster = session.connect_cluster()
    found = cluster.list(CLUSTER_QUEUE)
    given: dict[change.Field, str] = {}
    if nominal is not None:
        given["nominal"] = nominal
    if borrow is not None:
        given["borrow"] = borrow
    if lend is not None:
        given["lend"] = lend
    counted = resource or queues.counted(found).get(flavor, "cpu")
    flavors = {each["metadata"]["name"]: each for each in session.list_if_allowed(cluster, RESOURCE_FLAVOR)}
    nodes = session.list_if_allowed(cluster, NODE)
    capacity = change.capacity_of(nodes, flavors.get(flavor), counted) if nodes else None
    planned = change.plan(found, team, flavor, given, resource=resource, capacity=capacity)
    for warning in planned.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_values:
        click.echo(planned.values, nl=False)
        return
    if not planned.diff:
        click.echo(f"{flavor} of team {team} is so already: nothing to change")
        return
    click.echo(planned.diff)
    if not apply_it:
        click.echo("\nnothing was changed; --apply makes the change, --values prints it for the chart")
        return
    try:
        cluster.patch(CLUSTER_QUEUE, planned.queue, planned.patch)
    except ObjectChanged as error:
        details = ("nothing was changed here: run the command again, and look at the new diff",)
        raise ObjectChanged(error.message, details=details) from error
    click.echo(f"\nchanged; back again: {planned.undo}")


for command in (quota_past.simulate, quota_past.report):
    quota.add_command(command)


def _known() -> tuple[set[str], set[str]]:
    """Teams and flavours: of the settings if they are at hand, else of the cluster."""
    from ray_jobs.cluster import settings
    from ray_jobs.cluster.client import CLUSTER_QUEUE
    from ray_jobs.quota import queues

    read = settings.from_environment(os.environ)
    if read is not None:
        return set(read.teams), set(read.flavors)
    found = session.connect_cluster().list(CLUSTER_QUEUE)
    return {queues.team_of(queue) for queue in found}, set(queues.counted(found))


def _durations(now: datetime) -> dict[str, list[float]]:
    """Seconds that jobs ran, by team and ("") over all teams; empty where the store cannot tell."""
    from ray_jobs.errors import KitaeError
    from ray_jobs.quota import job_trace

    try:
        store = session.open_store(check=False)
        past = job_trace.read(store, since=(now - timedelta(days=HISTORY_DAYS)).date())
    except KitaeError as error:
        click.echo(f"warning: no estimates of starts, for they need past jobs: {error.message}", err=True)
        return {}
    found: dict[str, list[float]] = {}
    for job in past.jobs:
        for name in (job.team, ""):
            found.setdefault(name, []).append(job.seconds)
    return found


def _row_cells(row: Row) -> list[str]:
    most = _most(row.limits)
    numbers = [row.limits.nominal, row.used, row.borrowed, row.lent]
    waiting = f"{_text(row.waiting, row.resource)} ({row.waiting_jobs})" if row.waiting_jobs else "0"
    figures = [_text(number, row.resource) for number in numbers]
    return [row.team, row.flavor, row.resource, *figures, most, _text(row.available, row.resource), waiting]


def _most(limits: Limits) -> str:
    from ray_jobs.quota import amounts

    return "what is lent" if limits.borrow is None else amounts.text(limits.borrow)


def _waiting_cells(each: Waiting, now: datetime) -> list[str]:
    from ray_jobs.jobs.progress import duration

    asks = [f"{_text(amount, name)} {name}" for name, amount in each.asks.items() if amount]
    gpus = [text for text in asks if not text.endswith((" cpu", " memory"))]
    starts = "not known" if each.starts_at is None else f"in about {duration((each.starts_at - now).total_seconds())}"
    since = f"{duration((now - each.since).total_seconds())} ago"
    return [each.name, each.team, ", ".join(gpus or asks), since, starts, each.reason]


def _text(amount: Decimal, resource: str) -> str:
    from ray_jobs.quota import amounts

    return f"{float(amount / 2**30):.4g}Gi" if resource == "memory" else amounts.text(amount)


def _row_json(row: Row) -> dict[str, Any]:
    document = asdict(row)
    limits = document.pop("limits")
    return _numbers({**document, **limits})


def _json(each: Waiting) -> dict[str, Any]:
    return _numbers(asdict(each) | {"asks": _numbers(dict(each.asks))})


def _numbers(document: dict[str, Any]) -> dict[str, Any]:
    """Decimals as numbers, times as ISO 8601."""
    plain: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, Decimal):
            plain[name] = int(value) if value == int(value) else float(value)
        else:
            plain[name] = value.isoformat() if isinstance(value, datetime) else value
    return plain
