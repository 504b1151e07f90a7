"""docs/leave-openai.md in both languages: commands exist, code runs, and both say the same."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import textwrap

import click
import pytest

from ray_jobs import registry
from ray_jobs.__main__ import cli
from tests.builders import make_spec
from tests.repository import ROOT
from tests.serving.api_harness import BASE, KEY, ApiServer, register, write_deployment

PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("leave-openai.md", "ja/leave-openai.md")}
COMMANDS = re.findall(r"^ *\$ kitae (.+?)(?:\s+#.*)?$", PAGES["leave-openai.md"], flags=re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(each) for each in found]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_exists_with_its_options(line: str) -> None:
    arguments = shlex.split(line)
    command: click.Command = cli
    context = click.Context(command, info_name="kitae")
    while isinstance(command, click.Group):
        parser = command.make_parser(context)
        parser.allow_interspersed_args = False
        _, arguments, _ = parser.parse_args(list(arguments))
        if not arguments:
            return
        name, found, arguments = command.resolve_command(context, arguments)
        assert found is not None
        command = found
        context = click.Context(command, info_name=name, parent=context)
    command.make_parser(context).parse_args(list(arguments))


def test_both_languages_have_the_same_code_tables_and_dates() -> None:
    english, japanese = PAGES.values()
    assert len(COMMANDS) >= 6
    assert blocks("leave-openai.md", "python") == blocks("ja/leave-openai.md", "python")
    uncommented = re.compile(r"\s+#.*$", flags=re.MULTILINE)
    assert [uncommented.sub("", each) for each in blocks("leave-openai.md", "console")] == [
        uncommented.sub("", each) for each in blocks("ja/leave-openai.md", "console")
    ]
    assert len(re.findall(r"^\|", english, flags=re.MULTILINE)) == len(re.findall(r"^\|", japanese, flags=re.MULTILINE))
    assert len(re.findall(r"^##", english, flags=re.MULTILINE)) == len(re.findall(r"^##", japanese, flags=re.MULTILINE))
    assert all(date in japanese for date in ("2027年1月6日", "2027年1月14日", "2026年11月30日"))
    assert all(date in english for date in ("6 January 2027", "14 January 2027", "30 November 2026"))


def test_the_code_runs_on_an_endpoint(target: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    register(target.store, make_spec("support", base_model=BASE), "1")
    registry.set_alias(target.store, "support", "champion", "1")
    write_deployment(target.store, "support")
    monkeypatch.setenv("KITAE_URL", f"{target.url}/v1")
    monkeypatch.setenv("KITAE_KEY", KEY)
    monkeypatch.setenv("KITAE_MODEL", "support")
    output = io.StringIO()
    code = blocks("leave-openai.md", "python")
    assert code
    with contextlib.redirect_stdout(output):
        exec(compile("\n".join(code), "docs/leave-openai.md", "exec"), {"__name__": "docs"})
    assert output.getvalue() == "How do I reset my card's PIN?\n"
