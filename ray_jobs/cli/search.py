"""`tune` and `trials`: a job's hyperparameter search without the rest of the job, and its trials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ray_jobs.cli import session
from ray_jobs.errors import JobError

if TYPE_CHECKING:
    from ray_jobs.search.records import SearchRecords
    from ray_jobs.spec import JobSpec
    from ray_jobs.storage import Store


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

    result = pipeline.tune(session.open_store(), spec)
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
    from ray_jobs.search import decide, page

    store = session.open_store(check=False)
    records = _records(store, job)
    problem, results, stop = records.problem(), records.results(), records.stopped()
    schedule = decide.replay(problem, results, stop)
    if as_json:
        session.print_json([result.model_dump(mode="json", exclude={"losses"}) for result in results.values()])
        return
    if html is not None:
        text = page.page(problem, results, schedule, records.spent(), title=job)
        html.write_text(text, encoding="utf-8")
        click.echo(f"wrote {html}")
        return
    click.echo(page.table(problem, results, schedule))


def _records(store: Store, job: str) -> SearchRecords:
    """The newest search of a job. Raises JobError for a job without one."""
    from ray_jobs.jobs import load
    from ray_jobs.search.records import SearchRecords

    load(store, job)
    begun = [SearchRecords(store, f"jobs/{job}/search/{name}") for name in store.list_dirs(f"jobs/{job}/search/")]
    if not begun:
        raise JobError(f"job {job} has no search yet; `search:` in its job file adds one")
    return max(begun, key=lambda records: records.problem().begun_at)
