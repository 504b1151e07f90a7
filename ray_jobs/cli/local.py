"""`local`: the local service of this directory: store, Ray and endpoint."""

from __future__ import annotations

import os
import shlex

import click

from ray_jobs.cli import session


@click.group()
def local() -> None:
    """Start and stop the local service of this directory: an S3 store, a Ray cluster and the endpoint, in .kitae/.

    \b
    Example:
      kitae local up
      eval "$(kitae local env)"
    """


@local.command()
def up() -> None:
    """Start the parts that do not run: store, Ray, endpoint and recorded deployments. KITAE_PORT is the endpoint's port
    (8000).

    \b
    Example:
      KITAE_PORT=9000 kitae local up
    """
    from ray_jobs import deploy
    from ray_jobs import local as service
    from ray_jobs.storage import Store

    service.up()
    os.environ.update(service.environment())
    deploy.reapply(Store.from_env(check=False), deploy.ServeSettings.from_env(), progress=session.print_progress)


@local.command()
def down() -> None:
    """Stop the processes that `up` started. The store's contents stay.

    \b
    Example:
      kitae local down
    """
    from ray_jobs import local as service

    service.down()


@local.command()
@session.JSON
def status(as_json: bool) -> None:
    """Show the state and address of each part.

    \b
    Example:
      kitae local status
    """
    from ray_jobs import local as service

    found = service.status()
    if as_json:
        session.print_json(found)
        return
    if found["store"] is None:
        click.echo(f"no service in {found['directory']}; `kitae local up` starts one")
        return
    store, ray, endpoint = found["store"], found["ray"], found["endpoint"]
    for name, runs, where in (
        ("store", store["healthy"], f"{store['uri']} at {store['endpoint_url']}"),
        ("ray", ray["healthy"], f"{ray['address']}, dashboard {ray['dashboard_url']}"),
        ("endpoint", endpoint["listening"], endpoint["url"]),
    ):
        click.echo(f"{name:<9} {'runs' if runs else 'does not run':<13} {where}")
    click.echo(f"{'logs':<9} {'':<13} {found['logs']}")


@local.command()
def env() -> None:
    """Print environment variables with the addresses and credentials of this service.

    \b
    Example:
      eval "$(kitae local env)"
    """
    from ray_jobs import local as service

    for name, value in service.environment().items():
        click.echo(f"export {name}={shlex.quote(value)}")
