"""`quota simulate` and `quota report`: past jobs replayed under another quota, and the use of the quotas."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ray_jobs.cli import session
from ray_jobs.errors import ClusterUnreachable, MachineError

if TYPE_CHECKING:
    from ray_jobs.kueue.pool import Pool
    from ray_jobs.quota.compare import Replay
    from ray_jobs.quota.job_trace import JobTrace
    from ray_jobs.quota.report import Report, ReportBy

_FILE = click.Path(dir_okay=False, path_type=Path)
_PRESENT = "The present quotas as the chart's values.  [default: the cluster's]"
_QUOTA = click.option("--quota", "quotas", type=_FILE, metavar="FILE", help=_PRESENT)


@click.command()
@click.option(
    "--proposal", type=_FILE, metavar="FILE", help="Proposed quotas as the chart's values; the others stay unchanged."
)
@click.option(
    "--set", "settings", multiple=True, metavar="TEAM.FLAVOR=N[,borrow=N][,lend=N]", help="One proposed quota."
)
@session.SINCE
@session.UNTIL
@_QUOTA
@click.option(
    "--lost-minutes",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Minutes of work that a preemption costs: since the last checkpoint, and a start.",
)
@session.JSON
@click.option("--html", "html_file", type=_FILE, metavar="FILE", help="Write a page with plots.")
def simulate(
    proposal: Path | None,
    settings: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    quotas: Path | None,
    lost_minutes: float,
    as_json: bool,
    html_file: Path | None,
) -> None:
    """Replay past jobs under the present and the proposed quotas: waiting times, utilisation and cost.

    Nothing is changed. docs/decisions/quota.md lists what the simulation leaves out.

    \b
    Example:
      kitae quota simulate --set blue.h100=8 --set red.h100=4,borrow=4
      kitae quota simulate --proposal values.yaml --since 2026-11-01 --html quota.html
    """
    from ray_jobs.quota import compare, job_trace, quota_file, results

    if proposal is None and not settings:
        raise click.UsageError("no proposed quota: give --proposal FILE or --set TEAM.FLAVOR=N")
    proposed_file = quota_file.load(proposal) if proposal is not None else None
    first, last = session.days(since, until)
    present = _present(quotas)
    whole = quota_file.with_file(present, proposed_file, source=str(proposal)) if proposed_file is not None else present
    proposed = quota_file.with_settings(whole, settings)
    store = session.open_store(check=False)
    trace = job_trace.read(store, since=first, until=last).arrived(first, last)
    trace, left_out = _with_quota(trace, present, proposed)
    notes = [f"{len(trace.jobs)} past job(s) from {first} to {last}", *trace.notes(), *left_out]
    before, after = compare.compare(present, proposed, trace.jobs, restart_s=60 * lost_minutes)
    if html_file is not None:
        _write(html_file, results.simulation_page(before, after, title=f"Quotas: {first} to {last}", notes=notes))
    if as_json:
        session.print_json({"notes": notes, "present": _replay_json(before), "proposed": _replay_json(after)})
        return
    columns, rows = results.team_rows(before, after)
    session.print_table(columns, rows, empty=f"no job arrived from {first} to {last} in {store.uri()}")
    if rows:
        click.echo()
        session.print_table(*results.flavor_rows(before, after), empty="no quota")
    for note in notes:
        click.echo(note, err=True)


@click.command()
@session.SINCE
@session.UNTIL
@click.option("--by", type=click.Choice(["team", "job", "model"]), default="team", show_default=True)
@_QUOTA
@session.JSON
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False), metavar="FILE", help="Write CSV; `-`: to stdout.")
@click.option("--html", "html_file", type=_FILE, metavar="FILE", help="Write a page with a plot.")
def report(
    since: datetime | None,
    until: datetime | None,
    by: ReportBy,
    quotas: Path | None,
    as_json: bool,
    csv_file: str | None,
    html_file: Path | None,
) -> None:
    """Show GPU hours, idle GPU hours and cost of each team, job or model.

    Idle hours are those of the nominal quota, less the used ones. Prices are the flavors' in the cluster's settings
    (KITAE_CLUSTER) or in the file of --quota.

    \b
    Example:
      kitae quota report --since 2026-11-01 --until 2026-11-30
      kitae quota report --by model --csv models.csv --html models.html
    """
    from ray_jobs.quota import job_trace, results
    from ray_jobs.quota import report as reports

    if as_json and csv_file == "-":
        raise click.UsageError("--json and --csv - exclude each other: both write to standard output")
    first, last = session.days(since, until)
    try:
        present: Pool | None = _present(quotas)
    except MachineError as error:
        if quotas is not None:
            raise
        click.echo(f"warning: {error.message}", err=True)
        present = None
    now = datetime.now(UTC)
    begin = datetime.combine(first, time.min, UTC)
    end = min(now, datetime.combine(last, time.min, UTC) + timedelta(days=1))
    trace = job_trace.read(session.open_store(check=False), since=first, until=last, now=now)
    made = reports.report(trace, present, begin, end, by)
    if csv_file == "-":
        click.echo(reports.as_csv(made), nl=False)
    elif csv_file is not None:
        _write(Path(csv_file), reports.as_csv(made))
    if html_file is not None:
        _write(html_file, results.report_page(made, title=f"Use of quotas by {by}: {first} to {last}"))
    if as_json:
        session.print_json(_report_json(made))
    elif csv_file != "-":
        session.print_table(*results.report_rows(made), empty="")
        for note in made.notes:
            click.echo(note, err=True)


def _present(file: Path | None) -> Pool:
    """The quotas of a file, else of the cluster, priced by the cluster's settings. MachineError without both."""
    from ray_jobs.cluster import settings
    from ray_jobs.cluster.kinds import CLUSTER_QUEUE, COHORT
    from ray_jobs.kueue import queues
    from ray_jobs.quota import quota_file

    read = settings.from_environment(os.environ)
    flavors = {} if read is None else read.flavors
    prices = {name: each.price_per_hour for name, each in flavors.items() if each.price_per_hour is not None}
    if file is not None:
        found = quota_file.pool_of(quota_file.load(file), source=str(file))
        return replace(found, prices={**prices, **found.prices})
    try:
        cluster = session.connect_cluster()
        return queues.pool_of(cluster.list(CLUSTER_QUEUE), session.list_if_allowed(cluster, COHORT), prices)
    except ClusterUnreachable as error:
        fix = "or name a file with the present quotas: --quota values.yaml"
        raise ClusterUnreachable(error.message, details=[*error.details, fix]) from error


def _with_quota(trace: JobTrace, *pools: Pool) -> tuple[JobTrace, list[str]]:
    """The jobs of teams that are in every pool, and a note about the others."""
    kept = [job for job in trace.jobs if all(job.team in each.teams for each in pools)]
    gone = Counter(job.team for job in trace.jobs) - Counter(job.team for job in kept)
    teams = ", ".join(f"{team} ({count})" for team, count in sorted(gone.items()))
    return replace(trace, jobs=tuple(kept)), [f"jobs of teams without a quota left out: {teams}"] if gone else []


def _write(path: Path, text: str) -> None:

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror}") from error
    click.echo(f"written: {path}", err=True)


def _replay_json(replay: Replay) -> dict[str, Any]:
    return {"teams": [asdict(each) for each in replay.teams], "flavors": [asdict(each) for each in replay.flavors]}


def _report_json(made: Report) -> dict[str, Any]:
    document = asdict(made)
    document["rows"] = [{made.by: row.pop("name")} | row for row in document["rows"]]
    del document["total"]["name"]
    return document
