"""Shared by all commands: opens the store and the cluster, prints tables, completes names, maps errors to exit codes.

The store is that of the environment or of the local service in `.kitae/`. Knows no command.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from ray_jobs.errors import Forbidden, KitaeError

if TYPE_CHECKING:
    from ray_jobs.cluster.client import Cluster
    from ray_jobs.cluster.kinds import Kind, Object
    from ray_jobs.spec import JobSpec
    from ray_jobs.storage import Store, Workspace

ShellComplete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
DEFAULT_DAYS = 30
_DATE = click.DateTime(formats=["%Y-%m-%d"])


def open_store(*, check: bool = True, layout: bool = True) -> Store:
    """The store of KITAE_STORE; without it, the store of this directory's local service.

    With `layout`, raises StoreError for a store with the layout of an earlier version."""
    from ray_jobs.storage import Store

    use_local_service()
    store = Store.from_env(check=check)
    if layout:
        from ray_jobs import migration

        migration.require_layout(store)
    return store


def use_local_service() -> None:
    """Set the variables of this directory's local service, if it runs and KITAE_STORE names no other."""
    if "KITAE_STORE" not in os.environ:
        from ray_jobs import local

        if local.is_up():
            os.environ.update({name: value for name, value in local.environment().items() if name not in os.environ})


def open_workspace(*, check: bool = True) -> Workspace:
    """The workspace of the team in KITAE_TEAM; without it, of the team `default`."""
    from ray_jobs.spec import DEFAULT_TEAM
    from ray_jobs.storage import Workspace

    return Workspace(open_store(check=check), os.environ.get("KITAE_TEAM") or DEFAULT_TEAM)


def workspaces(store: Store) -> list[Workspace]:
    """The workspace of KITAE_TEAM; without it, those of all teams."""
    from ray_jobs.storage import Workspace
    from ray_jobs.storage.workspace import teams

    own = os.environ.get("KITAE_TEAM")
    return [Workspace(store, team) for team in ([own] if own else teams(store))]


def find_job(job: str, *, check: bool = False) -> tuple[Workspace, str]:
    """The workspace and the id of a job, given by its id or by its id in the API. Raises JobError."""
    from ray_jobs import jobs

    own = open_workspace(check=check)
    for workspace in dict.fromkeys([own, *workspaces(own.root)]):
        if (found := jobs.find(workspace, job)) is not None:
            return workspace, found
    return own, jobs.load(own, job).id


def model_workspace(name: str, *, check: bool = False) -> Workspace:
    """The workspace of the team that a model belongs to. Raises RegistryError for an unknown model."""
    from ray_jobs import registry

    return registry.workspace_of(open_store(check=check), name)


def connect_cluster() -> Cluster:
    """The Kubernetes API of a pod's service account or of KUBECONFIG. Raises ClusterUnreachable without either."""
    from ray_jobs.cluster.client import Cluster

    return Cluster.connect()


def list_if_allowed(cluster: Cluster, kind: Kind) -> list[Object]:
    """List optional objects: none, and a warning, if the caller may not read them."""
    try:
        return cluster.list(kind)
    except Forbidden as error:
        click.echo(f"warning: {error.message}", err=True)
        return []


def days(since: datetime | None, until: datetime | None) -> tuple[date, date]:
    """The first and the last day of the options `--since` and `--until`."""
    last = until.date() if until else datetime.now(UTC).date()
    first = since.date() if since else last - timedelta(days=DEFAULT_DAYS - 1)
    if first > last:
        raise click.BadParameter(f"{first} is after the last day, {last}", param_hint="--since")
    return first, last


def print_progress(doing: str, seconds: float) -> None:
    """Print a step of a deployment and the time since its start."""
    from ray_jobs.jobs.progress import duration

    click.echo(f"{duration(seconds):>6}  {doing}", err=True)


def print_json(value: object) -> None:
    """Print JSON; decimals as numbers, times as ISO 8601."""

    def plain(other: object) -> object:
        if isinstance(other, Decimal):
            return int(other) if other == int(other) else float(other)
        return other.isoformat() if isinstance(other, datetime) else str(other)

    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=plain))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Print a table as wide as the terminal; 240 columns when piped, so that grep sees whole lines."""
    if not rows:
        click.echo(empty)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    # Cells are plain text: a name such as `[v2] rows` or `ft:faq:fire:` is no markup and has no emoji.
    console = Console(width=None if sys.stdout.isatty() else 240, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n"))


def format_metrics(values: Mapping[str, Any]) -> str:
    """`held_out_loss 1.92, base_held_out_loss 2.61`: numbers with four digits, other values unchanged."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def completes(candidates: Callable[[str], Iterable[str]]) -> ShellComplete:
    """Completes one of the candidates for the incomplete word; none if computing them fails."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        os.environ.setdefault("KITAE_STORE_PATIENCE_S", "1")  # a user waits for the completion
        try:
            return [CompletionItem(name) for name in candidates(incomplete) if name.startswith(incomplete)]
        except Exception:  # noqa: BLE001  # a failed completion must not print an error into a half-typed line
            return []

    return complete


@completes
def job_ids(_: str) -> Iterable[str]:
    return [job for workspace in workspaces(open_store(check=False)) for job in workspace.list_dirs("jobs/")]


@completes
def base_names(_: str) -> Iterable[str]:
    from ray_jobs.registry import catalogue

    return [entry.name for entry in catalogue.entries(open_store(check=False))]


@completes
def key_ids(_: str) -> Iterable[str]:
    from ray_jobs.tenancy import api_keys

    return api_keys.etags(open_store(check=False))


@completes
def model_names(incomplete: str) -> Iterable[str]:
    """Models, and after `@` the model's versions and aliases."""
    from ray_jobs import registry

    name, at, _ = incomplete.partition("@")
    if not at:
        return [name for workspace in workspaces(open_store(check=False)) for name in registry.names(workspace)]
    store = model_workspace(name)
    labels = [*(version.version for version in registry.versions(store, name)), *registry.aliases(store, name)]
    return [f"{name}@{label}" for label in labels]


def _load_spec(context: click.Context, parameter: click.Parameter, path: Path) -> JobSpec:
    """Read the job file before the heavy imports, so that a mistake in it is reported at once."""
    from ray_jobs.spec import load_spec

    return load_spec(path)


JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
UNGATED = click.option(
    "--ungated", is_flag=True, help="Accept versions that did not pass the gate; the audit log records it."
)
YES = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
JOB = click.argument("job", shell_complete=job_ids)
SPEC = click.argument("spec", type=click.Path(dir_okay=False, path_type=Path), callback=_load_spec)
SINCE = click.option("--since", type=_DATE, metavar="DATE", help=f"First day (UTC).  [default: {DEFAULT_DAYS} days]")
UNTIL = click.option("--until", type=_DATE, metavar="DATE", help="Last day (UTC).  [default: today]")


def run(cli: click.Command, *, prog_name: str) -> int:
    """Run the command line; returns the exit code. An error prints one line and its details, not a traceback."""
    try:
        code = cli.main(prog_name=prog_name, standalone_mode=False)
    except click.ClickException as error:
        return _report_usage_error(error)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:  # `kitae status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001  # outermost handler: reported below, with the traceback after --debug
        if "--debug" in sys.argv[1:2]:
            traceback.print_exc()
        return _report(error)
    return code if isinstance(code, int) else 0


def _report_usage_error(error: click.ClickException) -> int:
    click.echo(f"error: {error.format_message()}", err=True)
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        click.echo(f"  - {context.get_usage()}", err=True)
        click.echo(f"  - `{context.command_path} --help` shows more", err=True)
    return error.exit_code


def _report(error: Exception) -> int:
    # Ray wraps the exception of a task or an actor; report the original.
    cause = getattr(error, "cause", None)
    known = cause if isinstance(cause, KitaeError) else error
    if isinstance(known, KitaeError):
        click.echo(f"error: {known}", err=True)
        return known.exit_code
    click.echo(f"error: unexpected {type(error).__name__}: {error}", err=True)
    click.echo("  - `kitae --debug …` shows the traceback; please report it", err=True)
    return 1
