"""The command line: `kitae`, or `python -m ray_jobs`.

Owns the list of commands. Each command imports what it needs when it runs, so that `--help` answers in a tenth of a
second.

    python -m ray_jobs run examples/faq_chat.yaml
"""

from __future__ import annotations

import sys

import click

from ray_jobs import __version__
from ray_jobs.cli import (
    audit,
    budget,
    checkpoints,
    completions,
    data,
    imports,
    init,
    jobs,
    keys,
    local,
    models,
    quota,
    session,
    shell,
    store,
    submit,
    tracking,
    traffic,
    usage,
    webhooks,
)


class Commands(click.Group):
    """Lists its commands in the order of their use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="kitae")
@click.option("--debug", is_flag=True, help="Show the traceback of an error: kitae --debug COMMAND …")
def cli(debug: bool) -> None:
    """Fine-tune an open model on your rows, check it against its base, and serve it.

    The store is named by KITAE_STORE (s3://bucket/prefix) and the AWS_ variables. Default: the local service of this
    directory (`kitae local up`).

    \b
    Example:
      kitae init rows.csv
      kitae plan examples/faq_chat.yaml
      kitae run examples/faq_chat.yaml
      kitae status --watch
    """


for command in (
    init.init,
    jobs.plan,
    jobs.run,
    submit.submit,
    jobs.resume,
    jobs.status,
    jobs.pause,
    jobs.cancel,
    jobs.notice,
    jobs.tune,
    jobs.trials,
    tracking.tracking,
    imports.import_,
    data.data,
    checkpoints.checkpoints,
    completions.completions,
    models.bases,
    models.models,
    models.deploy,
    models.undeploy,
    usage.usage,
    quota.quota,
    keys.keys,
    audit.audit,
    budget.budget,
    traffic.promote,
    traffic.rollback,
    traffic.traffic,
    traffic.share,
    traffic.unshare,
    webhooks.webhooks,
    store.store,
    local.local,
    shell.schema,
    shell.completion,
):
    cli.add_command(command)


def main() -> None:
    sys.exit(session.run(cli, prog_name="kitae"))


if __name__ == "__main__":
    main()
