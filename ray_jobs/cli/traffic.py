"""`promote`, `rollback`, `traffic`, `share`, `unshare`: which versions answer, and the teams that may ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ray_jobs.cli import audit, session

if TYPE_CHECKING:
    from ray_jobs.storage import Store
    from ray_jobs.tenancy.audit import Action


def _registry_name(context: click.Context, parameter: click.Parameter, name: str) -> str:
    from ray_jobs.registry import api_names

    return api_names.registry_ref(name)


_NAME = click.argument("name", shell_complete=session.model_names, callback=_registry_name)
_ALIAS = click.option("--alias", default="champion", show_default=True, help="Alias to change.")


@click.command()
@_NAME
@click.argument("version")
@_ALIAS
@click.option(
    "--canary", "percent", type=click.FloatRange(0, 100, min_open=True), help="Percent of requests, instead of all."
)
@click.option("--shadow", is_flag=True, help="Send VERSION a copy of each request; its answers are dropped.")
@click.option("--max-error-rate", type=click.FloatRange(0, 1), help="Roll back above this share of 5xx. [0.05]")
@click.option("--max-p95-s", type=click.FloatRange(0, min_open=True), help="Roll back above this p95. [no limit]")
@click.option("--min-requests", type=click.IntRange(1, 1000), help="Fewest requests to judge by. [20]")
@session.UNGATED
@click.option(
    "--watch-s", type=click.FloatRange(0, min_open=True), help="Seconds for which a promotion is watched. [1800]"
)
def promote(
    name: str,
    version: str,
    alias: str,
    percent: float | None,
    shadow: bool,
    ungated: bool,
    watch_s: float | None,
    **limits: float | None,
) -> None:
    """Send requests for model NAME to VERSION: all, a share (--canary), or copies (--shadow).

    A canary is rolled back automatically when it passes a bound; so is a whole promotion with bounds.

    \b
    Example:
      kitae promote faq-chat 4 --shadow
      kitae promote faq-chat 4 --canary 10 --max-p95-s 2.0
      kitae promote faq-chat 4
    """
    from ray_jobs import registry
    from ray_jobs.deploy import traffic

    given = {limit: value for limit, value in limits.items() if value is not None}
    if percent is not None and shadow:
        raise click.UsageError("a version is either a canary or a shadow: leave --canary or --shadow out")
    if shadow and given:
        bounds = "--max-error-rate, --max-p95-s, --min-requests"
        raise click.UsageError(f"a shadow has no bounds, since its answers are dropped: leave {bounds} out")
    if watch_s is not None and (shadow or percent is not None):
        raise click.UsageError("--watch-s is for a whole promotion: a canary is judged until it ends")
    limits_set, store = traffic.Bounds.model_validate(given), session.open_store(check=False)
    action: Action = "traffic.shadow" if shadow else "traffic.canary" if percent is not None else "traffic.promote"
    team, target = registry.owner(store, name), f"{name}@{alias}"
    with audit.recorded(store, action, target, team=team, version=version, percent=percent, ungated=ungated):
        if shadow:
            done = traffic.start_shadow(store, name, version, alias=alias, ungated=ungated)
        elif percent is not None:
            done = traffic.start_canary(
                store, name, version, percent=percent, alias=alias, bounds=limits_set, ungated=ungated
            )
        else:
            watched = limits_set if given or watch_s else None
            watch_s = watch_s or traffic.WATCH_S
            done = traffic.promote(store, name, version, alias=alias, bounds=watched, watch_s=watch_s, ungated=ungated)
    click.echo(done)
    if action == "traffic.promote":
        _follow(store, name, alias)


@click.command()
@_NAME
@_ALIAS
def rollback(name: str, alias: str) -> None:
    """End the canary and shadow of model NAME, or without any point its alias at the previous version.

    Two rollbacks cancel out.

    \b
    Example:
      kitae rollback faq-chat
    """
    from ray_jobs import registry
    from ray_jobs.deploy import traffic

    store = session.open_store(check=False)
    with audit.recorded(store, "traffic.rollback", f"{name}@{alias}", team=registry.owner(store, name)):
        done = traffic.roll_back(store, name, alias=alias)
    click.echo(done)
    _follow(store, name, alias)


@click.command()
@_NAME
@session.JSON
def traffic(name: str, as_json: bool) -> None:
    """Show the aliases of model NAME, its canary and shadow, and the last rollback with its reason.

    \b
    Example:
      kitae traffic faq-chat
    """
    from ray_jobs import registry
    from ray_jobs.deploy import traffic as policies

    store = session.model_workspace(name)
    registry.get(store, name)  # RegistryError, naming the nearest
    policy, aliases = policies.read(store, name), registry.aliases(store, name)
    if as_json:
        document = None if policy is None else policy.model_dump(mode="json")
        session.print_json({"name": name, "aliases": aliases, "policy": document})
        return
    for alias, version in sorted(aliases.items()):
        click.echo(f"{name}@{alias} is version {version}")
    for line in policies.describe(policy, name) or ["no canary, no shadow: the alias alone decides"]:
        click.echo(line)


@click.command()
@_NAME
@click.option("--team", "teams", multiple=True, help="A team that may use it; repeatable.")
@click.option("--everyone", is_flag=True, help="Every team.")
@session.UNGATED
def share(name: str, teams: tuple[str, ...], everyone: bool, ungated: bool) -> None:
    """Let other teams use the versions of model NAME that passed the gate.

    \b
    Example:
      kitae share faq-chat --team support
    """
    from ray_jobs import registry
    from ray_jobs.registry import shares

    store = session.open_store(check=False)
    team, whom = registry.owner(store, name), [*teams, *(["everyone"] if everyone else [])]
    with audit.recorded(store, "share.add", name, team=team, teams=whom, ungated=ungated):
        shared = shares.share(store, name, teams=teams, everyone=everyone, ungated=ungated)
    click.echo(f"{name} is shared with {shares.describe(shared)}")


@click.command()
@_NAME
@click.option("--team", "teams", multiple=True, help="A team that may no longer use it; repeatable.")
@click.option("--everyone", is_flag=True, help="Revoke the share with every team; named teams keep theirs.")
def unshare(name: str, teams: tuple[str, ...], everyone: bool) -> None:
    """Revoke shares of model NAME; without an option, all of them.

    \b
    Example:
      kitae unshare faq-chat --team support
    """
    from ray_jobs import registry
    from ray_jobs.registry import shares

    store = session.open_store(check=False)
    team, whom = registry.owner(store, name), [*teams, *(["everyone"] if everyone else [])]
    with audit.recorded(store, "share.remove", name, team=team, teams=whom or ["all"]):
        shared = shares.unshare(store, name, teams=teams, everyone=everyone)
    click.echo(f"{name} is shared with {shares.describe(shared)}")


def _follow(store: Store, name: str, alias: str) -> None:
    """Deploy the version that the alias points at, if it has its own engine."""
    from ray_jobs import deploy, registry
    from ray_jobs.deploy import records

    home = registry.workspace_of(store, name)
    record, now = records.read(home, name), registry.read_alias(home, name, alias)
    if record is None or now is None:
        return
    if alias == registry.CHAMPION and record.label not in (None, alias):
        click.echo(f"requests to {name} alone go to {name}@{record.label}, as deployed: kitae deploy {name}")
        return
    # All versions of an adapter are loadable; a version's own engine runs what the bare name resolves to.
    if record.version in (None, now.version) or alias != (record.label or registry.CHAMPION):
        return
    # The champion's record has no label: while an engine starts, the bare name resolves to the running version.
    ref = name if alias == registry.CHAMPION else f"{name}@{alias}"
    # The alias was moved just now: its version passed the gate, or the operator accepted it.
    settings = deploy.ServeSettings.from_env()
    click.echo(deploy.deploy(home, ref, settings, ungated=True, progress=session.print_progress))
