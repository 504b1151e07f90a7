"""`webhooks`: a team's HTTP endpoints for the ends of its jobs."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import click

from ray_jobs.cli import audit, session
from ray_jobs.errors import ServingError, one_line

if TYPE_CHECKING:
    from ray_jobs.tenancy.webhooks import EventType

# Equal to ray_jobs.tenancy.webhooks.EVENTS, whose import is too slow for --help.
_EVENTS = (
    *("fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"),
    *("batch.completed", "batch.failed", "batch.expired", "batch.cancelled"),
)
_SHOWN_CHARACTERS = 300

_TEAM = click.option("--team", metavar="TEAM", required=True, help="Team that owns the endpoint.")
_ID = click.argument("endpoint_id", metavar="ID")


@click.group()
def webhooks() -> None:
    """Notify a team's HTTP endpoints when a job has succeeded, failed or was cancelled (docs/webhooks.md).

    \b
    Example:
      kitae webhooks add https://hooks.example.com/kitae --team blue
      kitae webhooks list --team blue
    """


@webhooks.command()
@click.argument("url")
@_TEAM
@click.option(
    "--event", "events", type=click.Choice(_EVENTS), multiple=True, help="Event to send; repeatable.  [default: all]"
)
def add(url: str, team: str, events: tuple[EventType, ...]) -> None:
    """Send TEAM's events to URL, and print the secret that verifies them; it is not shown again.

    \b
    Example:
      kitae webhooks add https://hooks.example.com/kitae --team blue --event fine_tuning.job.failed
    """
    from ray_jobs.tenancy import webhooks

    policy = webhooks.Policy.from_env(os.environ)
    store = session.open_store(check=False)
    host = re.split(r"[/?#]", url.partition("://")[2])[0].rpartition("@")[2]  # the rest may be a secret
    with audit.recorded(store, "webhook.add", host, team=team):
        endpoint = webhooks.add(store, team, url, events or webhooks.EVENTS, policy)
    click.echo(f"{endpoint.id}: {', '.join(endpoint.events)}")
    click.echo(f"secret: {endpoint.secret}  (not shown again)")


@webhooks.command(name="list")
@_TEAM
@session.JSON
def list_(team: str, as_json: bool) -> None:
    """Show TEAM's endpoints, without their secrets.

    \b
    Example:
      kitae webhooks list --team blue
    """
    from ray_jobs.tenancy import webhooks

    found = webhooks.endpoints(session.open_store(check=False), team)
    if as_json:
        session.print_json([endpoint.public() for endpoint in found])
        return
    rows = []
    for endpoint in found:
        events = ", ".join(event.removeprefix("fine_tuning.job.") for event in endpoint.events)
        state = f"off: {endpoint.disabled_why}" if endpoint.disabled_at else "on"
        if endpoint.breaker is not None and not endpoint.disabled_at:
            until = endpoint.breaker.until.isoformat(timespec="seconds")
            state = f"paused until {until}: {endpoint.breaker.failures} failures in a row, last: {endpoint.breaker.why}"
        rows.append((endpoint.id, endpoint.url, events, state))
    session.print_table(["id", "url", "events", "state"], rows, empty=f"team {team} has no webhooks")


@webhooks.command()
@_ID
@_TEAM
def remove(endpoint_id: str, team: str) -> None:
    """Delete the endpoint ID and its secret.

    \b
    Example:
      kitae webhooks remove we_4f0c2a9b3d --team blue
    """
    from ray_jobs.tenancy import webhooks

    store = session.open_store(check=False)
    with audit.recorded(store, "webhook.remove", endpoint_id, team=team):
        webhooks.remove(store, team, endpoint_id)
    click.echo(f"{endpoint_id} is removed")


@webhooks.command()
@_ID
@_TEAM
def test(endpoint_id: str, team: str) -> None:
    """Send the endpoint ID one event of a job that does not exist, from this machine, and show the answer.

    \b
    Example:
      kitae webhooks test we_4f0c2a9b3d --team blue
    """
    import asyncio

    from ray_jobs.tenancy import webhooks

    store = session.open_store(check=False)
    endpoint = webhooks.get(store, team, endpoint_id)
    sender = webhooks.Sender(store, webhooks.Policy.from_env(os.environ))
    answer = asyncio.run(sender.send(endpoint, webhooks.test_event(endpoint, store.now())))
    if answer.status is None:
        raise ServingError(f"{endpoint_id} did not answer: {answer.why}: {answer.detail}")
    text = one_line(answer.body.decode(errors="replace")).strip()
    line = f"{endpoint_id} answered {answer.status} after {answer.seconds:.2f} s"
    line += f": {text[:_SHOWN_CHARACTERS]}" if text else ""
    if answer.outcome != "delivered":
        raise ServingError(line)
    click.echo(line)
