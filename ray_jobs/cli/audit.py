"""`audit`: who changed what and when; and the entries that other commands write."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

import click

from ray_jobs.cli import session

if TYPE_CHECKING:
    from ray_jobs.storage import Store
    from ray_jobs.tenancy.audit import Action, Entry, Value


@click.command()
@click.option("--team", metavar="TEAM", help="Only what belongs to this team.  [default: everything]")
@session.SINCE
@session.UNTIL
@click.option("--action", metavar="ACTION", help="Only this action (alias.set), or all of a subject (key).")
@session.JSON
def audit(team: str | None, since: datetime | None, until: datetime | None, action: str | None, as_json: bool) -> None:
    """Show the audit log: keys, names, shares, deletions, quotas and budgets, with who changed what and when.

    The name of a command line's user is what that machine says; an API key's is its id.

    \b
    Example:
      kitae audit
      kitae audit --team blue --action share --since 2026-11-01
      kitae audit --json | jq '.[] | select(.details.ungated)'
    """
    from ray_jobs.tenancy import audit as log

    first, last = session.days(since, until)
    store = session.open_store(check=False)
    entries = log.read(store, first, last, team=team, action=action)
    if as_json:
        session.print_json([entry.model_dump(mode="json") for entry in entries])
        return
    rows = [
        (f"{e.at:%Y-%m-%d %H:%M:%S}", e.actor.name, e.actor.via, e.action, e.team or "-", e.target, _details(e))
        for e in entries
    ]
    columns = ["at (UTC)", "who", "by", "action", "team", "what", "details"]
    session.print_table(columns, rows, empty=f"nothing in the audit log from {first} to {last} in {store.uri()}")


@contextmanager
def recorded(store: Store, action: Action, target: str, *, team: str | None = None, **details: Value) -> Iterator[None]:
    """Write this command's entry, then run the block; details of None or False are left out."""
    from ray_jobs.tenancy import audit as log

    actor = log.Actor(name=_who()[:200], via="cli")
    shown = {name: value for name, value in details.items() if value is not None and value is not False}
    with log.recorded(store, actor, action, target, team=team, details=shown):
        yield


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _details(entry: Entry) -> str:
    shown = [
        f"{name} {', '.join(value) if isinstance(value, list) else value}" for name, value in entry.details.items()
    ]
    return "; ".join([*shown, *([f"not done: {entry.failed}"] if entry.failed else [])])
