"""`plan`, `run`, `resume`, `status`, `pause`, `cancel`, `notice`, `tune`, `trials`: a job from its file to its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ray_jobs.cli import budget, endpoint, session
from ray_jobs.errors import JobCancelled, JobError, JobPaused, JobSuperseded, KitaeError, one_line

if TYPE_CHECKING:
    from ray_jobs.jobs import JobRecord
    from ray_jobs.spec import JobSpec
    from ray_jobs.storage import Workspace

WATCH_EVERY_S = 2.0
_INTERRUPTED, _LOST = "interrupted", "lost"


@click.command()
@session.SPEC
def plan(spec: JobSpec) -> None:
    """Show which stages of the job file SPEC `run` would run, and which it would skip.

    \b
    Example:
      kitae plan examples/faq_chat.yaml
    """
    from ray_jobs import pipeline

    click.echo(pipeline.plan(budget.checked(session.open_workspace(), spec), spec).as_text())


@click.command()
@session.SPEC
@click.option("--launched", is_flag=True, hidden=True, help="Started by a launcher: exit 0 when stopped.")
@click.option("--release", type=int, hidden=True, help="job.attempt of the Helm release that starts it.")
def run(spec: JobSpec, launched: bool, release: int | None) -> None:
    """Run the job file SPEC, from rows to an answering endpoint.

    The same file is the same job: finished stages are skipped, and a job that was killed resumes. A runner of the job
    that is still alive elsewhere is named, and stops. `kitae submit` runs the job on a Ray cluster instead.

    \b
    Example:
      kitae run examples/faq_chat.yaml
    """
    store = session.open_workspace()
    from ray_jobs.jobs import Released, id_of

    job_id = id_of(store, spec)
    if launched and (ended := _succeeded(store, job_id, spec)):
        click.echo(ended)
        return
    from ray_jobs import pipeline

    budget.checked(store, spec)
    with _exit_0_on((JobCancelled, JobPaused, JobSuperseded) if launched else ()):
        by = Released(release) if release is not None else None
        click.echo(pipeline.run(store, spec, job_id=job_id, launched=by).as_text())


@click.command()
@session.JOB
@click.option("--workers", type=click.IntRange(min=1), help="Number of training workers (compute.workers).")
@click.option("--launched", is_flag=True, hidden=True, help="Started by a launcher: a later stop is kept.")
@click.option("--paused-at", hidden=True, help="The pause that this launch ends.")
@click.option("--submitted", is_flag=True, hidden=True, help="Started by `kitae submit`.")
def resume(job: str, workers: int | None, launched: bool, paused_at: str | None, submitted: bool) -> None:
    """Resume JOB where it stopped: killed, failed, paused or cancelled. Its job file is not needed.

    \b
    Example:
      kitae resume faq-chat-1f0c2a9b3d
      kitae resume faq-chat-1f0c2a9b3d --workers 1
    """
    from ray_jobs.jobs import Launched, load
    from ray_jobs.registry.api_names import JOB_PREFIX
    from ray_jobs.spec import parse_spec

    store, job = session.find_job(job, check=True)
    document = load(store, job).spec
    if launched and (ended := _succeeded(store, job)):
        click.echo(ended)
        return
    if job.startswith(JOB_PREFIX) and not (launched or submitted):
        if workers is not None:
            raise click.UsageError("the API decides where its jobs run: leave --workers out")
        click.echo(endpoint.resume_job(store.team, job.rpartition("-")[0]))
        return
    if workers is not None:
        document["compute"] = {**document.get("compute", {}), "workers": workers}
    loaded = parse_spec(document, source=f"the stored spec of job {job}", stored=True)
    from ray_jobs import pipeline

    with _exit_0_on(JobError if launched else ()):
        by = Launched(paused_at, submitted) if launched or submitted else None
        result = pipeline.run(store, loaded, job_id=job, launched=by)
        click.echo(result.as_text())


def _succeeded(store: Workspace, job_id: str, spec: JobSpec | None = None) -> str | None:
    """What a launched runner says of a job that has succeeded; None: it has not, or with another gate or serving option
    than `spec`.

    KubeRay runs a job again if its dashboard does not answer within 30 s of the job's end. This is checked before the
    frameworks are imported and before a worker is requested.
    """
    from ray_jobs.jobs import load
    from ray_jobs.spec import parse_spec

    try:
        record = load(store, job_id)
    except JobError:  # it has no record yet
        return None
    if record.status != "succeeded":
        return None
    if spec is not None and parse_spec(record.spec, stored=True).digest() != spec.digest():
        return None
    return f"job {job_id} has succeeded already: there is nothing to do"


@contextmanager
def _exit_0_on(stops: type[KitaeError] | tuple[type[KitaeError], ...]) -> Iterator[None]:
    """Exit 0 on these errors, so that the launcher does not restart a stopped job. The record has the reason."""
    try:
        yield
    except stops as error:
        click.echo(str(error))


@click.command()
@session.SPEC
def tune(spec: JobSpec) -> None:
    """Search the hyperparameters of the job file SPEC. `run` then evaluates and registers the best trial.

    The job file's `search:` sets the space, the algorithm and the budget; without it, the defaults of the task and the
    method apply.

    \b
    Example:
      kitae tune examples/faq_chat.yaml
    """
    from ray_jobs import pipeline

    result = pipeline.tune(budget.checked(session.open_workspace(), spec), spec)
    click.echo(f"best: {result.run} with {session.format_metrics(result.params)}  (job {result.job_id})")
    click.echo(f"`kitae trials {result.job_id} --html trials.html` shows the search")


@click.command()
@session.JOB
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with plots to this file.")
@session.JSON
def trials(job: str, html: Path | None, as_json: bool) -> None:
    """Show the trials of JOB's search, the best first, also while it runs.

    \b
    Example:
      kitae trials faq-chat-1f0c2a9b3d
      kitae trials faq-chat-1f0c2a9b3d --html trials.html
    """
    from ray_jobs.search import page, standing
    from ray_jobs.search.records import newest_search

    records = newest_search(*session.find_job(job))
    problem, results, now = standing.read(records)
    if as_json:
        session.print_json([result.model_dump(mode="json", exclude={"losses"}) for result in results.values()])
        return
    if html is not None:
        text = page.page(problem, results, now, records.spent(), title=job)
        html.write_text(text, encoding="utf-8")
        click.echo(f"wrote {html}")
        return
    click.echo(page.table(problem, results, now))


@click.command()
@session.JOB
def cancel(job: str) -> None:
    """End JOB. Its runner stops within seconds; `kitae resume` resumes it.

    \b
    Example:
      kitae cancel faq-chat-1f0c2a9b3d
    """
    from ray_jobs.jobs import request_cancel

    record = request_cancel(*session.find_job(job))
    click.echo(f"{record.id}: {record.status}")


@click.command()
@session.JOB
def pause(job: str) -> None:
    """Stop JOB for now. Its runner stops within seconds and frees its machines; `kitae resume` resumes it.

    \b
    Example:
      kitae pause faq-chat-1f0c2a9b3d
    """
    from ray_jobs.jobs import request_pause

    record = request_pause(*session.find_job(job))
    click.echo(f"{record.id}: {record.status}")


@click.command(hidden=True)
@click.argument("job")
@click.option("--wait-s", type=click.FloatRange(min=0), default=90.0, help="Seconds to wait for the checkpoint.")
@click.pass_context
def notice(context: click.Context, job: str, wait_s: float) -> None:
    """Request a checkpoint of JOB, an id or a job file, before its machines go. Its training writes one at once and
    continues until it is ended. Returns once the checkpoint is committed; exit 1 if it is not after --wait-s.

    \b
    Example, as a pod's preStop hook:
      python -m ray_jobs notice faq-chat-1f0c2a9b3d --wait-s 90
      python -m ray_jobs notice /etc/kitae/job.yaml --wait-s 90
    """
    from ray_jobs.jobs import checkpoint_request as notices
    from ray_jobs.jobs import id_of
    from ray_jobs.spec import load_spec

    if Path(job).suffix in (".yaml", ".yml"):
        job = id_of(session.open_workspace(check=False), load_spec(Path(job)))
    store, job = session.find_job(job)
    given = notices.request(store, job)
    answer, step = notices.wait(store, job, given.number, wait_s)
    click.echo(f"{job}: {notices.describe(answer, step, wait_s)}")
    if answer == "too late":
        context.exit(1)


@click.command()
@click.argument("job", required=False, shell_complete=session.job_ids)
@click.option(
    "--watch", is_flag=True, help="Show events as they come until the job ends or pauses; exit 1 if it failed."
)
@click.option("--events", "show_events", is_flag=True, help="Show every event.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def status(context: click.Context, job: str | None, watch: bool, show_events: bool, as_json: bool) -> None:
    """Show all jobs, or JOB with its stages. --watch and --events without JOB take the newest.

    \b
    Example:
      kitae status
      kitae status faq-chat-1f0c2a9b3d --watch
      kitae status --json | jq '.[] | select(.status == "failed") | .id'
    """
    from ray_jobs.jobs import events, list_jobs, load, stages

    if job is None:
        root = session.open_store(check=False)
        found = [(home, record) for home in session.workspaces(root) for record in list_jobs(home)]
        found.sort(key=lambda pair: pair[1].created_at, reverse=True)
        none = f"no jobs in {root.uri()} yet; `kitae run SPEC` starts one"
        if not (watch or show_events):
            _print_jobs(found, root.now(), as_json, empty=none)
            return
        if not found:
            raise JobError(none)
        job = found[0][1].id
    store, job = session.find_job(job)
    record = load(store, job)
    if as_json and not watch:
        document = record.model_dump(mode="json")
        document["stages"] = [stage.model_dump(mode="json") for stage in stages(store, job)]
        if show_events:
            document["events"] = [event.model_dump(mode="json") for _, event in events(store, job)]
        session.print_json(document)
        return
    last_key = _print_events(store, job, after="") if show_events or watch else ""
    while watch and record.status in ("queued", "running") and _shown_status(store, record) != _LOST:
        time.sleep(WATCH_EVERY_S)
        record = load(store, job)
        last_key = _print_events(store, job, after=last_key)
    _print_job(store, record)
    if watch and record.status != "succeeded":
        context.exit(1)


def _print_jobs(found: Sequence[tuple[Workspace, JobRecord]], now: datetime, as_json: bool, *, empty: str) -> None:
    if as_json:
        session.print_json(
            [
                {**record.model_dump(mode="json"), "team": home.team, "status": _shown_status(home, record)}
                for home, record in found
            ]
        )
        return
    rows = [
        (r.id, home.team, _shown_status(home, r), str(r.attempt), _ago(r.created_at, now), _outcome(r))
        for home, r in found
    ]
    session.print_table(["job", "team", "status", "attempts", "created", "outcome"], rows, empty=empty)


def _print_events(store: Workspace, job_id: str, *, after: str) -> str:
    from ray_jobs.jobs import events

    last = after
    for key, event in events(store, job_id, after=after):
        mark = "" if event.level == "info" else f"{event.level}: "
        data = "" if event.kind == "metrics" else session.format_metrics(event.data)  # the message of metrics has them
        line = f"{event.at.astimezone():%H:%M:%S}  #{event.attempt}  {mark}{event.message}"
        click.echo(line + (f"  ({data})" if data else ""))
        last = key
    return last


def _print_job(store: Workspace, record: JobRecord) -> None:
    from ray_jobs.jobs import events, stages
    from ray_jobs.jobs.progress import duration

    attempt = f"attempt {record.attempt}" + (f" by {record.owner}" if record.owner else "")
    status = _shown_status(store, record)
    click.echo(f"{record.id}  {status}  {attempt}")
    now = store.now()
    if record.started_at is not None:
        took_s = ((record.finished_at or now) - record.started_at).total_seconds()
        click.echo(f"  started   {_ago(record.started_at, now)}, took {duration(took_s)}")
    for stage in stages(store, record.id):
        before = f"attempt {stage.attempt}" if stage.attempt else "when it was submitted"
        again = "" if stage.attempt == record.attempt else f"  ({before})"
        click.echo(f"  {stage.name:<9} {duration(stage.seconds)}{again}")
    if record.error:
        click.echo("  error     " + record.error.replace("\n", "\n            "))
    if record.result:
        click.echo(f"  result    {_outcome(record)}")
    if record.status != "running":
        return
    written = [event for _, event in events(store, record.id)]
    if written:
        last = written[-1]
        click.echo(f"  last      {_ago(last.at, now)}: {last.message}")
        if status == _INTERRUPTED:
            click.echo(
                "            its machines were taken away, and it resumes on others; `kitae quota show` shows the queue"
            )
    if status == _LOST:
        click.echo(f"            its runner gives no sign of life; `kitae resume {record.id}` resumes the job")


def _shown_status(store: Workspace, record: JobRecord) -> str:
    """The record's status; for a running job `interrupted` if its machines are going or gone, `lost` if its runner gave
    no sign of life for minutes."""
    from ray_jobs.jobs import checkpoint_request, event, newest_names, runs

    if record.status != "running":
        return record.status
    if (found := checkpoint_request.current(store, record.id)) is not None:
        newest = next(newest_names(store, record.id), None)
        last = None if newest is None else event(store, record.id, newest)
        last_at = 0.0 if last is None else last.at.timestamp()
        if checkpoint_request.is_interrupted(found, record.attempt, last_at):
            return _INTERRUPTED
    return _LOST if runs.is_lost(store, record, store.now_s()) else record.status


def _outcome(record: JobRecord) -> str:
    """The first line of the error, or the registered version with its test loss and its base's."""
    if record.error:
        return one_line(record.error.splitlines()[0])
    if not record.result:
        return ""
    result = record.result
    try:
        losses = f"{result['base']['loss']:.3f} → {result['tuned']['loss']:.3f}"
        return f"{result['model']}@{result['version']}, test loss {losses}"
    except (KeyError, TypeError, ValueError):  # written by another version, or by other code than Kitae's
        return "a result that cannot be read"


def _ago(at: datetime, now: datetime) -> str:
    from ray_jobs.jobs.progress import duration

    return f"{duration((now - at).total_seconds())} ago"
