"""API keys: created, found, listed and revoked in a real store and on the command line; the secret is not stored."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.__main__ import cli
from ray_jobs.cli import session
from ray_jobs.errors import ApiKeyError, CorruptObject
from ray_jobs.storage import Store
from ray_jobs.tenancy import api_keys
from ray_jobs.tenancy.api_keys import ApiKey, Limits

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_key_is_found_by_the_whole_key_alone(store: Store) -> None:
    limits = Limits(requests_per_minute=60, concurrent_jobs=2)
    made, secret = api_keys.create(store, "search", "nightly evaluation", limits)
    other, _ = api_keys.create(store, "ads", "app")
    assert api_keys.find(store, secret) == made
    assert (made.team, made.name, made.limits, made.revoked_at) == ("search", "nightly evaluation", limits, None)
    wrong = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    for text in (wrong, secret.upper(), f" {secret}", made.id, "", secret.replace(made.id, other.id)):
        assert api_keys.find(store, text) is None


def test_the_store_holds_no_secret(store: Store) -> None:
    secrets = [api_keys.create(store, "search", f"key {number}")[1] for number in range(3)]
    made = [info.key for info in store.list()]
    assert len(made) == 3
    kept = b"\n".join(store.get(key) for key in made) + "\n".join(made).encode()
    for secret in secrets:
        assert secret.rpartition("-")[2].encode() not in kept
        assert hashlib.sha256(secret.encode()).hexdigest().encode() in kept


def test_keys_have_one_form_and_are_unique(store: Store) -> None:
    made = [api_keys.create(store, "search", "same name") for _ in range(20)]
    assert len({key.id for key, _ in made}) == len({secret[-52:] for _, secret in made}) == 20
    for key, secret in made:
        assert re.fullmatch(r"kitae-[a-z2-7]{16}-[a-z2-7]{52}", secret)  # 52 characters of 5 bits: over 256 bits
        assert api_keys.id_of(secret) == key.id
    assert len(set("".join(secret[-52:] for _, secret in made))) == 32


def test_a_revoked_key_is_refused_and_stays_unchanged(store: Store) -> None:
    made, secret = api_keys.create(store, "search", "app")
    first = api_keys.revoke(store, made.id)
    assert first.revoked_at is not None
    assert api_keys.find(store, secret) is None
    assert api_keys.revoke(store, made.id) == first
    assert api_keys.revoke(store, secret) == first  # a whole leaked key
    assert [key.state(NOW) for key in api_keys.list_keys(store)] == ["revoked"]


def test_revoking_an_unknown_key_names_near_ones_and_no_secret(store: Store) -> None:
    made, secret = api_keys.create(store, "search", "app")
    near = made.id[:-1] + ("a" if made.id[-1] != "a" else "b")
    with pytest.raises(ApiKeyError, match=rf"no API key '{near}' among 1 .*did you mean '{made.id}'\?"):
        api_keys.revoke(store, near)
    with pytest.raises(ApiKeyError, match="kitae keys list"):
        api_keys.revoke(store, "../jobs/x")
    with pytest.raises(ApiKeyError) as caught:
        api_keys.revoke(store, secret[-52:])
    assert secret[-30:] not in str(caught.value)


def test_an_expired_key_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    soon = datetime.now(UTC) + timedelta(days=1)
    made, secret = api_keys.create(store, "search", "app", expires_at=soon)
    assert made.opens(secret, soon - timedelta(seconds=1))
    assert not made.opens(secret, soon)
    assert api_keys.find(store, secret) == made
    gone = made.model_copy(update={"expires_at": NOW})
    store.put_json(f"keys/{made.id}.json", gone.model_dump(mode="json"))
    assert api_keys.find(store, secret) is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"team": "Search Team"}, "team: "),
        ({"name": ""}, "name: "),
        ({"name": "two\nlines"}, "name: "),
        ({"team": "UP", "name": ""}, r"(?s)team: .*name: "),
        ({"expires_at": NOW - timedelta(days=1000)}, "cannot expire at"),
        ({"expires_at": datetime(2999, 1, 1)}, "with its zone"),
    ],
)
def test_all_invalid_arguments_are_reported_together(store: Store, change: dict[str, Any], match: str) -> None:
    with pytest.raises(ApiKeyError, match=match):
        api_keys.create(store, **{"team": "search", "name": "app"} | change)
    assert list(store.list()) == []


def test_an_invalid_record_is_reported_without_its_contents(store: Store) -> None:
    made, secret = api_keys.create(store, "search", "app")
    store.put_json(f"keys/{made.id}.json", {"id": made.id, "key": secret})
    with pytest.raises(CorruptObject, match="not the record of an API key") as caught:
        api_keys.read(store, made.id)
    assert secret[-52:] not in str(caught.value)


@given(st.text() | st.from_regex(r"kitae-[a-z2-7]{16}-[a-z2-7]{50,54}", fullmatch=True))
def test_an_accepted_id_is_safe_in_a_path(text: str) -> None:
    found = api_keys.id_of(text)
    assert found is None or (re.fullmatch(r"[a-z2-7]{16}", found) and len(text) == len("kitae--") + 16 + 52)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def invoke(store: Store, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    def open_store(*, check: bool = True) -> Store:
        return store

    monkeypatch.setattr(session, "open_store", open_store)
    return CliRunner()


def test_create_prints_the_key_alone_on_stdout(invoke: CliRunner, store: Store) -> None:
    shown = invoke.invoke(cli, ["keys", "create", "--team", "search", "--name", "app", "--tokens-per-minute", "9"])
    key = api_keys.find(store, shown.stdout.removesuffix("\n"))
    assert key is not None
    assert (key.team, key.name, key.limits) == ("search", "app", Limits(tokens_per_minute=9))
    assert key.id in shown.stderr


def test_create_prints_json(invoke: CliRunner, store: Store) -> None:
    limits = {
        "requests_per_minute": 1,
        "tokens_per_minute": 2,
        "concurrent_requests": 3,
        "concurrent_jobs": 4,
        "max_body_bytes": 5000,
    }
    options = [word for name, value in limits.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = ["keys", "create", "--team", "search", "--name", "app", "--expires-in-days", "2", "--json", *options]
    made = json.loads(invoke.invoke(cli, command).stdout)
    key = api_keys.find(store, made["key"])
    assert key is not None
    assert made["limits"] == limits == key.limits.model_dump()
    assert key.expires_at is not None
    assert timedelta(days=1.9) < key.expires_at - datetime.now(UTC) < timedelta(days=2)
    assert "digest" not in made
    refused = invoke.invoke(cli, ["keys", "create", "--team", "No Team", "--name", "app"])
    assert isinstance(refused.exception, ApiKeyError)


def test_list_shows_team_and_state_and_no_secret(invoke: CliRunner, store: Store) -> None:
    assert "kitae keys create" in invoke.invoke(cli, ["keys", "list"]).output
    first, secret = api_keys.create(store, "search", "old", Limits(requests_per_minute=60))
    second, _ = api_keys.create(store, "ads", "app")
    api_keys.revoke(store, first.id)
    shown = invoke.invoke(cli, ["keys", "list"]).output
    lines = shown.splitlines()[-2:]
    assert second.id in lines[0]
    assert "active" in lines[0]
    scopes = "inference, fine-tuning, read"
    assert re.search(rf"{first.id} +search +old +revoked +{scopes} +requests per minute 60", lines[1])
    for text in (secret, secret[-52:], first.digest):
        assert text not in shown
    (only,) = json.loads(invoke.invoke(cli, ["keys", "list", "--team", "search", "--json"]).output)
    assert (only["id"], only["state"], "digest" in only) == (first.id, "revoked", False)
    assert "of team unknown" in invoke.invoke(cli, ["keys", "list", "--team", "unknown"]).output


def test_revoke_asks_once_and_not_again(invoke: CliRunner, store: Store) -> None:
    made, secret = api_keys.create(store, "search", "app")
    assert invoke.invoke(cli, ["keys", "revoke", made.id], input="n\n").exit_code != 0
    assert api_keys.find(store, secret) == made
    assert invoke.invoke(cli, ["keys", "revoke", made.id], input="y\n").exit_code == 0
    assert api_keys.find(store, secret) is None
    again = invoke.invoke(cli, ["keys", "revoke", secret])
    assert (again.exit_code, secret in again.output) == (0, False)
    unknown = invoke.invoke(cli, ["keys", "revoke", "--yes", "nothing"])
    assert isinstance(unknown.exception, ApiKeyError)
    third, other = api_keys.create(store, "search", "app")
    assert invoke.invoke(cli, ["keys", "revoke", "--yes", third.id]).exit_code == 0
    assert api_keys.find(store, other) is None


def test_ids_are_completed(invoke: CliRunner, store: Store) -> None:
    made, _ = api_keys.create(store, "search", "app")
    found = ShellComplete(cli, {}, "kitae", "_KITAE_COMPLETE").get_completions(["keys", "revoke"], made.id[:3])
    assert [item.value for item in found] == [made.id]


def test_a_record_round_trips_through_the_store(store: Store) -> None:
    made, _ = api_keys.create(
        store, "search", "app", Limits(max_body_bytes=2048), expires_at=datetime.now(UTC) + timedelta(days=1)
    )
    assert api_keys.read(store, made.id) == made == ApiKey.model_validate(made.model_dump(mode="json"))
    assert api_keys.read(store, "a" * 16) is None
