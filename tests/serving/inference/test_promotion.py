"""Promotions, roll-backs and the start of canaries, on a real store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ray_jobs import registry
from ray_jobs.deploy import records, traffic
from ray_jobs.errors import ConflictError, RegistryError, ServingError
from ray_jobs.storage import Workspace
from tests.serving.inference.rollouts import BOUNDS, champion, policy_of
from tests.serving.routing import deploy_version, register_next


def test_a_promotion_moves_the_alias_and_ends_its_canary(store: Workspace, greeter: str) -> None:
    traffic.start_canary(store, greeter, "2", percent=10)
    assert champion(store) == "1"
    assert traffic.promote(store, greeter, "2") == "greeter@champion is version 2, before 1"
    assert champion(store) == "2"
    assert policy_of(store).canary is None


def test_rolling_back_twice_restores_the_alias(store: Workspace, greeter: str) -> None:
    traffic.promote(store, greeter, "3")
    assert traffic.roll_back(store, greeter) == "greeter@champion is version 1 again, before 3"
    assert champion(store) == "1"
    traffic.roll_back(store, greeter)
    assert champion(store) == "3"


def test_rolling_back_ends_canary_and_shadow_before_it_moves_the_alias(store: Workspace, greeter: str) -> None:
    traffic.promote(store, greeter, "2")
    traffic.start_canary(store, greeter, "3", percent=10)
    traffic.start_shadow(store, greeter, "1")
    assert "canary 3 and shadow 1 ended" in traffic.roll_back(store, greeter)
    assert (champion(store), policy_of(store).canary, policy_of(store).shadow) == ("2", None, None)
    traffic.roll_back(store, greeter)
    assert champion(store) == "1"


def test_a_roll_back_without_a_previous_version_is_refused(store: Workspace, greeter: str) -> None:
    with pytest.raises(RegistryError, match="has always been version 1"):
        traffic.roll_back(store, greeter)
    with pytest.raises(RegistryError, match="greeter@prod is not set"):
        traffic.roll_back(store, greeter, alias="prod")
    with pytest.raises(RegistryError, match="no model 'greter'"):
        traffic.roll_back(store, "greter")


def test_the_second_of_two_concurrent_promotions_fails(
    store: Workspace, greeter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = registry.read_alias

    def late(store: Workspace, name: str, alias: str) -> registry.Alias | None:
        found = real(store, name, alias)
        registry.set_alias(store, name, alias, "2")  # another process, between read and write
        return found

    monkeypatch.setattr(registry, "read_alias", late)
    with pytest.raises(ConflictError, match="greeter@champion is 2, not 1"):
        traffic.promote(store, greeter, "3")
    assert champion(store) == "2"


def test_a_canary_needs_a_deployed_adapter_and_an_alias(store: Workspace, greeter: str) -> None:
    with pytest.raises(RegistryError, match="is version 1 already"):
        traffic.start_canary(store, greeter, "champion", percent=10)
    with pytest.raises(RegistryError, match="no '9'"):
        traffic.start_canary(store, greeter, "9", percent=10)
    with pytest.raises(RegistryError, match="greeter@prod is not set"):
        traffic.start_canary(store, greeter, "2", percent=10, alias="prod")
    deploy_version(store, register_next(store, "whole", adapter=False))
    starts: list[Callable[[], str]] = [
        lambda: traffic.start_canary(store, "whole", "1", percent=10),
        lambda: traffic.start_shadow(store, "whole", "1"),
        lambda: traffic.promote(store, "whole", "1", bounds=BOUNDS),
    ]
    for start in starts:
        with pytest.raises(ServingError, match="an engine of its own: promote it whole"):
            start()
    records.remove(store, "whole")
    with pytest.raises(ServingError, match="bounds need an adapter"):
        traffic.promote(store, "whole", "1", bounds=BOUNDS)
    record = records.read(store, greeter)
    assert record is not None
    records.write(store, record.model_copy(update={"label": "2"}))
    with pytest.raises(ServingError, match="deployed as greeter@2"):
        traffic.start_canary(store, greeter, "3", percent=10)
    records.remove(store, greeter)
    with pytest.raises(ServingError, match="'greeter' is not deployed"):
        traffic.start_canary(store, greeter, "2", percent=10)


def test_only_one_alias_of_a_model_has_a_rollout(store: Workspace, greeter: str) -> None:
    registry.set_alias(store, greeter, "prod", "1")
    traffic.start_canary(store, greeter, "2", percent=10, alias="prod")
    with pytest.raises(ConflictError, match="end it first"):
        traffic.start_canary(store, greeter, "3", percent=10)
    traffic.promote(store, greeter, "3")
    assert policy_of(store).canary is not None
    traffic.roll_back(store, greeter, alias="prod")
    traffic.start_canary(store, greeter, "2", percent=10)
