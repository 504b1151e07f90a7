"""The router: what a name resolves to, and how long a snapshot of the store is used."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest

from ray_jobs import registry
from ray_jobs.errors import CorruptObject, StoreUnreachable
from ray_jobs.storage import Workspace
from serving.access.auth import OPERATOR
from serving.http.errors import ApiError
from serving.inference.backends import Route
from serving.inference.router import Router, RoutingSnapshot, resolve
from tests.serving.routing import ADAPTERS, deploy_version, make_snapshot, make_version, register_next


def test_a_bare_name_resolves_to_the_newest_version_and_a_base_to_itself() -> None:
    assert resolve(ADAPTERS, "greeter", OPERATOR) == Route("greeter@10", "kitae-base", "chat", adapter="greeter@10")
    assert resolve(ADAPTERS, "base", OPERATOR) == Route("base", "kitae-base", "chat")


def test_a_bare_name_resolves_to_the_champion_if_one_is_set() -> None:
    snapshot = replace(ADAPTERS, aliases={"greeter": {"champion": "2", "old": "1"}})
    assert resolve(snapshot, "greeter", OPERATOR).model == "greeter@2"
    assert resolve(snapshot, "greeter@old", OPERATOR).model == "greeter@1"
    assert resolve(snapshot, "greeter@10", OPERATOR).model == "greeter@10"


def test_a_name_deployed_with_a_label_resolves_to_that_version() -> None:
    pinned = ADAPTERS.records | {"greeter": ADAPTERS.records["greeter"].model_copy(update={"label": "1"})}
    assert resolve(replace(ADAPTERS, records=pinned), "greeter", OPERATOR).model == "greeter@1"


@pytest.mark.parametrize(
    "model", ["unknown", "greeter@3", "greeter@", "base@1", "", "@1", "greeter@champion", "greeter@1@2"]
)
def test_an_unknown_name_is_not_found(model: str) -> None:
    with pytest.raises(ApiError) as caught:
        resolve(ADAPTERS, model, OPERATOR)
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")


def test_an_unknown_name_suggests_similar_names() -> None:
    with pytest.raises(ApiError, match=r"did you mean .*greeter@1"):
        resolve(ADAPTERS, "greter@1", OPERATOR)


def test_a_version_trained_on_another_base_is_not_routed_to_this_one() -> None:
    stranger = make_version("11", base_digest="c" * 16)
    snapshot = replace(ADAPTERS, versions={"greeter": (*ADAPTERS.versions["greeter"], stranger)})
    with pytest.raises(ApiError, match="another base"):
        resolve(snapshot, "greeter@11", OPERATOR)


def test_a_model_with_its_own_engine_answers_only_for_the_version_that_runs() -> None:
    snapshot = make_snapshot(make_version("1", kind="full"), make_version("2", kind="full"))
    assert resolve(snapshot, "greeter", OPERATOR) == Route("greeter@2", "kitae-greeter", "chat")
    newer = replace(snapshot, versions={"greeter": (*snapshot.versions["greeter"], make_version("3", kind="full"))})
    assert resolve(newer, "greeter", OPERATOR).model == "greeter@2"
    with pytest.raises(ApiError, match=r"the endpoint runs greeter@2.*kitae deploy greeter@3"):
        resolve(newer, "greeter@3", OPERATOR)


def test_every_listed_name_resolves() -> None:
    names = ADAPTERS.names(OPERATOR)
    assert sorted(names) == ["base", "greeter", "greeter@1", "greeter@10", "greeter@2"]
    for name in names:
        resolve(ADAPTERS, name, OPERATOR)


@pytest.mark.anyio
async def test_new_versions_and_moved_aliases_take_effect_after_the_time_to_live(store: Workspace) -> None:
    now = 0.0
    deploy_version(store, register_next(store))
    router = Router(store, ttl_s=2.0, clock=lambda: now)
    assert (await router.resolve("greeter", "/v1/chat/completions", OPERATOR)).model == "greeter@1"
    register_next(store)
    assert (await router.resolve("greeter", "/v1/chat/completions", OPERATOR)).model == "greeter@1"
    now = 2.5
    assert (await router.resolve("greeter", "/v1/chat/completions", OPERATOR)).model == "greeter@2"
    registry.set_alias(store, "greeter", "champion", "1")
    now = 5.0
    assert (await router.resolve("greeter", "/v1/chat/completions", OPERATOR)).model == "greeter@1"


@pytest.mark.anyio
async def test_the_snapshot_is_refreshed_in_the_background_under_steady_traffic(
    store: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request waits for the store, and an unreachable store delays requests only briefly."""
    now, may_read, reads = 0.0, threading.Event(), 0

    def read(store: Workspace) -> RoutingSnapshot:
        nonlocal reads
        reads += 1
        assert may_read.wait(10)
        return replace(ADAPTERS)

    monkeypatch.setattr("serving.inference.router.read_snapshot", read)
    router = Router(store, ttl_s=2.0, patience_s=0.05, clock=lambda: now)
    may_read.set()
    first = await router.snapshot()
    may_read.clear()
    now = 0.9
    assert await router.snapshot() is first
    now = 1.8
    assert all([await router.snapshot() is first for _ in range(5)])
    await asyncio.sleep(0.01)
    assert reads == 2
    now = 9.0  # the store does not answer
    assert await router.snapshot() is first
    may_read.set()
    while (second := await router.snapshot()) is first:
        await asyncio.sleep(0.01)
    assert await router.snapshot(max_age_s=0.25) is not first
    router.forget()
    assert await router.snapshot() is not second


@pytest.mark.anyio
async def test_a_newly_deployed_name_resolves_before_the_time_to_live_ends(store: Workspace) -> None:
    now = 0.0
    router = Router(store, ttl_s=2.0, clock=lambda: now)
    with pytest.raises(ApiError, match="nothing yet"):
        await router.resolve("greeter", "/v1/chat/completions", OPERATOR)
    deploy_version(store, register_next(store))
    now = 0.5
    assert (await router.resolve("greeter", "/v1/chat/completions", OPERATOR)).model == "greeter@1"


@pytest.mark.anyio
async def test_the_last_snapshot_is_used_while_the_store_is_unreachable(
    store: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    router = Router(store, ttl_s=2.0, clock=lambda: now)
    deploy_version(store, register_next(store))
    reached = await router.snapshot()

    def away(store: Workspace) -> RoutingSnapshot:
        raise StoreUnreachable("no answer")

    monkeypatch.setattr("serving.inference.router.read_snapshot", away)
    now = 10.0
    assert await router.snapshot() is reached
    with pytest.raises(ApiError) as caught:
        await Router(store, ttl_s=2.0).snapshot()
    assert (caught.value.status, caught.value.code) == (503, "store_unreachable")


@pytest.mark.anyio
async def test_a_model_answers_while_its_deployment_record_cannot_be_read(store: Workspace) -> None:
    now = 0.0
    router = Router(store, ttl_s=2.0, clock=lambda: now)
    deploy_version(store, register_next(store))
    await router.snapshot()
    for damaged in (b"{", b'{"name": "greeter", "kind": "of a newer version", "task": "chat"}'):
        store.put("deployments/greeter.json", damaged)
        now += 10.0
        assert (await router.resolve("greeter", "/v1/chat/completions", OPERATOR)).model == "greeter@1"
    store.delete("deployments/greeter.json")
    now += 10.0
    with pytest.raises(ApiError, match="not deployed"):
        await router.resolve("greeter", "/v1/chat/completions", OPERATOR)


@pytest.mark.anyio
async def test_an_alias_and_a_version_stay_while_they_cannot_be_read(store: Workspace) -> None:
    now = 0.0
    router = Router(store, ttl_s=2.0, clock=lambda: now)
    for _ in range(3):
        deploy_version(store, register_next(store))
    registry.set_alias(store, "greeter", "champion", "2")
    await router.snapshot()
    manifest = store.get("models/greeter/2/manifest.json")
    for key in ("aliases/greeter/champion.json", "models/greeter/2/manifest.json"):
        store.put(key, b"{")
        now += 10.0
        assert (await router.resolve("greeter", "/v1/chat/completions", OPERATOR)).model == "greeter@2"
    with pytest.raises(CorruptObject, match="point it at a version again"):
        registry.get(store, "greeter")
    store.put("models/greeter/2/manifest.json", manifest)
    registry.set_alias(store, "greeter", "champion", "2")
    assert registry.get(store, "greeter").version == "2"
