"""`schema` and `completion`: the job file's schema for editors, and completion for shells."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ray_jobs.cli import session

_INSTALL = {
    "bash": 'eval "$(kitae completion bash)"   in ~/.bashrc',
    "zsh": 'eval "$(kitae completion zsh)"    in ~/.zshrc',
    "fish": "kitae completion fish > ~/.config/fish/completions/kitae.fish",
}


@click.command()
def schema() -> None:
    """Print the JSON schema of a job file.

    \b
    Example:
      kitae schema > job.schema.json

    \b
    An editor with the YAML language server completes a job file that begins with:
      # yaml-language-server: $schema=job.schema.json
    """
    from ray_jobs.spec import json_schema

    session.print_json(json_schema())


@click.command(epilog="\b\n" + "\n".join(f"{shell:<5} {how}" for shell, how in _INSTALL.items()))
@click.argument("shell", type=click.Choice(list(_INSTALL)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that completes commands, options, job ids and model names.

    \b
    Example:
      eval "$(kitae completion bash)"
    """
    made = get_completion_class(shell)
    assert made is not None, f"click knows {shell}"
    click.echo(made(context.find_root().command, {}, "kitae", "_KITAE_COMPLETE").source())
