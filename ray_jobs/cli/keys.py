"""`keys`: API keys of the endpoint."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from ray_jobs.cli import audit, session

if TYPE_CHECKING:
    from ray_jobs.tenancy.api_keys import ApiKey, Scope

_LIMIT = click.IntRange(min=1)


@click.group()
def keys() -> None:
    """Create, list and revoke the API keys of teams.

    \b
    Example:
      kitae keys create --team search --name "nightly evaluation"
      kitae keys list
      kitae keys revoke k3v7a2mzq4xw6yhd
    """


@keys.command()
@click.option("--team", required=True, help="Team whose jobs, files and models the key can access.")
@click.option("--name", required=True, help="Purpose of the key.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["inference", "fine-tuning", "read", "admin"]),
    help="What the key may do; repeat it for several. Default: all but admin.",
)
@click.option("--expires-in-days", type=_LIMIT, help="Days until the key expires. Default: never.")
@click.option("--requests-per-minute", type=_LIMIT, help="Requests started per minute.")
@click.option("--tokens-per-minute", type=_LIMIT, help="Prompt and completion tokens per minute.")
@click.option("--concurrent-requests", type=_LIMIT, help="Requests processed at the same time.")
@click.option("--concurrent-jobs", type=_LIMIT, help="Fine-tuning jobs that have not ended.")
@click.option("--max-body-bytes", type=click.IntRange(min=1024), help="Longest request body.")
@session.JSON
def create(
    team: str, name: str, scopes: tuple[Scope, ...], expires_in_days: int | None, as_json: bool, **limits: int | None
) -> None:
    """Create a key and print it. Only its digest is stored, so it cannot be shown again.

    Scopes: `inference` calls models; `fine-tuning` has the team's files, jobs and models; `read` only reads them;
    `admin` may do everything for every team, as the operator's key.

    Without an option, the endpoint's default applies (KITAE_KEY_LIMITS). Limits of requests and tokens apply per
    replica of the ingress.

    \b
    Example:
      kitae keys create --team search --name "nightly evaluation"
      kitae keys create --team ads --name app --scope inference --requests-per-minute 600 --expires-in-days 90
    """
    from ray_jobs.tenancy import api_keys as keys

    store = session.open_store(check=False)
    expires_at = None if expires_in_days is None else store.now() + timedelta(days=expires_in_days)
    granted = scopes or keys.DEFAULT_SCOPES
    with audit.recorded(store, "key.create", name, team=team, scopes=list(granted)):
        key, secret = keys.create(store, team, name, keys.Limits(**limits), scopes=granted, expires_at=expires_at)
    if as_json:
        session.print_json(_as_json(key) | {"key": secret})
    else:
        click.echo(f"key {key.id} of team {key.team}; it is not shown again:", err=True)
        click.echo(secret)


@keys.command("list")
@click.option("--team", help="Only this team's keys.")
@session.JSON
def list_command(team: str | None, as_json: bool) -> None:
    """Show the keys, including revoked and expired ones, without their secrets.

    \b
    Example:
      kitae keys list
      kitae keys list --team search --json
    """
    from ray_jobs.tenancy import api_keys as keys

    store = session.open_store(check=False)
    found = keys.list_keys(store, team=team)
    if as_json:
        session.print_json([_as_json(key) for key in found])
        return
    rows = [
        (key.id, key.team, key.name, _state(key), ", ".join(key.scopes), _limits(key), f"{key.created_at:%Y-%m-%d}")
        for key in found
    ]
    whose = "" if team is None else f" of team {team}"
    session.print_table(
        ["id", "team", "name", "state", "scopes", "limits", "created"],
        rows,
        empty=f"no API keys{whose} in {store.uri()} yet; `kitae keys create` creates one",
    )


@keys.command()
@click.argument("key_id", metavar="ID", shell_complete=session.key_ids)
@session.YES
def revoke(key_id: str, yes: bool) -> None:
    """Revoke key ID permanently. The endpoint refuses it within seconds.

    \b
    Example:
      kitae keys revoke k3v7a2mzq4xw6yhd
    """
    from ray_jobs.tenancy import api_keys as keys

    store = session.open_store(check=False)
    wanted = keys.id_of(key_id) or key_id  # a leaked key may be given whole
    key = keys.read(store, wanted) if wanted.isalnum() else None
    if key is not None and not yes and key.revoked_at is None:
        click.confirm(f"Revoke key {key.id} ({key.name!r} of team {key.team})?", abort=True)
    if key is None:
        key = keys.revoke(store, wanted)  # ApiKeyError, naming the nearest
    else:
        with audit.recorded(store, "key.revoke", key.id, team=key.team, name=key.name):
            key = keys.revoke(store, wanted)
    click.echo(f"key {key.id} ({key.name!r} of team {key.team}) is revoked since {key.revoked_at:%Y-%m-%d %H:%M} UTC")


def _as_json(key: ApiKey) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude={"digest"}) | {"state": key.state(datetime.now(UTC))}


def _state(key: ApiKey) -> str:
    state = key.state(datetime.now(UTC))
    return f"{state} until {key.expires_at:%Y-%m-%d}" if state == "active" and key.expires_at is not None else state


def _limits(key: ApiKey) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in key.limits if value is not None) or "-"
