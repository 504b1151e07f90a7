"""A model's name belongs to one team, whatever another team's jobs write."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from ray_jobs import registry
from ray_jobs.deploy import ServeSettings, deploy
from ray_jobs.deploy import traffic as policies
from ray_jobs.errors import ModelError, RegistryError
from ray_jobs.registry import catalogue, owners, shares
from ray_jobs.storage import Store
from tests.builders import make_spec
from tests.serving.api_harness import add_base, register


def test_a_name_has_one_owner(store: Store) -> None:
    """Refused for another team: to register, to move an alias, to deploy."""
    blue, red = make_spec(team="blue"), make_spec(team="red")
    assert register(store, blue, "1") == "1"
    for refused in (
        lambda: register(store, red, "2"),
        lambda: registry.require_owner(store, "greeter", "red"),
        lambda: registry.claim_name(store, "greeter", None),
        lambda: registry.set_alias(store, "greeter", "champion", "1", team="red"),
        lambda: deploy(store, "greeter", ServeSettings("", None, endpoint_url="http://x"), team="red"),
    ):
        with pytest.raises(RegistryError, match="'greeter' belongs to team 'blue'"):
            refused()
    assert register(store, blue, "2") == "2"
    registry.set_alias(store, "greeter", "champion", "2", team="blue")
    registry.set_alias(store, "greeter", "champion", "1")  # the operator
    assert registry.owner(store, "greeter") == "blue"
    assert [version.version for version in registry.versions(store, "greeter")] == ["1", "2"]


def test_of_concurrent_claims_one_wins(store: Store) -> None:
    def claim(team: str) -> str | None:
        with suppress(RegistryError):
            registry.claim_name(store, "greeter", team)
            return team
        return None

    with ThreadPoolExecutor(8) as pool:
        won = [team for team in pool.map(claim, [f"team-{number}" for number in range(8)]) if team is not None]
    assert won == [registry.owner(store, "greeter")]


def test_a_name_from_before_claims_belongs_to_the_team_of_its_oldest_version(store: Store) -> None:
    register(store, make_spec(team="blue"), "1")
    register(store, make_spec(team="blue"), "2")
    store.delete("owners/greeter.json")
    owners._team.cache_clear()
    with pytest.raises(RegistryError, match="belongs to team 'blue'"):
        registry.claim_name(store, "greeter", "red")
    registry.claim_name(store, "greeter", "blue")
    assert owners.claimed_by(store, "greeter") == "blue"


def test_a_name_is_that_of_a_model_or_of_a_base(store: Store) -> None:
    add_base(store, "tiny")
    with pytest.raises(RegistryError, match="base model in the catalogue"):
        registry.claim_name(store, "tiny", "blue")
    registry.claim_name(store, "greeter", "blue")
    with pytest.raises(ModelError, match="a model of team 'blue'"):
        add_base(store, "greeter")
    assert [entry.name for entry in catalogue.entries(store)] == ["tiny"]


def test_shares_and_traffic_go_with_the_last_version(store: Store) -> None:
    for mark in ("1", "2"):
        register(store, make_spec(team="blue"), mark)
    shares.share(store, "greeter", everyone=True)
    store.put_json("traffic/greeter.json", {"alias": "champion"})
    registry.delete_version(store, "greeter", "2")
    assert shares.read(store, "greeter").everyone
    registry.delete_version(store, "greeter", "1")
    assert not shares.read(store, "greeter").everyone
    assert policies.read(store, "greeter") is None
    assert registry.owner(store, "greeter") == "blue", "the name stays its owner's"
