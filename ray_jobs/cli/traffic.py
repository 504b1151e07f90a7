"""`promote`, `rollback`, `traffic`, `share`, `unshare`: which version answers, and for whom.

Owns what these commands print. Does not know how a policy or a share is kept (`deploy.traffic`, `registry.shares`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ray_jobs.cli import session

if TYPE_CHECKING:
    from ray_jobs.deploy.traffic import Bounds
    from ray_jobs.storage import Store

_NAME = click.argument("name", shell_complete=session.model_names)
_ALIAS = click.option("--alias", default="champion", show_default=True, help="The alias it is about.")
_BOUNDS = ("--max-error-rate", "--max-p95-s", "--min-requests")


@click.command()
@_NAME
@click.argument("version")
@_ALIAS
@click.option(
    "--canary",
    "percent",
    type=click.FloatRange(0, 100, min_open=True),
    help="Percent of the requests that VERSION answers, instead of all of them.",
)
@click.option("--shadow", is_flag=True, help="VERSION gets a copy of each request; its answers are dropped.")
@click.option("--max-error-rate", type=click.FloatRange(0, 1), help="Taken back over this share of 5xx. [0.05]")
@click.option("--max-p95-s", type=click.FloatRange(0, min_open=True), help="Taken back if the p95 is longer. [any]")
@click.option("--min-requests", type=click.IntRange(1, 1000), help="Nothing is judged by fewer. [20]")
@click.option("--watch-s", type=click.FloatRange(0, min_open=True), help="How long a promotion is watched. [1800]")
def promote(
    name: str,
    version: str,
    alias: str,
    percent: float | None,
    shadow: bool,
    max_error_rate: float | None,
    max_p95_s: float | None,
    min_requests: int | None,
    watch_s: float | None,
) -> None:
    """Let VERSION answer for model NAME: all requests, a share of them (--canary), or unseen (--shadow).

    A canary goes by itself when it passes a bound. A whole promotion does if bounds are given.

    \b
    Example:
      kitae promote faq-chat 4 --shadow
      kitae promote faq-chat 4 --canary 10 --max-p95-s 2.0
      kitae promote faq-chat 4
    """
    from ray_jobs.deploy import traffic

    name = _registry_name(name)
    given = {"max_error_rate": max_error_rate, "max_p95_s": max_p95_s, "min_requests": min_requests}
    bounds = traffic.Bounds.model_validate({key: value for key, value in given.items() if value is not None})
    bounded = any(value is not None for value in given.values())
    _check_options(percent, shadow, bounded, watch_s)
    store = session.open_store(check=False)
    if shadow:
        click.echo(traffic.start_shadow(store, name, version, alias=alias))
    elif percent is not None:
        click.echo(traffic.start_canary(store, name, version, percent=percent, alias=alias, bounds=bounds))
    else:
        _promote_whole(store, name, version, alias, bounds if bounded or watch_s else None, watch_s)


@click.command()
@_NAME
@_ALIAS
def rollback(name: str, alias: str) -> None:
    """End the canary and shadow of model NAME, or if there are none let its alias point where it did before.

    Rolled back twice, the alias is where it was.

    \b
    Example:
      kitae rollback faq-chat
    """
    from ray_jobs.deploy import traffic

    store = session.open_store(check=False)
    name = _registry_name(name)
    click.echo(traffic.roll_back(store, name, alias=alias))
    _follow(store, name, alias)


@click.command()
@_NAME
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def traffic(name: str, as_json: bool) -> None:
    """Show which versions of model NAME get which requests, and what was rolled back and why.

    \b
    Example:
      kitae traffic faq-chat
    """
    from ray_jobs import registry
    from ray_jobs.deploy import traffic as policies

    store = session.open_store(check=False)
    name = _registry_name(name)
    registry.get(store, name)  # RegistryError, naming the nearest
    policy, aliases = policies.read(store, name), registry.aliases(store, name)
    if as_json:
        document = None if policy is None else policy.model_dump(mode="json")
        session.print_json({"name": name, "aliases": aliases, "policy": document})
        return
    for alias, version in sorted(aliases.items()):
        click.echo(f"{name}@{alias} is version {version}")
    for line in policies.told(policy, name) or ["no canary, no shadow: the alias alone decides"]:
        click.echo(line)


@click.command()
@_NAME
@click.option("--team", "teams", multiple=True, help="A team that may use it; may be given several times.")
@click.option("--everyone", is_flag=True, help="Every team.")
def share(name: str, teams: tuple[str, ...], everyone: bool) -> None:
    """Let other teams use model NAME: all of its versions.

    \b
    Example:
      kitae share faq-chat --team support
    """
    from ray_jobs.registry import shares

    name = _registry_name(name)
    shared = shares.share(session.open_store(check=False), name, teams=teams, everyone=everyone)
    click.echo(f"{name} is shared with {shares.told(shared)}")


@click.command()
@_NAME
@click.option("--team", "teams", multiple=True, help="The team that may no longer use it.")
@click.option("--everyone", is_flag=True, help="No longer every team; those that are named stay.")
def unshare(name: str, teams: tuple[str, ...], everyone: bool) -> None:
    """Take back what `kitae share` gave; without an option, all of it.

    \b
    Example:
      kitae unshare faq-chat --team support
    """
    from ray_jobs.registry import shares

    name = _registry_name(name)
    shared = shares.unshare(session.open_store(check=False), name, teams=teams, everyone=everyone)
    click.echo(f"{name} is shared with {shares.told(shared)}")


def _promote_whole(
    store: Store, name: str, version: str, alias: str, bounds: Bounds | None, watch_s: float | None
) -> None:
    from ray_jobs.deploy import traffic

    click.echo(traffic.promote(store, name, version, alias=alias, bounds=bounds, watch_s=watch_s or traffic.WATCH_S))
    _follow(store, name, alias)


def _follow(store: Store, name: str, alias: str) -> None:
    """Bring up the version that the alias points at now, where it has an engine of its own."""
    from ray_jobs import deploy, registry
    from ray_jobs.deploy import records
    from ray_jobs.jobs.progress import duration

    record, now = records.read(store, name), registry.read_alias(store, name, alias)
    if record is None or now is None:
        return
    if alias == registry.CHAMPION and record.label not in (None, alias):
        click.echo(f"requests to {name} alone go to {name}@{record.label}, as it was deployed: kitae deploy {name}")
        return
    # An adapter's versions are all at hand; an engine of its own runs what the bare name means.
    if record.version in (None, now.version) or alias != (record.label or registry.CHAMPION):
        return

    def tell(line: str, seconds: float) -> None:
        click.echo(f"{duration(seconds):>6}  {line}", err=True)

    # The champion's record has no label: while an engine starts, the name alone means the version that runs.
    ref = name if alias == registry.CHAMPION else f"{name}@{alias}"
    click.echo(deploy.deploy(store, ref, deploy.ServeSettings.from_env(), progress=tell))


def _check_options(percent: float | None, shadow: bool, bounded: bool, watch_s: float | None) -> None:
    if percent is not None and shadow:
        raise click.UsageError("a version is either a canary or a shadow: leave --canary or --shadow out")
    if shadow and bounded:
        raise click.UsageError(f"a shadow has no bounds, for nobody sees its answers: leave {', '.join(_BOUNDS)} out")
    if watch_s is not None and (shadow or percent is not None):
        raise click.UsageError("--watch-s is for a whole promotion: a canary is judged for as long as it is on")


def _registry_name(name: str) -> str:
    from ray_jobs.registry import api_names

    return api_names.registry_ref(name)
