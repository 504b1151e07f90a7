"""`local`: the service of this directory, with its store, its Ray and its endpoint.

Owns what these commands print. Does not know how anything is started (ray_jobs.local).
"""

from __future__ import annotations

import shlex

import click

from ray_jobs.cli import session


@click.group()
def local() -> None:
    """Start and stop the service of this directory: an S3 store, a Ray cluster and the endpoint, all under .kitae/.

    \b
    Example:
      kitae local up
      eval "$(kitae local env)"
    """


@local.command()
def up() -> None:
    """Start what is not running yet. KITAE_PORT names the endpoint's port (8000).

    \b
    Example:
      KITAE_PORT=9000 kitae local up
    """
    from ray_jobs import local as service

    service.up()


@local.command()
def down() -> None:
    """Stop what `up` started, and nothing else. The store's contents stay.

    \b
    Example:
      kitae local down
    """
    from ray_jobs import local as service

    service.down()


@local.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(as_json: bool) -> None:
    """Show what runs, and where.

    \b
    Example:
      kitae local status
    """
    from ray_jobs import local as service

    session.print_json(service.status())


@local.command()
def env() -> None:
    """Print the variables that point other programs at this service. They hold its credentials.

    \b
    Example:
      eval "$(kitae local env)"
    """
    from ray_jobs import local as service

    for name, value in service.environment().items():
        click.echo(f"export {name}={shlex.quote(value)}")
