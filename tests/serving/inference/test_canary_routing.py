"""Which version answers a request to an alias with a rollout."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.deploy import traffic
from ray_jobs.deploy.traffic import choose
from ray_jobs.storage import Workspace
from serving.access.auth import OPERATOR
from serving.inference.router import Router, resolve
from serving.inference.traffic import Traffic
from tests.serving.inference.rollouts import CANARY, WATCH, on_rollout
from tests.serving.routing import FixedRouter, make_version


@given(st.floats(0.001, 100))
def test_a_canary_gets_its_share(percent: float) -> None:
    canary = CANARY.model_copy(update={"percent": percent})
    draws = [i / 10_000 for i in range(10_000)]
    got = sum(choose(canary, draw) == "2" for draw in draws)
    assert abs(got / 100 - percent) <= 0.01 + 1e-9
    assert choose(canary, 1.0) is None
    assert choose(None, 0.0) is None


@pytest.mark.anyio
async def test_the_share_converges_for_random_draws() -> None:
    router = FixedRouter(on_rollout(canary=CANARY), Traffic())
    routes = [await router.resolve("greeter", "/v1/chat/completions", OPERATOR) for _ in range(4000)]
    share = sum(route.model == "greeter@2" for route in routes) / len(routes)
    assert abs(share - 0.3) < 0.04  # five standard deviations
    assert {route.rollout for route in routes if route.model == "greeter@2"} == {CANARY}
    assert {route.rollout for route in routes if route.model == "greeter@1"} == {None}


@pytest.mark.parametrize(
    ("asked", "model"),
    [
        ("greeter", "greeter@2"),
        ("greeter@champion", "greeter@2"),
        ("greeter@prod", "greeter@1"),
        ("greeter@1", "greeter@1"),
    ],
)
def test_only_requests_to_the_alias_get_the_canary(asked: str, model: str) -> None:
    assert resolve(on_rollout(canary=CANARY), asked, OPERATOR, draw=0.0).model == model


@pytest.mark.parametrize("number", ["9", "4"])
def test_a_canary_that_cannot_answer_is_ignored(number: str) -> None:
    snapshot = on_rollout(canary=CANARY.model_copy(update={"version": number}))
    stranger = make_version("4", base_digest="c" * 16)
    snapshot = replace(snapshot, versions={"greeter": (*snapshot.versions["greeter"], stranger)})
    assert resolve(snapshot, "greeter", OPERATOR, draw=0.0) == resolve(snapshot, "greeter@1", OPERATOR)


def test_a_stopped_rollout_is_ignored_at_once() -> None:
    assert resolve(on_rollout(canary=CANARY), "greeter", OPERATOR, draw=0.0, stopped={"c"}).model == "greeter@1"
    watched = on_rollout(watch=WATCH)
    assert resolve(watched, "greeter", OPERATOR).rollout == WATCH
    back = resolve(watched, "greeter", OPERATOR, stopped={"w"})
    assert (back.model, back.rollout) == ("greeter@3", None)
    moved = replace(watched, aliases={"greeter": {"champion": "2"}})
    assert resolve(moved, "greeter", OPERATOR, stopped={"w"}).model == "greeter@2"


@pytest.mark.anyio
async def test_a_new_canary_takes_effect_without_a_restart(store: Workspace, greeter: str) -> None:
    now = 0.0
    router = Router(store, ttl_s=2.0, clock=lambda: now)
    assert (await router.resolve(greeter, "/v1/chat/completions", OPERATOR, draw=0.0)).model == "greeter@1"
    traffic.start_canary(store, greeter, "2", percent=10)
    now = 3.0
    assert (await router.resolve(greeter, "/v1/chat/completions", OPERATOR, draw=0.05)).model == "greeter@2"
    assert (await router.resolve(greeter, "/v1/chat/completions", OPERATOR, draw=0.15)).model == "greeter@1"
