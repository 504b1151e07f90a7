"""`kitae webhooks`, and the limits of a team."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from ray_jobs.__main__ import cli
from ray_jobs.cli import session
from ray_jobs.cli import webhooks as commands
from ray_jobs.errors import ServingError, SpecError
from ray_jobs.storage import Store
from ray_jobs.tenancy import webhooks
from ray_jobs.tenancy.webhooks import EVENTS, Policy, records
from tests.tenancy.webhook_receiver import (
    CLIENT,
    HERE,
    Receiver,
    subscribe,
)


@pytest.fixture
def kitae(store: Store, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setattr(session, "open_store", lambda *, check=True: store)
    monkeypatch.setenv("KITAE_WEBHOOKS_PRIVATE", "on")
    monkeypatch.setenv("KITAE_WEBHOOKS_INSECURE", "on")
    return CliRunner()


def run(kitae: CliRunner, *arguments: str) -> str:
    ran = kitae.invoke(cli, ["webhooks", *arguments, "--team", "blue"])
    assert ran.exit_code == 0, (ran.output, ran.exception)
    return ran.output


def test_add_list_test_and_remove(kitae: CliRunner, store: Store, receiver: Receiver) -> None:
    added = run(kitae, "add", receiver.url, "--event", EVENTS[1])
    (endpoint,) = webhooks.endpoints(store, "blue")
    assert added == f"{endpoint.id}: {EVENTS[1]}\nsecret: {endpoint.secret}  (not shown again)\n"
    table, listed = run(kitae, "list"), run(kitae, "list", "--json")
    assert receiver.url in table
    assert endpoint.secret not in table + listed
    assert json.loads(listed)[0]["events"] == [EVENTS[1]]
    assert "answered 200 after" in (tried := run(kitae, "test", endpoint.id))
    assert tried.endswith(": a secret answer\n")
    event = CLIENT.webhooks.unwrap(receiver.got[0].body, receiver.got[0].headers, secret=endpoint.secret)
    assert (event.type, event.id[:9]) == (EVENTS[1], "evt_test_")
    receiver.statuses = [404]
    failed = kitae.invoke(cli, ["webhooks", "test", endpoint.id, "--team", "blue"])
    assert isinstance(failed.exception, ServingError)
    assert "answered 404" in str(failed.exception)
    run(kitae, "remove", endpoint.id)
    assert run(kitae, "list") == "team blue has no webhooks\n"


def test_an_endpoint_is_reached_by_its_team_alone(kitae: CliRunner, store: Store, receiver: Receiver) -> None:
    endpoint = subscribe(store, receiver)
    for command in ("test", "remove"):
        refused = kitae.invoke(cli, ["webhooks", command, endpoint.id, "--team", "red"])
        assert isinstance(refused.exception, SpecError)
    for wrong in ("../blue", "a/b", ""):
        with pytest.raises(SpecError):
            webhooks.endpoints(store, wrong)
    assert receiver.got == []
    with pytest.raises(SpecError):
        webhooks.get(store, "blue", "../blue/" + endpoint.id)
    assert webhooks.endpoints(store, "blue") == [endpoint]


def test_a_team_has_at_most_so_many_endpoints(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_ENDPOINTS", 1)
    subscribe(store, receiver)
    with pytest.raises(SpecError, match="has 1 webhooks, and may have 1"):
        subscribe(store, receiver)
    with pytest.raises(SpecError, match="no event type"):
        webhooks.add(store, "red", receiver.url, [], HERE)


def test_the_policy_variables_are_on_or_off() -> None:
    assert Policy.from_env({}) == Policy(private=False, insecure=False)
    assert Policy.from_env({"KITAE_WEBHOOKS_PRIVATE": "on"}) == Policy(private=True)
    assert Policy.from_env({"KITAE_WEBHOOKS_INSECURE": "on", "KITAE_WEBHOOKS_PRIVATE": "off"}) == Policy(insecure=True)
    with pytest.raises(SpecError, match="KITAE_WEBHOOKS_PRIVATE is 'yes'"):
        Policy.from_env({"KITAE_WEBHOOKS_PRIVATE": "yes"})


def test_the_command_line_offers_every_event_type() -> None:
    assert commands._EVENTS == EVENTS
