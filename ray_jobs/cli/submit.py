"""`submit`: a job on a Ray cluster, followed from this terminal."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import click

from ray_jobs.cli import budget, session
from ray_jobs.errors import JobCancelled, JobPaused, KitaeError, MachineError

if TYPE_CHECKING:
    from ray_jobs.jobs import JobRecord
    from ray_jobs.launch.launcher import Runner
    from ray_jobs.spec import JobSpec
    from ray_jobs.storage import Workspace

_INTERRUPTED = 130


@click.command()
@session.SPEC
@click.option("--no-wait", is_flag=True, help="Return once the job is submitted.")
@click.pass_context
def submit(context: click.Context, spec: JobSpec, no_wait: bool) -> None:
    """Run the job file SPEC on a Ray cluster, show its log, and exit with its exit code.

    Rows and base models that are files of this machine are put into the store first. Nothing else is sent: neither this
    directory nor code. The cluster, of RAY_DASHBOARD_ADDRESS or the local service, has Kitae installed and reaches the
    store. An interrupt ends the log, not the job.

    \b
    Example:
      kitae submit examples/faq_chat.yaml
      kitae submit examples/faq_chat.yaml --no-wait
    """
    store = budget.checked(session.open_workspace(), spec)
    from ray_jobs.jobs import give_up, id_of
    from ray_jobs.jobs.runs import describe_takeover
    from ray_jobs.launch.launcher import Needs
    from ray_jobs.launch.ray_job import RayAddress, RayLauncher

    ray = RayAddress.from_env()
    launcher = RayLauncher(ray.dashboard_url, ray.token)
    job_id = id_of(store, spec)
    runner_id = f"{job_id}-{secrets.token_hex(3)}"
    launcher.runners(runner_id)  # raises, before anything is written, where Ray does not answer
    if (takeover := describe_takeover(store, job_id)) is not None:
        click.echo(f"note: {takeover}")
    from ray_jobs import pipeline

    record = pipeline.prepare(store, spec, job_id)
    environment = {"KITAE_STORE": store.uri(), "KITAE_TEAM": store.team}
    try:
        launcher.launch(runner_id, ["resume", record.id, "--submitted"], environment, Needs.of(spec, job_id))
    except MachineError as error:
        if record.status == "queued":
            give_up(store, record.id, str(error))
        raise
    click.echo(f"submitted {record.id} to Ray at {ray.dashboard_url}")
    click.echo(f"  `kitae status {record.id} --watch` follows it, `kitae cancel {record.id}` ends it")
    if no_wait:
        return
    try:
        runner = launcher.follow(runner_id, click.echo)
    except KeyboardInterrupt:
        click.echo(f"the job continues: `kitae cancel {record.id}` ends it", err=True)
        context.exit(_INTERRUPTED)
    except MachineError as error:
        raise MachineError(f"{error.message}; the job may run: `kitae status {record.id}` shows it") from error
    context.exit(_exit_code(store, record, runner))


def _exit_code(store: Workspace, submitted: JobRecord, runner: Runner) -> int:
    """The exit code of a job's runner. Raises MachineError for a runner that did not begin the job, or was killed."""
    from ray_jobs.jobs import give_up, load

    record = load(store, submitted.id)
    if record.status == "queued":
        problem = (
            f"the runner of job {record.id} ended before it began the job (exit code {runner.exit_code}); its log has "
            "the reason. The cluster needs Kitae installed, and the store's address and credentials in its environment"
        )
        give_up(store, record.id, problem)
        raise MachineError(problem)
    if runner.exit_code is None or runner.exit_code < 0:
        kinds: dict[str, type[KitaeError]] = {"paused": JobPaused, "cancelled": JobCancelled}
        raise kinds.get(record.status, MachineError)(
            f"the runner of job {record.id} was ended from outside, and the job is {record.status}: the same `kitae "
            "submit` resumes it",
            details=runner.message.splitlines()[:1],
        )
    return runner.exit_code
