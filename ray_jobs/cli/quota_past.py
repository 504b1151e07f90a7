"""`quota simulate` and `quota report`: past jobs played against another quota, and what became of the quotas.

Owns what these commands print. Does not know how jobs are played (`quota.simulate`) or counted (`quota.report`).
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ray_jobs.cli import session

if TYPE_CHECKING:
    from ray_jobs.quota.compare import Played
    from ray_jobs.quota.job_trace import Past
    from ray_jobs.quota.pool import Pool
    from ray_jobs.quota.report import By, Report

DEFAULT_DAYS = 30
_DATE = click.DateTime(formats=["%Y-%m-%d"])
_FILE = click.Path(dir_okay=False, path_type=Path)
_SINCE = click.option("--since", type=_DATE, metavar="DATE", help=f"First day (UTC).  [default: {DEFAULT_DAYS} days]")
_UNTIL = click.option("--until", type=_DATE, metavar="DATE", help="Last day (UTC).  [default: today]")
_QUOTA = click.option(
    "--quota", "quota_file", type=_FILE, metavar="FILE", help="The present quotas: the chart's values.  [the cluster's]"
)


@click.command()
@click.option("--proposal", type=_FILE, metavar="FILE", help="Quotas as the chart's values; what it leaves out stays.")
@click.option("--set", "settings", multiple=True, metavar="TEAM.FLAVOR=N[,borrow=N][,lend=N]", help="One such quota.")
@_SINCE
@_UNTIL
@_QUOTA
@click.option(
    "--lost-minutes",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="What a preemption costs a job: since its last checkpoint, and starting again.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--html", "html_file", type=_FILE, metavar="FILE", help="Write a page with plots.")
def simulate(
    proposal: Path | None,
    settings: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    quota_file: Path | None,
    lost_minutes: float,
    as_json: bool,
    html_file: Path | None,
) -> None:
    """Play past jobs against the present quotas and proposed ones: who would have waited how long, at what cost.

    Nothing is changed. What the simulation leaves out is in docs/decisions/quota.md.

    \b
    Example:
      kitae quota simulate --set blue.h100=8 --set red.h100=4,borrow=4
      kitae quota simulate --proposal values.yaml --since 2026-11-01 --html quota.html
    """
    from ray_jobs.quota import compare, job_trace, page, pool, tables

    if proposal is None and not settings:
        raise click.UsageError("nothing is proposed: give --proposal FILE or --set TEAM.FLAVOR=N")
    proposed_file = pool.load(proposal) if proposal is not None else None
    first, last = _days(since, until)
    present = _present(quota_file)
    proposed = present
    if proposed_file is not None:
        proposed = pool.with_file(proposed, proposed_file, source=str(proposal))
    proposed = pool.with_settings(proposed, settings)
    store = session.open_store(check=False)
    past = job_trace.read(store, since=first, until=last).arrived(first, last)
    past, strangers = _with_quota(past, present, proposed)
    notes = [f"{len(past.jobs)} past job(s) from {first} to {last}", *past.notes(), *strangers]
    before, after = compare.compare(present, proposed, past.works(), restart_s=60 * lost_minutes)
    if html_file is not None:
        _write(html_file, page.simulation(before, after, title=f"Quotas: {first} to {last}", notes=notes))
    if as_json:
        session.print_json({"notes": notes, "present": _played_json(before), "proposed": _played_json(after)})
        return
    columns, rows = tables.team_rows(before, after)
    session.print_table(columns, rows, empty=f"no job came from {first} to {last} in {store.uri()}")
    if rows:
        click.echo()
        session.print_table(*tables.flavor_rows(before, after), empty="there is no quota")
    for note in notes:
        click.echo(note, err=True)


@click.command()
@_SINCE
@_UNTIL
@click.option("--by", type=click.Choice(["team", "job", "model"]), default="team", show_default=True)
@_QUOTA
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, allow_dash=True), metavar="FILE", help="`-`: here.")
@click.option("--html", "html_file", type=_FILE, metavar="FILE", help="Write a page with a plot.")
def report(
    since: datetime | None,
    until: datetime | None,
    by: By,
    quota_file: Path | None,
    as_json: bool,
    csv_file: str | None,
    html_file: Path | None,
) -> None:
    """Show GPU hours, idle GPU hours and cost of each team, job or model.

    Idle is what the nominal quota would have given, less what was used. Prices are the flavours' in the cluster's
    settings (KITAE_CLUSTER) or in the file of --quota.

    \b
    Example:
      kitae quota report --since 2026-11-01 --until 2026-11-30
      kitae quota report --by model --csv models.csv --html models.html
    """
    from ray_jobs.errors import MachineError
    from ray_jobs.quota import job_trace, page, tables
    from ray_jobs.quota import report as reports

    if as_json and csv_file == "-":
        raise click.UsageError("--json and --csv - exclude each other: both write here")
    first, last = _days(since, until)
    try:
        present: Pool | None = _present(quota_file)
    except MachineError as error:
        if quota_file is not None:
            raise
        click.echo(f"warning: {error.message}", err=True)
        present = None
    now = datetime.now(UTC)
    begin = datetime.combine(first, time.min, UTC)
    end = min(now, datetime.combine(last, time.min, UTC) + timedelta(days=1))
    past = job_trace.read(session.open_store(check=False), since=first, until=last, now=now)
    made = reports.report(past, present, begin, end, by)
    if csv_file == "-":
        click.echo(reports.as_csv(made), nl=False)
    elif csv_file is not None:
        _write(Path(csv_file), reports.as_csv(made))
    if html_file is not None:
        _write(html_file, page.usage(made, title=f"Use of quotas by {by}: {first} to {last}"))
    if as_json:
        session.print_json(_report_json(made))
    elif csv_file != "-":
        session.print_table(*tables.report_rows(made), empty="")
        for note in made.notes:
            click.echo(note, err=True)


def _days(since: datetime | None, until: datetime | None) -> tuple[Any, Any]:
    last = until.date() if until else datetime.now(UTC).date()
    first = since.date() if since else last - timedelta(days=DEFAULT_DAYS - 1)
    if first > last:
        raise click.BadParameter(f"{first} is after the last day, {last}", param_hint="--since")
    return first, last


def _present(quota_file: Path | None) -> Pool:
    """The quotas of a file, else of the cluster, priced by the cluster's settings. MachineError without either."""
    from ray_jobs.cluster import settings
    from ray_jobs.cluster.client import CLUSTER_QUEUE, COHORT
    from ray_jobs.errors import ClusterUnreachable
    from ray_jobs.quota import pool, queues

    read = settings.from_environment(os.environ)
    flavors = {} if read is None else read.flavors
    prices = {name: each.price_per_hour for name, each in flavors.items() if each.price_per_hour is not None}
    if quota_file is not None:
        found = pool.pool_of(pool.load(quota_file), source=str(quota_file))
        return replace(found, prices={**prices, **found.prices})
    try:
        cluster = session.connect_cluster()
        return queues.pool_of(cluster.list(CLUSTER_QUEUE), session.list_if_allowed(cluster, COHORT), prices)
    except ClusterUnreachable as error:
        fix = "or name the present quotas in a file: --quota values.yaml"
        raise ClusterUnreachable(error.message, details=[*error.details, fix]) from error


def _with_quota(past: Past, *pools: Pool) -> tuple[Past, list[str]]:
    """The jobs of teams that are in every pool, and a line on the others."""
    kept = [job for job in past.jobs if all(job.team in each.teams for each in pools)]
    gone = Counter(job.team for job in past.jobs if any(job.team not in each.teams for each in pools))
    told = ", ".join(f"{team} ({count})" for team, count in sorted(gone.items()))
    return replace(past, jobs=tuple(kept)), [f"jobs of teams without a quota left out: {told}"] if gone else []


def _write(path: Path, text: str) -> None:
    from ray_jobs.errors import MachineError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror}") from error
    click.echo(f"written: {path}", err=True)


def _played_json(played: Played) -> dict[str, Any]:
    return {"teams": [asdict(each) for each in played.teams], "flavors": [asdict(each) for each in played.flavors]}


def _report_json(made: Report) -> dict[str, Any]:
    return {
        "by": made.by,
        "begin": made.begin.isoformat(),
        "end": made.end.isoformat(),
        "rows": [{made.by: row.name} | {k: v for k, v in asdict(row).items() if k != "name"} for row in made.rows],
        "total": {k: v for k, v in asdict(made.total).items() if k != "name"},
        "notes": list(made.notes),
    }
