"""A version that did not pass the gate is its own team's alone, and answers for no name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ray_jobs import deploy, registry
from ray_jobs.deploy import ServeSettings, records, traffic
from ray_jobs.errors import RegistryError
from ray_jobs.registry import shares
from ray_jobs.registry.model import lineage_json, lineage_of
from ray_jobs.storage import Workspace
from serving.http.errors import ApiError
from serving.inference.router import read_snapshot, resolve
from tests.builders import make_spec
from tests.serving.api_harness import register
from tests.serving.inference.rollouts import member
from tests.serving.routing import deploy_version

ELSEWHERE = ServeSettings("", None, endpoint_url="http://x")


@pytest.fixture
def store(store: Workspace) -> Workspace:
    """The workspace of team blue."""
    return Workspace(store, "blue")


@pytest.fixture
def greeter(store: Workspace) -> str:
    """A deployed model of team blue: version 1 is its champion, version 2 a published checkpoint."""
    spec = make_spec(base_model="org/Base")
    register(store, spec, "1")
    register(store, spec, "2", gated=False)
    registry.set_alias(store, "greeter", "champion", "1")
    registry.set_alias(store, "greeter", "ckpt-step-20", "2")
    deploy_version(store, registry.get(store, "greeter"))
    return "greeter"


USES: dict[str, Callable[..., Any]] = {
    "champion": lambda store, **more: registry.set_alias(store, "greeter", "champion", "2", **more),
    "alias": lambda store, **more: registry.set_alias(store, "greeter", "prod", "2", **more),
    "promote": lambda store, **more: traffic.promote(store, "greeter", "2", **more),
    "canary": lambda store, **more: traffic.start_canary(store, "greeter", "2", percent=5, **more),
    "shadow": lambda store, **more: traffic.start_shadow(store, "greeter", "2", **more),
    "deploy": lambda store, **more: deploy.deploy(store, "greeter@2", ELSEWHERE, **more),
    "deploy by its name": lambda store, **more: deploy.deploy(store, "greeter@ckpt-step-20", ELSEWHERE, **more),
}


@pytest.mark.parametrize("use", USES)
def test_an_ungated_version_answers_for_no_name(store: Workspace, greeter: str, use: str) -> None:
    before = registry.aliases(store, greeter), traffic.read(store, greeter), records.read(store, greeter)
    with pytest.raises(RegistryError, match=r"greeter@2 has not passed the gate .* --ungated"):
        USES[use](store)
    assert (registry.aliases(store, greeter), traffic.read(store, greeter), records.read(store, greeter)) == before
    USES[use](store, ungated=True)
    assert (registry.aliases(store, greeter), traffic.read(store, greeter), records.read(store, greeter)) != before


def test_an_accepted_version_can_be_rolled_back_to(store: Workspace, greeter: str) -> None:
    traffic.promote(store, greeter, "2", ungated=True)
    traffic.promote(store, greeter, "1")
    assert traffic.roll_back(store, greeter) == "greeter@champion is version 2 again, before 1"


def test_its_own_team_calls_a_checkpoint_and_a_share_does_not_include_it(store: Workspace, greeter: str) -> None:
    def answers(team: str, name: str) -> bool:
        try:
            return resolve(read_snapshot(store), name, member(team)).model == "greeter@2"
        except ApiError:
            return False

    names = ("greeter@2", "greeter@ckpt-step-20")
    assert all(answers("blue", name) for name in names)
    shares.share(store, greeter, teams=["red"])
    assert not any(answers("red", name) for name in names)
    assert resolve(read_snapshot(store), greeter, member("red")).model == "greeter@1"
    assert "greeter@2" not in read_snapshot(store).names(member("red"))
    shares.share(store, greeter, teams=["red"], ungated=True)
    assert all(answers("red", name) for name in names)
    shares.unshare(store, greeter)
    assert not shares.share(store, greeter, teams=["red"]).ungated


def test_a_model_without_a_gated_version_is_not_shared(store: Workspace) -> None:
    register(store, make_spec("faq"), "1", gated=False)
    with pytest.raises(RegistryError, match=r"faq@1 has not passed the gate .* so it cannot be shared"):
        shares.share(store, "faq", everyone=True)


def test_a_bare_name_is_never_a_checkpoint_beside_gated_versions(store: Workspace, greeter: str) -> None:
    registry.delete_alias(store, greeter, "champion")
    assert registry.get(store, greeter).version == "1"
    assert resolve(read_snapshot(store), greeter, member("blue")).model == "greeter@1"


def test_a_checkpoint_of_an_earlier_version_is_told_by_its_step(store: Workspace, greeter: str) -> None:
    document = lineage_json(registry.get(store, greeter).lineage)
    del document["gated"]
    assert lineage_of(document).gated
    assert not lineage_of({**document, "metrics": {"step": 20.0, "loss": 1.0}}).gated
