"""`import openai`: files, jobs, evals and stored completions of an OpenAI account, and a replay of its answers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from click.core import ParameterSource

from ray_jobs.cli import session
from ray_jobs.errors import RemoteError, SpecError, one_line

if TYPE_CHECKING:
    from ray_jobs.importing.bring import Brought
    from ray_jobs.importing.client import Address, ApiClient
    from ray_jobs.importing.plan import ImportPlan
    from ray_jobs.importing.target import TargetFacts
    from ray_jobs.importing.workdir import Workdir

_OPENAI_URL = "https://api.openai.com/v1"
_SHOWN = 20

_FROM = click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Read exported files instead of OpenAI's API: files/*.jsonl, jobs.json, evals/*.json, completions/*.jsonl.",
)
_WORKDIR = click.option(
    "--workdir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".kitae/import-openai"),
    show_default=True,
    help="Directory of what was fetched and of what is done; one for each account and target.",
)


@click.group(name="import")
def import_() -> None:
    """Bring what you have at another service (docs/leave-openai.md).

    \b
    Example:
      kitae import openai
    """


@import_.group(invoke_without_command=True)
@_FROM
@click.option("--base-url", default=_OPENAI_URL, show_default=True, metavar="URL", help="Address of OpenAI's API.")
@_WORKDIR
@click.option("--apply", is_flag=True, help="Bring it over. Without it, the target is only read.")
@click.option(
    "--completions",
    type=click.IntRange(0, 100_000),
    default=10_000,
    show_default=True,
    metavar="N",
    help="Stored completions to read at most.",
)
@click.option("--drop-refused", is_flag=True, help="Bring files without the rows that Kitae refuses.")
@click.option("--judge", metavar="MODEL", help="Model of the target that judges criteria of OpenAI's models.")
@click.option("--retrain", metavar="BASE", help="Create Kitae jobs from the jobs that have succeeded, on this base.")
@click.option("--job", "jobs", multiple=True, metavar="ID", help="With --retrain: only this job; repeatable.")
@session.JSON
@click.pass_context
def openai(
    context: click.Context,
    source: Path | None,
    base_url: str,
    workdir: Path,
    apply: bool,
    completions: int,
    drop_refused: bool,
    judge: str | None,
    retrain: str | None,
    jobs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Bring files, fine-tuning jobs, evals and stored completions from OpenAI to this endpoint.

    Shows what would come over, the rows that Kitae refuses, and what differs in each job; `--apply` does it. A command
    that was interrupted resumes, and a second one changes nothing.

    OPENAI_API_KEY is the key at OpenAI; it is not stored. The target is the endpoint of KITAE_ENDPOINT_URL and
    KITAE_API_KEY, or the local service.

    \b
    Example:
      kitae import openai
      kitae import openai --apply
      kitae import openai --apply --retrain qwen3-8b --job ftjob-abc123
      kitae import openai replay --model ft:qwen3-8b:acme:support:abc
    """
    if context.invoked_subcommand is not None:
        given = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if given:
            raise click.UsageError(f"give the options of {context.invoked_subcommand} behind its name", context)
        return
    if jobs and retrain is None:
        raise click.UsageError("--job needs --retrain BASE", context)
    from ray_jobs.importing import bring, exports, plan
    from ray_jobs.importing import workdir as directory

    notes: list[str] = []
    with directory.opened(workdir) as place:
        state = place.load()
        address = _target_address() if apply else _optional_target()
        known = None if address is None else f"{address.url} team {address.team or '(of the key)'}"
        if known is not None and state.target not in (None, known):
            raise SpecError(
                f"{workdir} belongs to the target {state.target}, and this is {known}: name another --workdir"
            )
        with _asked(address, needed=apply) as (client, facts):
            if retrain is not None and facts.is_known and retrain not in facts.bases:
                from ray_jobs.errors import suggestion

                raise SpecError(
                    f"the target has no base {retrain!r} for fine-tuning; {suggestion(retrain, facts.bases)}"
                )
            if source is None:
                notes = _collect(base_url, place, completions)
            export = exports.read(source or workdir)
            planned = plan.build(
                export, facts, state, place, retrain=retrain, only_jobs=jobs, drop_refused=drop_refused
            )
            planned.notes += notes
            directory.write_json(workdir / "plan.json", planned.as_json())
            done = None
            if apply and client is not None:
                state.target = known
                done = bring.bring(planned, client, facts, state, place, judge=judge)
        if as_json:
            session.print_json(planned.as_json() | {"done": None if done is None else asdict(done)})
        else:
            _show(planned)
            _show_end(planned, done, retrain)
        if done is not None and done.refused:
            context.exit(RemoteError.exit_code)


@openai.command()
@click.option("--model", required=True, metavar="MODEL", help="Model of the endpoint that answers.")
@click.option(
    "--prompts",
    type=click.Choice(["completions", "validation"]),
    help="Stored completions, or validation rows.  [default: completions if there are any]",
)
@click.option("--limit", type=click.IntRange(1, 100_000), default=500, show_default=True, help="Prompts at most.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Tokens of an answer at most."
)
@click.option("--again", is_flag=True, help="Forget the answers of earlier replays of this model.")
@_FROM
@_WORKDIR
@session.JSON
def replay(
    model: str,
    prompts: Literal["completions", "validation"] | None,
    limit: int,
    max_tokens: int,
    again: bool,
    source: Path | None,
    workdir: Path,
    as_json: bool,
) -> None:
    """Ask MODEL the imported prompts, and compare its answers with those from OpenAI in a parity report.

    The report (HTML and JSON) has both answers of each prompt, exact matches, chrF, lengths, refusals, JSON and tool
    calls, with bootstrap intervals. It holds prompts and answers.

    \b
    Example:
      kitae import openai replay --model ft:qwen3-8b:acme:support:abc
      kitae import openai replay --model qwen3-8b --prompts validation --limit 100
    """
    from ray_jobs.importing import exports, parity_page
    from ray_jobs.importing import replay as replaying
    from ray_jobs.importing import workdir as directory
    from ray_jobs.importing.client import ApiClient
    from ray_jobs.importing.comparison import summarize

    with directory.opened(workdir) as place, ApiClient(_target_address()) as client:
        kind, every = replaying.prompts_of(exports.read(source or workdir), prompts)
        found = replaying.replay(
            client,
            model,
            replaying.chosen(every, limit),
            place,
            kind=kind,
            of=len(every),
            max_tokens=max_tokens,
            again=again,
        )
    summary = summarize(found.pairs)
    if as_json:
        session.print_json(
            {
                "model": model,
                "asked": found.asked,
                "answered": len(found.pairs),
                "not_answered": dict(found.failed),
                "summary": [asdict(each) for each in summary],
                "page": found.page,
                "document": found.document,
            }
        )
        return
    rows = [(each.name, *parity_page.number(each), str(each.count)) for each in summary]
    session.print_table(["measure", "value", "95 % interval", "prompts"], rows, empty="no prompt was answered")
    for name, reason in found.failed[:_SHOWN]:
        click.echo(f"not answered: {name}: {reason}")
    if not found.asked:
        click.echo("nothing was asked: all answers are of earlier runs; --again asks again")
    click.echo(f"{found.page}\n{found.document}")


def _target_address() -> Address:
    from ray_jobs.deploy import ServeSettings
    from ray_jobs.importing.client import Address

    session.use_local_service()
    team, key = os.environ.get("KITAE_TEAM") or None, os.environ.get("KITAE_API_KEY") or ""
    return Address("the endpoint", ServeSettings.from_env().url, key, "KITAE_API_KEY", team)


def _optional_target() -> Address | None:
    """The target of a dry run, which may have none yet."""
    session.use_local_service()
    return _target_address() if os.environ.get("KITAE_API_KEY") else None


@contextmanager
def _asked(address: Address | None, *, needed: bool) -> Iterator[tuple[ApiClient | None, TargetFacts]]:
    """The client of the target, and what the target has. Without `needed`, a target that does not answer is a note."""
    from ray_jobs.importing import target
    from ray_jobs.importing.client import ApiClient

    if address is None:
        yield None, target.unknown("set KITAE_API_KEY and KITAE_ENDPOINT_URL, or start the local service")
        return
    with ApiClient(address) as client:
        try:
            facts = target.look(client)
        except RemoteError as error:
            if needed:
                raise
            facts = target.unknown(error.message)
        yield client, facts


def _collect(base_url: str, place: Workdir, completions: int) -> list[str]:
    from ray_jobs.importing.client import Address, ApiClient
    from ray_jobs.importing.collect import collect

    key = os.environ.get("OPENAI_API_KEY")
    if not key:
        raise SpecError("set OPENAI_API_KEY to the key at OpenAI, or read exported files: --from DIR")
    source = Address("OpenAI", base_url, key, "OPENAI_API_KEY")
    with ApiClient(source) as client:
        return collect(client, place, most_completions=completions)


def _show(plan: ImportPlan) -> None:
    rows = [
        (
            each.id,
            one_line(each.filename),
            f"{each.bytes:,}",
            "-" if each.rows is None else f"{each.rows:,}",
            each.action + (f", without {each.dropped} refused row(s)" if each.dropped else ""),
            each.target_id or "-",
        )
        for each in plan.sent_files
    ]
    session.print_table(["file", "name", "bytes", "rows", "", "target"], rows, empty="no files")
    for each in plan.sent_files:
        _list(f"{each.id} ({each.filename}), rows that Kitae refuses", each.findings)
    _list("listed at OpenAI without a content", plan.gone)
    if plan.completion_count:
        click.echo(f"{plan.completion_count:,} stored completion(s), {len(plan.left_out):,} of them become no row")
        _list("completions that become no row", plan.left_out)
    jobs = [
        (
            each.mapped.id,
            one_line(each.mapped.model),
            each.mapped.status,
            each.chosen or (f"{each.proposed}, proposed" if each.proposed else "-"),
            each.target_id or ("cannot be trained again" if each.mapped.problems else "-"),
        )
        for each in plan.jobs
    ]
    session.print_table(["job", "model", "status", "base", "target"], jobs, empty="no fine-tuning jobs")
    for job in plan.jobs:
        _list(f"{job.mapped.id}, why it cannot be trained again", job.mapped.problems)
    _show_differences(plan)
    from ray_jobs.importing.plan import criteria_of

    evals = [
        (
            each.mapped.id,
            one_line(each.mapped.name),
            one_line(", ".join(criteria_of(each.mapped))),
            each.action,
            each.target_id or "-",
        )
        for each in plan.evals
    ]
    session.print_table(["eval", "name", "criteria", "", "target"], evals, empty="no evals")
    for found in plan.evals:
        _list(f"{found.mapped.id}, what differs", found.mapped.differences)
    if any(each.action == "kept" for each in plan.evals):
        click.echo("kept: the target has no /v1/evals, or is not known; the evals stay in the working directory")
    for note in plan.notes:
        click.echo(f"note: {note}")


def _show_differences(plan: ImportPlan) -> None:
    """Each difference once, with the jobs that have it."""
    jobs = [job.mapped for job in plan.jobs if not job.mapped.problems]
    having: dict[str, list[str]] = {}
    for job in jobs:
        for difference in job.differences:
            having.setdefault(difference, []).append(job.id)
    lines = [
        text + ("" if len(ids) == len(jobs) else f" [{', '.join(ids[:3])}{', …' if len(ids) > 3 else ''}]")
        for text, ids in having.items()
    ]
    _list("what differs when the jobs are trained again", lines)


def _show_end(plan: ImportPlan, done: Brought | None, retrain: str | None) -> None:
    if done is None:
        click.echo(f"{plan.open_count} object(s) would be brought: --apply does it")
        if plan.jobs and retrain is None:
            bases = ", ".join(plan.bases) or "none yet"
            click.echo(f"--retrain BASE trains the jobs again; bases of the target: {bases}")
        return
    for line in (*done.files, *done.evals, *done.jobs):
        click.echo(f"brought {line}")
    _list("refused by the target", done.refused)
    if not done.count and not done.refused:
        click.echo("nothing to do: everything is there already")


def _list(heading: str, lines: Sequence[str]) -> None:
    """A heading and its lines, the first of many."""
    if not lines:
        return
    click.echo(f"{heading}:")
    for line in lines[:_SHOWN]:
        click.echo(f"  - {one_line(line)}")
    if len(lines) > _SHOWN:
        click.echo(f"  and {len(lines) - _SHOWN:,} more; plan.json has all")
