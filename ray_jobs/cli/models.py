"""`bases`, `models`, `deploy`, `undeploy`: base models, registered versions and their deployment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from ray_jobs.cli import audit, session

if TYPE_CHECKING:
    from ray_jobs.registry.model import ModelVersion

_NAME = click.argument("name", shell_complete=session.model_names)


@click.group(invoke_without_command=True, options_metavar="[--json]")
@session.JSON
@click.pass_context
def bases(context: click.Context, as_json: bool) -> None:
    """Show the base models that jobs may name, which are those that the fine-tuning API offers.

    \b
    Example:
      kitae bases
      kitae bases add HuggingFaceTB/SmolLM2-135M-Instruct
      kitae bases remove smollm2-135m-instruct
    """
    if context.invoked_subcommand is not None:
        return
    from ray_jobs.registry import catalogue

    store = session.open_store(check=False)
    entries = catalogue.entries(store)
    if as_json:
        session.print_json([entry.model_dump(mode="json") for entry in entries])
        return
    columns = ["base", "tasks", "architecture", "longest row", "source"]
    rows = [(e.name, ", ".join(e.tasks), e.architecture, str(e.max_tokens or "?"), e.source) for e in entries]
    session.print_table(columns, rows, empty=f"no bases in {store.uri()} yet; `kitae bases add SOURCE` adds one")


def _engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a base's engine, which all teams share; None: unchanged."""
    for option in (
        click.option("--reasoning-parser", help="vLLM's parser of reasoning, instead of the chat template's; or none."),
        click.option("--tool-parser", help="vLLM's parser of tool calls, instead of the chat template's; or none."),
        click.option("--kv-cache-gib", type=float, help="Memory of a CPU engine's key/value cache, in GiB."),
        click.option("--max-queued-requests", type=int, help="Most requests that wait; more are answered 429."),
        click.option("--max-ongoing-requests", type=int, help="Most requests that it processes at once."),
        click.option("--max-lora-rank", type=int, help="Largest rank of the adapters that it serves."),
        click.option("--max-loras", type=int, help="Most adapters that it holds in memory at once."),
        click.option("--max-model-len", type=int, help="Longest prompt plus answer, in tokens."),
        click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Precision that it serves in."),
    ):
        command = option(command)
    return command


@bases.command()
@click.argument("source")
@click.option("--name", help="Its name. Default: the last part of SOURCE, in lower case.")
@_engine_options
def add(source: str, name: str | None, **engine: Any) -> None:
    """Copy a base model into the store and the catalogue. SOURCE is of the form of a job's base_model.

    The options are those of the engine that serves the base with the adapters of all teams; a job may ask for less.

    \b
    Example:
      kitae bases add HuggingFaceTB/SmolLM2-135M-Instruct
      kitae bases add s3://models/qwen3-8b --name qwen3-8b --max-model-len 8192
    """
    from ray_jobs.jobs.progress import StageProgress
    from ray_jobs.models import bases as prepared

    store = session.open_store()
    with StageProgress("base") as progress, audit.recorded(store, "base.add", name or source, source=source):
        entry = prepared.add(
            store,
            source,
            name,
            engine={option: value for option, value in engine.items() if value is not None},
            progress=lambda done, total: progress.update(done, total, "bytes"),
        )
    click.echo(f"{entry.name} ({entry.architecture}) can be fine-tuned for: {', '.join(entry.tasks)}")


@bases.command()
@click.argument("name", shell_complete=session.base_names)
@_engine_options
def engine(name: str, **options: Any) -> None:
    """Show or change the options of the engine of base NAME, which restarts with them.

    \b
    Example:
      kitae bases engine smollm2-135m-instruct
      kitae bases engine smollm2-135m-instruct --max-model-len 4096 --max-lora-rank 128
    """
    from ray_jobs.registry import catalogue

    store = session.open_store(check=False)
    changes = {option: value for option, value in options.items() if value is not None}
    entry = catalogue.find(store, name)
    if entry is not None and changes:
        shown_changes = [f"{option} {value}" for option, value in changes.items()]
        with audit.recorded(store, "base.engine", name, changes=shown_changes):
            entry = catalogue.set_engine(store, name, changes)
    if entry is None:
        raise catalogue.unknown(store, name)
    shown = {"precision": entry.precision, "max_lora_rank": entry.max_lora_rank, **entry.serving.model_dump()}
    rows = [(option, str(value)) for option, value in shown.items() if option != "deploy"]
    session.print_table(["option", "value"], rows, empty="")


@bases.command()
@click.argument("name", shell_complete=session.base_names)
@session.YES
def remove(name: str, yes: bool) -> None:
    """Remove NAME from the catalogue. The prepared copy stays, for models trained from it.

    Refused while an open job names it. Lists the jobs and models made from it first.

    \b
    Example:
      kitae bases remove smollm2-135m-instruct
    """
    from ray_jobs.jobs import uses
    from ray_jobs.registry import catalogue
    from ray_jobs.storage import Workspace
    from ray_jobs.storage.workspace import teams

    store = session.open_store(check=False)
    entry = catalogue.find(store, name)
    if entry is None:
        catalogue.remove(store, name)  # ModelError, naming the nearest
        return
    found = uses.together([uses.of_base(Workspace(store, team), name, entry.digest) for team in teams(store)])
    found.require_unused(f"the base {name}")
    for line in found.lines():
        click.echo(line)
    if not yes:
        click.confirm(f"Remove {name} from the catalogue? The models stay.", abort=True)
    with audit.recorded(store, "base.remove", name, jobs=list(found.jobs), models=list(found.models)):
        catalogue.remove(store, name)
    click.echo(f"{name} is no longer in the catalogue")


class ModelsGroup(click.Group):
    """`kitae models NAME` beside `kitae models delete NAME`: a first word that is not a command is a model's name."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(context, args[0]) is None and not args[0].startswith("-"):
            return "show", self.commands["show"], args
        return super().resolve_command(context, args)

    def shell_complete(self, context: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        names = session.model_names(context, self.commands["show"].params[0], incomplete)
        return [*super().shell_complete(context, incomplete), *names]


@click.group(
    cls=ModelsGroup, invoke_without_command=True, subcommand_metavar="[NAME | COMMAND] …", options_metavar="[--json]"
)
@session.JSON
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """Show the registered models, or NAME's versions with their aliases and metrics.

    \b
    Example:
      kitae models
      kitae models faq-chat
      kitae models alias faq-chat champion 2
      kitae models delete faq-chat@1
    """
    if context.invoked_subcommand is not None:
        context.obj = as_json
        return
    from ray_jobs import registry
    from ray_jobs.deploy import records

    store = session.open_store(check=False)
    found = {
        name: (registry.versions(home, name), registry.aliases(home, name))
        for home in session.workspaces(store)
        for name in registry.names(home)
    }
    if as_json:
        session.print_json(
            {name: [_as_json(one, aliases) for one in every] for name, (every, aliases) in found.items()}
        )
        return
    answering = {record.name: record.label or "champion" for record in records.read_all(store).values()}
    rows = []
    for name, (versions, aliases) in found.items():
        if versions:
            newest, count, answers = versions[-1], str(len(versions)), answering.get(name, "-")
            shown = ", ".join(f"{alias} → {version}" for alias, version in sorted(aliases.items()))
            rows.append((name, newest.team, newest.task, newest.base_name, count, newest.version, shown, answers))
    columns = ["model", "team", "task", "base", "versions", "newest", "aliases", "answers"]
    session.print_table(columns, rows, empty=f"no models in {store.uri()} yet; `kitae run SPEC` trains one")


@models.command(hidden=True)  # `kitae models NAME`
@_NAME
@session.JSON
@click.pass_context
def show(context: click.Context, name: str, as_json: bool) -> None:
    """Show NAME's versions, or all details of NAME@VERSION."""
    from ray_jobs import registry
    from ray_jobs.deploy import traffic
    from ray_jobs.registry import shares

    store = session.model_workspace(name)
    if "@" in name:
        found = registry.get(store, name)
        session.print_json(_as_json(found, registry.aliases(store, found.name)))
        return
    versions, aliases = registry.versions(store, name), registry.aliases(store, name)
    if not versions:
        registry.get(store, name)  # RegistryError, naming the nearest
    if as_json or context.obj:
        session.print_json([_as_json(version, aliases) for version in versions])
        return
    rows = [
        (
            version.version,
            ", ".join(_labels(version, aliases)),
            f"{version.kind}{_standing(version)}",
            _compared(version.metrics),
            version.lineage.job_id,
            version.lineage.created_at,
        )
        for version in versions
    ]
    session.print_table(["version", "aliases", "kind", "test rows, base → tuned", "job", "created"], rows, empty="")
    for line in traffic.describe(traffic.read(store, name), name):
        click.echo(line)
    if (shared := shares.read(store, name)) != shares.NOT_SHARED:
        click.echo(f"shared with {shares.describe(shared)}")


@models.command()
@_NAME
@click.argument("alias")
@click.argument("version")
@session.UNGATED
def alias(name: str, alias: str, version: str, ungated: bool) -> None:
    """Point ALIAS of model NAME at VERSION. The bare NAME resolves to the alias `champion`.

    \b
    Example:
      kitae models alias faq-chat champion 2
    """
    from ray_jobs import registry

    store = session.model_workspace(name)
    before = registry.aliases(store, name).get(alias)
    with audit.recorded(
        store, "alias.set", f"{name}@{alias}", team=store.team, version=version, before=before, ungated=ungated
    ):
        registry.set_alias(store, name, alias, version, ungated=ungated)
    click.echo(f"{name}@{alias} is version {version}")


@models.command()
@_NAME
@click.option("--team", required=True, help="The team that the name shall belong to.")
def claim(name: str, team: str) -> None:
    """Give NAME to a team before its first version, where the store lets only the platform team claim names.

    \b
    Example:
      kitae models claim faq-chat --team blue
    """
    from ray_jobs import registry
    from ray_jobs.storage import Workspace

    store = Workspace(session.open_store(check=False), team)
    with audit.recorded(store, "name.claim", name, team=team):
        registry.claim_name(store, name)
    click.echo(f"{name} belongs to team {team}")


@models.command()
@click.argument("model", metavar="NAME@VERSION", shell_complete=session.model_names)
@session.YES
def delete(model: str, yes: bool) -> None:
    """Delete one version's weights permanently. Refused until the job that makes it has ended.

    \b
    Example:
      kitae models delete faq-chat@1
    """
    from ray_jobs import registry
    from ray_jobs.jobs import uses

    name, at, version = model.partition("@")
    if not at or not version:
        raise click.BadParameter(f"{model!r} names no version: {name}@VERSION", param_hint="NAME@VERSION")
    store = session.model_workspace(name)
    found = registry.get(store, model)
    uses.require_made(store, found)
    if not yes:
        click.confirm(f"Delete {name}@{found.version} ({found.kind}; {_compared(found.metrics)})?", abort=True)
    with audit.recorded(store, "model.delete", f"{name}@{found.version}", team=registry.owner(store, name)):
        registry.delete_version(store, name, found.version)
    click.echo(f"{name}@{found.version} is deleted")


def _standing(version: ModelVersion) -> str:
    """How a version that did not pass the gate is marked."""
    if version.lineage.gated:
        return ""
    return ", not judged" if version.lineage.not_judged else ", ungated"


def _compared(metrics: Mapping[str, float]) -> str:
    """`loss 3.205 → 2.914, chrf 12.66 → 14.10`: each metric after its base's, if known."""
    return ", ".join(
        f"{name} {metrics[f'base_{name}']:.4g} → {value:.4g}" if f"base_{name}" in metrics else f"{name} {value:.4g}"
        for name, value in metrics.items()
        if not name.startswith("base_")
    )


@click.command()
@click.argument("model", metavar="NAME[@VERSION|@ALIAS]", shell_complete=session.model_names)
@session.UNGATED
def deploy(model: str, ungated: bool) -> None:
    """Deploy a registered version to the endpoint; without a version, the champion, else the newest.

    \b
    Example:
      kitae deploy faq-chat@2
    """
    from ray_jobs import deploy as deployment

    store, settings = session.model_workspace(model, check=True), deployment.ServeSettings.from_env()
    with audit.recorded(store, "model.deploy", model, team=store.team, ungated=ungated):
        deployed = deployment.deploy(store, model, settings, ungated=ungated, progress=session.print_progress)
    click.echo(deployed)


@click.command()
@_NAME
def undeploy(name: str) -> None:
    """Remove model NAME from the endpoint. Its versions stay in the registry.

    \b
    Example:
      kitae undeploy faq-chat
    """
    from ray_jobs import deploy as deployment
    from ray_jobs import registry

    store = session.open_store()
    with audit.recorded(store, "model.undeploy", name, team=registry.owner(store, name)):
        done = deployment.undeploy(store, name, deployment.ServeSettings.from_env())
    click.echo(done)


def _as_json(version: ModelVersion, aliases: Mapping[str, str]) -> dict[str, object]:
    return version.as_json() | {"aliases": _labels(version, aliases)}


def _labels(version: ModelVersion, aliases: Mapping[str, str]) -> list[str]:
    return sorted(alias for alias, pointed_at in aliases.items() if pointed_at == version.version)
