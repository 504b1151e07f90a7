"""`completions`: stored chat completions as rows for training, and which teams store none."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ray_jobs.cli import audit, session
from ray_jobs.errors import DataError


@click.group()
def completions() -> None:
    """Make rows of stored chat completions, and set which teams store none (docs/api.md).

    \b
    Example:
      kitae completions export --team blue --model faq --metadata good=yes --out rows.jsonl
      kitae completions forbid blue
    """


def _pairs(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    found = dict(each.partition("=")[::2] for each in given)
    if wrong := [each for each in given if "=" not in each]:
        raise click.BadParameter(f"{wrong[0]!r} is not a pair: write KEY=VALUE")
    return found


@completions.command()
@click.option("--team", required=True, help="Team whose completions to export.")
@click.option("--model", help="Only answers of this model, by its name with or without the version.")
@click.option(
    "--metadata",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_pairs,
    help="Only completions with this pair; repeatable.",
)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
def export(team: str, model: str | None, metadata: dict[str, str], out: Path) -> None:
    """Write stored chat completions as JSON lines with `messages` and `tools`, which `data.train` and uploads read.

    A row is the conversation of a request with the model's answer. Answers that were cut off are left out.

    \b
    Example:
      kitae completions export --team blue --model faq --metadata good=yes --out rows.jsonl
    """
    from ray_jobs.tenancy.answers.rows import AnswerFilter, stored_rows

    store, count = session.open_store(check=False), 0
    partial = out.with_name(f"{out.name}.part")
    with partial.open("w", encoding="utf-8") as file:
        for row in stored_rows(store, team, AnswerFilter(model=model, metadata=metadata)):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    if not count:
        partial.unlink()
        raise DataError(f"team {team} has no stored chat completion that matches; requests store with store: true")
    partial.replace(out)
    click.echo(f"{count} rows in {out}")


@completions.command()
@click.argument("team")
def forbid(team: str) -> None:
    """Store no answers of TEAM: `store: true` is refused, and responses are not stored. Takes effect within seconds.

    Answers that are stored already stay until they are deleted or expire.

    \b
    Example:
      kitae completions forbid blue
    """
    _set_policy(team, allowed=False)


@completions.command()
@click.argument("team")
def allow(team: str) -> None:
    """Store the answers of TEAM again, as those of a team without a policy.

    \b
    Example:
      kitae completions allow blue
    """
    _set_policy(team, allowed=True)


@completions.command()
@session.JSON
def policies(as_json: bool) -> None:
    """Show the teams whose answers are not stored, and those that are allowed again.

    \b
    Example:
      kitae completions policies
    """
    from ray_jobs.tenancy.answers import policy

    store = session.open_store(check=False)
    found = policy.read_all(store)
    if as_json:
        session.print_json([{"team": team, **each.model_dump(mode="json")} for team, each in found.items()])
        return
    rows = [
        (team, "on" if each.store else "off", f"{each.set_at:%Y-%m-%d %H:%M}" if each.set_at else "-")
        for team, each in found.items()
    ]
    session.print_table(["team", "store", "set at (UTC)"], rows, empty="no team has a policy: answers may be stored")


def _set_policy(team: str, *, allowed: bool) -> None:
    from ray_jobs.tenancy.answers import policy

    store = session.open_store(check=False)
    with audit.recorded(store, "completions.policy", team, team=team, storing="on" if allowed else "off"):
        policy.set_policy(store, team, allowed=allowed)
    click.echo(f"answers of team {team} {'may be' if allowed else 'are not'} stored")
