"""A model's name belongs to one team, whatever another team's jobs write."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from ray_jobs import registry
from ray_jobs.deploy import ServeSettings, deploy
from ray_jobs.deploy import traffic as policies
from ray_jobs.errors import ModelError, RegistryError
from ray_jobs.registry import catalogue, shares
from ray_jobs.storage import Workspace
from tests.builders import make_spec
from tests.serving.api_harness import add_base, register


@pytest.fixture
def blue(store: Workspace) -> Workspace:
    return Workspace(store, "blue")


def test_a_name_has_one_owner(blue: Workspace) -> None:
    """Refused for another team: to register, to move an alias, to deploy."""
    red, spec = Workspace(blue, "red"), make_spec()
    assert register(blue, spec, "1") == "1"
    for refused in (
        lambda: register(red, spec, "2"),
        lambda: registry.require_owner(red, "greeter"),
        lambda: registry.claim_name(Workspace(blue, "default"), "greeter"),
    ):
        with pytest.raises(RegistryError, match="'greeter' belongs to team 'blue'"):
            refused()
    for unknown in (
        lambda: registry.set_alias(red, "greeter", "champion", "1"),
        lambda: deploy(red, "greeter", ServeSettings("", None, endpoint_url="http://x")),
    ):
        with pytest.raises(RegistryError, match="'greeter'"):
            unknown()
    assert register(blue, spec, "2") == "2"
    registry.set_alias(blue, "greeter", "champion", "2")
    assert registry.owner(blue, "greeter") == "blue"
    assert registry.workspace_of(red, "greeter") == blue
    assert [version.version for version in registry.versions(blue, "greeter")] == ["1", "2"]
    assert registry.versions(red, "greeter") == []


def test_of_concurrent_claims_one_wins(store: Workspace) -> None:
    def claim(team: str) -> str | None:
        with suppress(RegistryError):
            registry.claim_name(Workspace(store, team), "greeter")
            return team
        return None

    with ThreadPoolExecutor(8) as pool:
        won = [team for team in pool.map(claim, [f"team-{number}" for number in range(8)]) if team is not None]
    assert won == [registry.owner(store, "greeter")]


def test_a_name_is_that_of_a_model_or_of_a_base(blue: Workspace) -> None:
    add_base(blue, "tiny")
    with pytest.raises(RegistryError, match="that of a base model"):
        registry.claim_name(blue, "tiny")
    registry.claim_name(blue, "greeter")
    with pytest.raises(ModelError, match="a model of team 'blue'"):
        add_base(blue, "greeter")
    assert [entry.name for entry in catalogue.entries(blue)] == ["tiny"]


def test_a_base_that_a_team_brought_has_its_name(blue: Workspace) -> None:
    """Another team cannot serve another base under it; the operator can add it for everyone."""
    registry.claim_base(blue, "tiny")
    registry.claim_base(blue, "tiny")
    with pytest.raises(RegistryError, match="a name of team 'blue': rename its directory, or add it to the catalogue"):
        registry.claim_base(Workspace(blue, "red"), "tiny")
    with pytest.raises(RegistryError, match="that of a base model"):
        registry.claim_name(blue, "tiny")
    add_base(blue, "tiny")


def test_shares_and_traffic_go_with_the_last_version(blue: Workspace) -> None:
    for mark in ("1", "2"):
        register(blue, make_spec(), mark)
    shares.share(blue, "greeter", everyone=True)
    blue.put_json("traffic/greeter.json", {"alias": "champion"})
    registry.delete_version(blue, "greeter", "2")
    assert shares.read(blue, "greeter").everyone
    registry.delete_version(blue, "greeter", "1")
    assert not shares.read(blue, "greeter").everyone
    assert policies.read(blue, "greeter") is None
    assert registry.owner(blue, "greeter") == "blue", "the name stays its owner's"
