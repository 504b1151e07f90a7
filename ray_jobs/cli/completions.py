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
      kitae completions policy blue --store off
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
@click.argument("team", required=False)
@click.option("--store", "wanted", type=click.Choice(["on", "off"]), help="Whether the answers of TEAM may be stored.")
@session.JSON
def policy(team: str | None, wanted: str | None, as_json: bool) -> None:
    """Show which teams have a policy for stored answers, or set that of TEAM; a team without one stores.

    With `off` a request with `store: true` is refused, and responses are not stored. It takes effect within seconds.
    Answers that are stored already stay until they are deleted or expire.

    \b
    Example:
      kitae completions policy
      kitae completions policy blue --store off
    """
    from ray_jobs.tenancy.answers import policy as policies

    store = session.open_store(check=False)
    if wanted is not None:
        if team is None:
            raise click.UsageError("--store needs a TEAM")
        with audit.recorded(store, "completions.policy", team, team=team, store=wanted):
            policies.set_policy(store, team, allowed=wanted == "on")
    found = {name: each for name, each in policies.read_all(store).items() if team in (None, name)}
    if as_json:
        session.print_json([{"team": name, **each.model_dump(mode="json")} for name, each in found.items()])
        return
    rows = [
        (name, "on" if each.store else "off", f"{each.set_at:%Y-%m-%d %H:%M}" if each.set_at else "-")
        for name, each in found.items()
    ]
    session.print_table(["team", "store", "set at (UTC)"], rows, empty="no team has a policy: answers may be stored")
