"""`kitae audit`, and that each command that changes something of a team has an entry in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from ray_jobs import jobs, registry
from ray_jobs.__main__ import cli
from ray_jobs.cli import session
from ray_jobs.models import bases
from ray_jobs.storage import Workspace
from ray_jobs.tenancy import api_keys, budgets, webhooks
from tests.builders import make_spec
from tests.cli.test_cli import ALL
from tests.serving.api_harness import add_base, register
from tests.serving.routing import deploy_version

Kitae = Callable[..., Result]

READS = {
    "audit", "bases", "completion", "data", "data diff", "data export", "data inspect", "data report",
    "data show", "keys list", "local env", "local status", "models", "plan",
    "quota report", "quota show", "quota simulate", "schema", "status", "traffic", "trials", "tracking", "usage",
    "webhooks list", "budget show", "completions export", "completions policies",
}  # fmt: skip
NO_ENTRY = {
    "cancel": "its events have it", "pause": "its events have it", "resume": "its events have it",
    "run": "its events have it", "submit": "its events have it", "tune": "its events have it",
    "webhooks test": "changes nothing",
    "import openai": "the endpoint's log has its requests", "import openai replay": "changes nothing",
    "store migrate": "the whole store, by its operator",
    "init": "this directory alone", "local up": "this directory alone", "local down": "this directory alone",
}  # fmt: skip


@pytest.fixture
def store(store: Workspace) -> Workspace:
    """The workspace of team blue."""
    return Workspace(store, "blue")


@pytest.fixture
def kitae(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> Kitae:
    """Run a command on a store with a deployed model of team blue, three versions of it, and one base."""
    monkeypatch.setattr(session, "open_store", lambda *, check=True: store)
    monkeypatch.setenv("KITAE_TEAM", "blue")
    monkeypatch.setenv("KITAE_ENDPOINT_URL", "http://endpoint")
    monkeypatch.setenv("KITAE_WEBHOOKS_PRIVATE", "on")
    monkeypatch.setenv("KITAE_PRICES", '{"gpu_hour": 1}')
    for mark in ("1", "2", "3"):
        register(store, make_spec("faq", base_model="org/Base"), mark, gated=mark != "3")
    registry.set_alias(store, "faq", "champion", "1")
    deploy_version(store, registry.get(store, "faq"))
    entry = add_base(store)
    monkeypatch.setattr(bases, "add", lambda *arguments, **more: entry)

    def run(*arguments: str, code: int = 0) -> Result:
        done = CliRunner().invoke(cli, list(arguments), prog_name="kitae")
        assert (done.exit_code if done.exception is None else 1) == code, done.output + repr(done.exception)
        return done

    return run


def key(store: Workspace) -> str:
    return api_keys.create(store, "blue", "app")[0].id


def budgeted(store: Workspace) -> list[str]:
    budgets.set_budget(store, "blue", 5.0)
    return ["blue"]


def ended_job(store: Workspace) -> list[str]:
    job = jobs.start_attempt(store, make_spec("ended"))
    job.finish("failed", error="x")
    return [job.id, "--yes"]


def stored_dataset(store: Workspace) -> list[str]:
    store.commit(f"datasets/{'d' * 16}", [], {"task": "chat"})
    return ["d" * 16, "--yes"]


def receiver(store: Workspace) -> str:
    return webhooks.add(store, "blue", "https://hooks.example/x", webhooks.EVENTS, webhooks.Policy()).id


WRITES: dict[str, tuple[Callable[[Workspace], list[str]], dict[str, Any]]] = {
    "keys create": (
        lambda store: ["--team", "blue", "--name", "app", "--scope", "admin"],
        {"action": "key.create", "target": "app", "team": "blue", "details": {"scopes": ["admin"]}},
    ),
    "keys revoke": (lambda store: [key(store), "--yes"], {"action": "key.revoke", "team": "blue"}),
    "models alias": (
        lambda store: ["faq", "prod", "3", "--ungated"],
        {"action": "alias.set", "target": "faq@prod", "details": {"version": "3", "ungated": True}},
    ),
    "models delete": (lambda store: ["faq@2", "--yes"], {"action": "model.delete", "target": "faq@2", "team": "blue"}),
    "deploy": (lambda store: ["faq@2"], {"action": "model.deploy", "target": "faq@2", "team": "blue"}),
    "undeploy": (lambda store: ["faq"], {"action": "model.undeploy", "target": "faq", "team": "blue"}),
    "promote": (
        lambda store: ["faq", "2", "--canary", "10"],
        {"action": "traffic.canary", "target": "faq@champion", "details": {"version": "2", "percent": 10.0}},
    ),
    "rollback": (lambda store: ["faq"], {"action": "traffic.rollback", "target": "faq@champion"}),
    "share": (
        lambda store: ["faq", "--team", "red"],
        {"action": "share.add", "target": "faq", "team": "blue", "details": {"teams": ["red"]}},
    ),
    "unshare": (lambda store: ["faq", "--team", "red"], {"action": "share.remove", "target": "faq", "team": "blue"}),
    "bases add": (lambda store: ["org/tiny"], {"action": "base.add", "target": "org/tiny", "team": None}),
    "bases engine": (
        lambda store: ["tiny-chat", "--max-model-len", "512"],
        {"action": "base.engine", "target": "tiny-chat", "details": {"changes": ["max_model_len 512"]}},
    ),
    "models claim": (
        lambda store: ["new", "--team", "red"],
        {"action": "name.claim", "target": "new", "team": "red"},
    ),
    "bases remove": (lambda store: ["tiny-chat", "--yes"], {"action": "base.remove", "target": "tiny-chat"}),
    "budget set": (
        lambda store: ["blue", "--per-month", "5"],
        {"action": "budget.set", "target": "blue", "team": "blue", "details": {"per_month": 5.0}},
    ),
    "budget clear": (budgeted, {"action": "budget.clear", "target": "blue", "team": "blue"}),
    "completions forbid": (
        lambda store: ["blue"],
        {"action": "completions.policy", "target": "blue", "team": "blue", "details": {"storing": "off"}},
    ),
    "completions allow": (lambda store: ["blue"], {"action": "completions.policy", "target": "blue", "team": "blue"}),
    "checkpoints delete": (ended_job, {"action": "checkpoint.delete"}),
    "data delete": (stored_dataset, {"action": "dataset.delete", "target": "d" * 16}),
    "webhooks add": (
        lambda store: ["https://user:secret@127.0.0.1/t?token=secret", "--team", "blue"],
        {"action": "webhook.add", "target": "127.0.0.1", "team": "blue"},
    ),
    "webhooks remove": (lambda store: [receiver(store), "--team", "blue"], {"action": "webhook.remove"}),
}


def test_every_command_reads_or_has_an_entry() -> None:
    groups = {name for name, each in ALL.items() if isinstance(each, click.Group) and not each.invoke_without_command}
    assert ALL.keys() - groups == READS | NO_ENTRY.keys() | WRITES.keys() | {"quota set"}  # tests/cli/test_quota.py


@pytest.mark.parametrize("command", WRITES)
def test_a_command_that_changes_something_has_one_entry(kitae: Kitae, store: Workspace, command: str) -> None:
    arguments, wanted = WRITES[command]
    done = CliRunner().invoke(cli, [*command.split(), *arguments(store)], prog_name="kitae")
    (entry,) = json.loads(kitae("audit", "--json").stdout)
    assert {name: entry[name] for name in wanted} == wanted
    assert entry["actor"]["via"] == "cli"
    assert "@" in entry["actor"]["name"]
    assert (entry["failed"] is None) == (done.exception is None), done.exception
    assert "secret" not in json.dumps(entry)


def test_the_table_and_its_filters(kitae: Kitae) -> None:
    kitae("keys", "create", "--team", "red", "--name", "app")
    kitae("share", "faq", "--team", "red")
    kitae("share", "no-such-model", "--team", "red", code=1)
    lines = kitae("audit").stdout.splitlines()
    assert len([line for line in lines if "share.add" in line]) == 2
    assert "not done: no model 'no-such-model'" in lines[-1]
    assert "key.create" not in kitae("audit", "--action", "share").stdout
    assert "share.add" not in kitae("audit", "--team", "red").stdout
    assert "nothing in the audit log" in kitae("audit", "--since", "2020-01-01", "--until", "2020-12-31").stdout
    kitae("audit", "--action", "nonsense", code=1)
