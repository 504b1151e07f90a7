"""`quota show` and `quota set`: quotas, usage and waiting jobs of a cluster, and changes of a quota."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from ray_jobs.cli import audit, quota_past, session
from ray_jobs.errors import KitaeError, ObjectChanged, SpecError, suggestion

if TYPE_CHECKING:
    from ray_jobs.quota.status import QuotaRow, WaitingWorkload

TRACE_DAYS = 30
"""Age of the oldest past jobs on which `show` bases estimates."""


@session.completes
def team_names(_: str) -> list[str]:
    return sorted(_known()[0])


@session.completes
def flavor_names(_: str) -> list[str]:
    return sorted(_known()[1])


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
@click.option("--all", "everything", is_flag=True, help="Also CPU and memory of GPU flavors.")
@session.JSON
def show(team: str | None, everything: bool, as_json: bool) -> None:
    """Show quota, usage and waiting jobs of each team and flavor, and for each waiting job the reason and a start.

    The start is an estimate from the durations of past jobs.

    \b
    Example:
      kitae quota show
      kitae quota show --team blue --json
    """
    from ray_jobs.cluster.kinds import CLUSTER_QUEUE, COHORT, LOCAL_QUEUE, WORKLOAD
    from ray_jobs.kueue.queues import Queues, local_queues, team_of
    from ray_jobs.quota import status

    cluster = session.connect_cluster()
    found = cluster.list(CLUSTER_QUEUE)
    teams = {team_of(queue) for queue in found}
    if team is not None and team not in teams:
        raise SpecError(f"no team {team!r} in this cluster; {suggestion(team, teams)}")
    queues = Queues(found, session.list_if_allowed(cluster, COHORT), local_queues(cluster.list(LOCAL_QUEUE)))
    workloads = cluster.list(WORKLOAD)
    now = datetime.now(UTC)
    waits = status.waiting(queues, workloads, now=now, older=_durations(now))
    waits = [each for each in waits if team in (None, each.team)]
    rows = [row for row in status.rows(queues, workloads) if team in (None, row.team)]
    if as_json:
        session.print_json({"at": str(now), "quotas": list(map(_row_json, rows)), "waiting": list(map(asdict, waits))})
        return
    columns = ["team", "flavor", "resource", "nominal", "used", "borrowed", "lent", "may borrow", "free", "waiting"]
    shown = [_row_cells(row) for row in rows if everything or row.counted]
    session.print_table(columns, shown, empty="no ClusterQueue in this cluster: install the chart with `teams:`")
    if waits:
        click.echo()
        columns = ["waiting", "team", "requests", "since", "starts", "reason"]
        session.print_table(columns, [_waiting_cells(each, now) for each in waits], empty="")


@quota.command("set")
@click.argument("team", shell_complete=team_names)
@click.option("--flavor", required=True, metavar="FLAVOR", shell_complete=flavor_names, help="Flavor of the quota.")
@click.option("--nominal", metavar="N", help="Quota that the team can always use.")
@click.option("--borrow", metavar="N", help="Limit of what it may borrow beyond that; `none`: no limit.")
@click.option("--lend", metavar="N", help="Limit of what others may borrow from it; `none`: no limit.")
@click.option("--resource", metavar="NAME", help="For example cpu or memory.  [default: GPUs; cpu for a CPU flavor]")
@click.option("--apply", "apply_it", is_flag=True, help="Change the cluster.  [default: only print the diff]")
@click.option("--values", "as_values", is_flag=True, help="Print the change as values of the chart.")
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
    """Change the quota of TEAM: print the diff, or apply it (--apply). Options that are not given stay unchanged.

    If another client changed the queue in the meantime, nothing is changed.

    \b
    Example:
      kitae quota set blue --flavor h100 --nominal 8
      kitae quota set blue --flavor h100 --nominal 8 --borrow 4 --lend 2 --apply
      kitae quota set blue --flavor h100 --nominal 8 --values >> values.yaml
    """
    from ray_jobs.cluster.kinds import CLUSTER_QUEUE, NODE, RESOURCE_FLAVOR
    from ray_jobs.kueue import queues
    from ray_jobs.quota import change

    if apply_it and as_values:
        raise click.UsageError("--apply changes the cluster and --values only prints: leave one out")
    cluster = session.connect_cluster()
    found = cluster.list(CLUSTER_QUEUE)
    options: dict[change.QuotaField, str | None] = {"nominal": nominal, "borrow": borrow, "lend": lend}
    given = {field: text for field, text in options.items() if text is not None}
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
        click.echo(f"{flavor} of team {team} already has these limits: nothing to change")
        return
    click.echo(planned.diff)
    if not apply_it:
        click.echo("\nnothing was changed; --apply applies the change, --values prints it for the chart")
        return
    changes = [f"{field} {text}" for field, text in given.items()]
    try:
        with audit.recorded(
            session.open_store(check=False), "quota.set", f"{flavor} {resource or counted}", team=team, changes=changes
        ):
            cluster.patch(CLUSTER_QUEUE, planned.queue, planned.patch)
    except ObjectChanged as error:
        details = ("nothing was changed: run the command again and check the new diff",)
        raise ObjectChanged(error.message, details=details) from error
    click.echo(f"\nchanged; to undo: {planned.undo}")


for command in (quota_past.simulate, quota_past.report):
    quota.add_command(command)


def _known() -> tuple[set[str], set[str]]:
    """Teams and flavors, from the settings if KITAE_CLUSTER is set, else from the cluster."""
    from ray_jobs.cluster import settings
    from ray_jobs.cluster.kinds import CLUSTER_QUEUE
    from ray_jobs.kueue import queues

    read = settings.from_environment(os.environ)
    if read is not None:
        return set(read.teams), set(read.flavors)
    found = session.connect_cluster().list(CLUSTER_QUEUE)
    return {queues.team_of(queue) for queue in found}, set(queues.counted(found))


def _durations(now: datetime) -> dict[str, list[float]]:
    """Durations of past jobs in seconds, by team and (`""`) over all teams. Empty if the store cannot be read."""
    from ray_jobs.quota import job_trace

    try:
        store = session.open_store(check=False)
        trace = job_trace.read(store, since=(now - timedelta(days=TRACE_DAYS)).date())
    except KitaeError as error:
        click.echo(f"warning: no past jobs for the estimates: {error.message}", err=True)
        return {}
    found: dict[str, list[float]] = {}
    for job in trace.jobs:
        for name in (job.team, ""):
            found.setdefault(name, []).append(job.duration_s)
    return found


def _row_cells(row: QuotaRow) -> list[str]:
    from ray_jobs.cluster import quantities

    quota, limits = row.quota, row.quota.limits
    most = "no limit" if limits.borrow is None else quantities.text(limits.borrow)
    numbers = [limits.nominal, quota.used, quota.borrowed, quota.lent]
    waiting = f"{_text(row.waiting, quota.resource)} ({row.waiting_jobs})" if row.waiting_jobs else "0"
    amounts = [_text(number, quota.resource) for number in numbers]
    return [row.team, quota.flavor, quota.resource, *amounts, most, _text(quota.available, quota.resource), waiting]


def _waiting_cells(each: WaitingWorkload, now: datetime) -> list[str]:
    from ray_jobs.jobs.progress import duration

    requested = [f"{_text(amount, name)} {name}" for name, amount in each.asks.items() if amount]
    gpus = [text for text in requested if not text.endswith((" cpu", " memory"))]
    starts = "unknown" if each.starts_at is None else f"in about {duration((each.starts_at - now).total_seconds())}"
    since = f"{duration((now - each.since).total_seconds())} ago"
    return [each.name, each.team, ", ".join(gpus or requested), since, starts, each.reason]


def _text(amount: Decimal, resource: str) -> str:
    from ray_jobs.cluster import quantities

    return f"{float(amount / 2**30):.4g}Gi" if resource == "memory" else quantities.text(amount)


def _row_json(row: QuotaRow) -> dict[str, Any]:
    document = asdict(row)
    quota = document.pop("quota") | {"lent": row.quota.lent}
    limits = quota.pop("limits")
    del quota["largest"]
    return {**document, **quota, **limits}
