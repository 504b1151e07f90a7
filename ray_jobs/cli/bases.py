"""`bases`: the base models that a job file may name.

Owns what these commands print. `ray_jobs.models.bases` prepares a base, `ray_jobs.registry.catalogue` keeps its entry.
"""

from __future__ import annotations

import click

from ray_jobs.cli import session


@click.group(invoke_without_command=True, options_metavar="[--json]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
    rows = [
        (entry.name, ", ".join(entry.tasks), entry.architecture, str(entry.max_tokens or "?"), entry.source)
        for entry in entries
    ]
    session.print_table(
        ["base", "tasks", "architecture", "longest row", "source"],
        rows,
        empty=f"no bases in {store.uri()} yet; `kitae bases add SOURCE` adds one",
    )


@bases.command()
@click.argument("source")
@click.option("--name", help="Its name. Default: the last part of SOURCE, in lower case.")
def add(source: str, name: str | None) -> None:
    """Copy a base model into the store and the catalogue. SOURCE is of the form of a job's base_model.

    \b
    Example:
      kitae bases add HuggingFaceTB/SmolLM2-135M-Instruct
      kitae bases add s3://models/qwen3-8b --name qwen3-8b
    """
    from ray_jobs.jobs.progress import StageProgress
    from ray_jobs.models import bases as prepared

    store = session.open_store()
    with StageProgress("base") as progress:
        entry = prepared.add(store, source, name, progress=lambda done, total: progress.update(done, total, "bytes"))
    click.echo(f"{entry.name} ({entry.architecture}) can be fine-tuned for: {', '.join(entry.tasks)}")


@bases.command()
@click.argument("name", shell_complete=session.base_names)
def remove(name: str) -> None:
    """Remove NAME from the catalogue. The prepared copy stays, for models trained from it.

    \b
    Example:
      kitae bases remove smollm2-135m-instruct
    """
    from ray_jobs.registry import catalogue

    catalogue.remove(session.open_store(check=False), name)
    click.echo(f"{name} is no longer in the catalogue")
