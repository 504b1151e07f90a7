"""Promoting, canaries, shadows and the way back; wire names; who sees what. On a real store, without engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ray_jobs import deploy, registry
from ray_jobs.__main__ import cli
from ray_jobs.cli import session
from ray_jobs.deploy import needed_records, records, traffic
from ray_jobs.deploy.traffic import Bounds, Canary, TrafficPolicy, Watch, choose
from ray_jobs.errors import ConflictError, RegistryError, ServingError, StoreUnreachable
from ray_jobs.registry import Lineage, ModelVersion, api_names, shares
from ray_jobs.registry.shares import Share
from ray_jobs.spec import ServingSection
from ray_jobs.storage import Store
from serving.access.auth import OPERATOR
from serving.http import errors
from serving.http.errors import ApiError
from serving.inference.backends import Route
from serving.inference.router import Router, RoutingSnapshot, read_snapshot, resolve
from serving.inference.traffic import RequestOutcome, Traffic, judge
from tests.builders import make_spec
from tests.serving.api_harness import make_app
from tests.serving.fake_backend import FakeBackend

JOB = "ftjob-01j8z5k3q7w9x2y4a6b8c0d2e4"
BOUNDS = Bounds(max_error_rate=0.1, max_p95_s=1.0, min_requests=5)


@dataclass(frozen=True)
class Member:
    """Somebody of a team, who is no operator."""

    team: str
    admin: bool = False


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def owned(version: ModelVersion, team: str) -> ModelVersion:
    """The version as a job of that team makes it."""
    spec = version.lineage.spec.model_copy(update={"team": team})
    return replace(version, lineage=replace(version.lineage, spec=spec))


def make_version(number: str = "1", *, name: str = "greeter", team: str | None = None, **changes: Any) -> ModelVersion:
    lineage = Lineage("d" * 16, "b" * 16, make_spec(name), "0.1.0", "job", {})
    version = ModelVersion(
        name, number, f"models/{name}/{number}", "chat", "adapter", "base", "b" * 16, (), {}, lineage
    )
    version = replace(version, **changes)
    return version if team is None else owned(version, team)


def make_snapshot(*versions: ModelVersion, **parts: Any) -> RoutingSnapshot:
    deployed = {}
    by_name: dict[str, tuple[ModelVersion, ...]] = {}
    for version in versions:
        for record in needed_records(version, None, ServingSection(), lora_rank=8):
            deployed[record.name] = record
        by_name[version.name] = (*by_name.get(version.name, ()), version)
    return RoutingSnapshot(deployed, by_name, **{"aliases": {}} | parts)


def register(store: Store, tmp_path: Path, name: str = "greeter", *, adapter: bool = True) -> ModelVersion:
    """The next version, deployed."""
    mark = f"{name}-{len(registry.versions(store, name))}"
    directory = tmp_path / mark
    directory.mkdir()
    if adapter:
        (directory / "adapter_config.json").write_text(json.dumps({"r": 8}))
    save_file({"w": np.zeros(1, dtype=np.float32)}, directory / "model.safetensors", {"mark": mark})
    lineage = Lineage("d" * 16, "b" * 16, make_spec(name, base_model="org/Base"), "0.1.0", "job", {})
    version = registry.register(store, name, directory, lineage=lineage, lineage_digest=mark)
    for record in needed_records(version, None, ServingSection(), lora_rank=8):
        records.write(store, record)
    return version


@pytest.fixture
def greeter(store: Store, tmp_path: Path) -> str:
    """A model with three versions, the first its champion."""
    for _ in range(3):
        register(store, tmp_path)
    registry.set_alias(store, "greeter", "champion", "1")
    return "greeter"


def champion(store: Store) -> str:
    return registry.aliases(store, "greeter")["champion"]


def policy_of(store: Store) -> TrafficPolicy:
    policy = traffic.read(store, "greeter")
    assert policy is not None
    return policy


# --- wire names ------------------------------------------------------------------------------------------------------


def test_a_wire_name_tells_base_team_suffix_and_id() -> None:
    version = make_version(name=JOB, team="support")
    assert api_names.wire_name(version, suffix="faq") == f"ft:base:support:faq:{JOB[6:]}"
    assert api_names.wire_name(version, checkpoint="ckpt-step-8") == f"ft:base:support::{JOB[6:]}:ckpt-step-8"
    assert api_names.wire_name(make_version()) == "greeter"


@given(st.text(max_size=64), st.none() | st.integers(1, 10**6), st.from_regex(r"[a-z0-9]{4,26}", fullmatch=True))
def test_a_wire_name_leads_back_to_its_model_whatever_its_suffix(suffix: str, step: int | None, job: str) -> None:
    checkpoint = None if step is None else f"ckpt-step-{step}"
    name = api_names.wire_name(make_version(name=f"ftjob-{job}"), checkpoint=checkpoint, suffix=suffix)
    assert api_names.registry_ref(name) == f"ftjob-{job}" + (f"@{checkpoint}" if checkpoint else "")


@pytest.mark.parametrize(
    "name", ["greeter", "greeter@2", "ft:a:b:c", "ft:a:b:c:D", "ft:a:b:c:d:e", "ft:a:b:c:d:ckpt-step-"]
)
def test_other_names_are_no_wire_names(name: str) -> None:
    assert api_names.registry_ref(name) == name


TUNED = make_snapshot(
    *(make_version(number, name=JOB, team="support") for number in ("1", "2", "3")),
    aliases={JOB: {"champion": "3", "ckpt-step-4": "1", "ckpt-step-12": "2"}},
)
WIRE = f"ft:base:support::{JOB[6:]}"


def test_models_made_through_the_api_are_listed_by_their_wire_names_with_their_checkpoints() -> None:
    names = TUNED.names(OPERATOR)
    assert names == ["base", WIRE, f"{WIRE}:ckpt-step-4", f"{WIRE}:ckpt-step-12"]
    assert [resolve(TUNED, name, OPERATOR).public_name for name in names] == names


@pytest.mark.parametrize(
    ("asked", "exact", "shown"),
    [
        (WIRE, f"{JOB}@3", WIRE),
        (f"ft:other:words:here:{JOB[6:]}", f"{JOB}@3", WIRE),
        (f"{WIRE}:ckpt-step-4", f"{JOB}@1", f"{WIRE}:ckpt-step-4"),
        (JOB, f"{JOB}@3", WIRE),
        (f"{JOB}@3", f"{JOB}@3", WIRE),
        (f"{JOB}@2", f"{JOB}@2", f"{WIRE}:ckpt-step-12"),
    ],
)
def test_a_wire_name_is_answered_and_shown(asked: str, exact: str, shown: str) -> None:
    route = resolve(TUNED, asked, OPERATOR)
    assert (route.adapter, route.public_name) == (exact, shown)


@pytest.mark.parametrize("missing", [f"{WIRE}:ckpt-step-5", "ft:base:support::nobody"])
def test_an_unknown_wire_name_is_not_found(missing: str) -> None:
    with pytest.raises(ApiError) as caught:
        resolve(TUNED, missing, OPERATOR)
    assert caught.value.status == 404


class FixedRouter(Router):
    """A router whose snapshot is given."""

    def __init__(self, snapshot: RoutingSnapshot, traffic: Traffic) -> None:
        self._given = snapshot
        self.stopped = traffic.stopped

    async def snapshot(self, *, max_age_s: float | None = None) -> RoutingSnapshot:
        return self._given


def make_client(backend: FakeBackend, snapshot: RoutingSnapshot, traffic: Traffic | None = None) -> TestClient:
    traffic = traffic or Traffic()
    app = make_app(FixedRouter(snapshot, traffic), backend, traffic, api_key=None)
    return TestClient(app, raise_server_exceptions=False)


def ask(client: TestClient, model: str, *, text: str = "good day", stream: bool = False) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
    return client.post("/v1/chat/completions", json=body)


def test_answers_streams_and_cards_name_the_model_as_clients_do() -> None:
    said = f'"model": "{JOB}@3"'
    backend = FakeBackend()
    with make_client(backend, TUNED) as client:
        assert ask(client, WIRE).json()["model"] == WIRE
        events = [line.removeprefix("data: ") for line in ask(client, WIRE, text=said, stream=True).text.splitlines()]
        chunks = [json.loads(event) for event in events if event.startswith("{")]
        assert {chunk["model"] for chunk in chunks} == {WIRE}
        assert " ".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == said
        assert client.get(f"/v1/models/{JOB}").json()["id"] == WIRE
        assert WIRE in [card["id"] for card in client.get("/v1/models").json()["data"]]
    assert {body["model"] for _, _, body in backend.calls} == {f"{JOB}@3"}
    assert backend.closed == len(backend.calls)


# --- who sees what ---------------------------------------------------------------------------------------------------

COMPANY = make_snapshot(
    make_version(name="secret-plans", team="board"),
    make_version(name="faq", team="support"),
    make_version("2", name="faq", team="support"),
    make_version(name="greeter"),
    shares={"faq": Share(teams=("sales",)), "greeter": Share(everyone=True)},
)


@pytest.mark.parametrize(
    ("viewer", "names"),
    [
        (Member("board"), ["base", "greeter", "greeter@1", "secret-plans", "secret-plans@1"]),
        (Member("support"), ["base", "faq", "faq@1", "faq@2", "greeter", "greeter@1"]),
        (Member("sales"), ["base", "faq", "faq@1", "faq@2", "greeter", "greeter@1"]),
        (Member("default"), ["base", "greeter", "greeter@1"]),
        (Member("guests"), ["base", "greeter", "greeter@1"]),
        (OPERATOR, ["base", "faq", "faq@1", "faq@2", "greeter", "greeter@1", "secret-plans", "secret-plans@1"]),
    ],
)
def test_a_team_sees_bases_its_own_and_what_is_shared_with_it(viewer: Member, names: list[str]) -> None:
    assert sorted(COMPANY.names(viewer)) == names
    for name in COMPANY.names(OPERATOR):
        if name in names:
            resolve(COMPANY, name, viewer)
        else:
            with pytest.raises(ApiError):
                resolve(COMPANY, name, viewer)


@pytest.mark.parametrize("model", ["secret-plans", "secret-plans@1", "secret-plans@7", "secret-plan", "secret-plans@"])
def test_a_hidden_model_is_refused_as_if_there_were_none(model: str) -> None:
    without = make_snapshot(
        *(version for name in ("faq", "greeter") for version in COMPANY.versions[name]), shares=COMPANY.shares
    )
    told = []
    for snapshot in (COMPANY, without):
        with pytest.raises(ApiError) as caught:
            resolve(snapshot, model, Member("support"))
        told.append((caught.value.status, caught.value.code, caught.value.message, caught.value.headers))
    assert told[0] == told[1]
    assert "secret" not in told[0][2].replace(model, "")


def test_of_a_name_that_two_teams_use_each_sees_its_versions() -> None:
    mixed = make_snapshot(make_version("1", team="a"), make_version("2", team="b"))
    assert resolve(mixed, "greeter", Member("a")).model == "greeter@1"
    assert resolve(mixed, "greeter", Member("b")).model == "greeter@2"
    assert "greeter@2" not in mixed.names(Member("a"))


def test_shares_grow_and_shrink(store: Store, greeter: str) -> None:
    assert shares.share(store, greeter, teams=["sales"]) == Share(teams=("sales",))
    assert shares.share(store, greeter, teams=["board", "sales"]).teams == ("board", "sales")
    assert shares.share(store, greeter, everyone=True) == Share(teams=("board", "sales"), everyone=True)
    assert shares.share(store, greeter, teams=["sales"]).everyone
    assert shares.unshare(store, greeter, teams=["board"]) == Share(teams=("sales",), everyone=True)
    assert shares.unshare(store, greeter, everyone=True) == Share(teams=("sales",))
    assert read_snapshot(store).shares == {greeter: Share(teams=("sales",))}
    assert shares.unshare(store, greeter) == shares.NOBODY
    assert shares.read_all(store) == {}


def test_impossible_shares_are_refused(store: Store, greeter: str) -> None:
    with pytest.raises(RegistryError, match="no model 'greter'"):
        shares.share(store, "greter", everyone=True)
    with pytest.raises(RegistryError, match="'Sales Team' cannot be a team"):
        shares.share(store, greeter, teams=["Sales Team"])
    with pytest.raises(RegistryError, match="name a team, or everyone"):
        shares.share(store, greeter)
    shares.share(store, greeter, teams=["sales"])
    with pytest.raises(RegistryError, match="not shared with board; it is shared with sales"):
        shares.unshare(store, greeter, teams=["board"])
    with pytest.raises(RegistryError, match="not shared with everyone"):
        shares.unshare(store, greeter, everyone=True)


# --- promote and roll back -------------------------------------------------------------------------------------------


def test_a_promotion_moves_the_alias_and_ends_its_canary(store: Store, greeter: str) -> None:
    traffic.start_canary(store, greeter, "2", percent=10)
    assert champion(store) == "1"
    assert traffic.promote(store, greeter, "2") == "greeter@champion is version 2, before 1"
    assert champion(store) == "2"
    assert policy_of(store).canary is None


def test_rolling_back_twice_is_where_it_was(store: Store, greeter: str) -> None:
    traffic.promote(store, greeter, "3")
    assert traffic.roll_back(store, greeter) == "greeter@champion is version 1 again, before 3"
    assert champion(store) == "1"
    traffic.roll_back(store, greeter)
    assert champion(store) == "3"


def test_rolling_back_ends_canary_and_shadow_before_it_moves_the_alias(store: Store, greeter: str) -> None:
    traffic.promote(store, greeter, "2")
    traffic.start_canary(store, greeter, "3", percent=10)
    traffic.start_shadow(store, greeter, "1")
    assert "canary 3 and shadow 1 ended" in traffic.roll_back(store, greeter)
    assert (champion(store), policy_of(store).canary, policy_of(store).shadow) == ("2", None, None)
    traffic.roll_back(store, greeter)
    assert champion(store) == "1"


def test_there_may_be_nothing_to_go_back_to(store: Store, greeter: str) -> None:
    with pytest.raises(RegistryError, match="was version 1 from the first"):
        traffic.roll_back(store, greeter)
    with pytest.raises(RegistryError, match="greeter@prod is not set"):
        traffic.roll_back(store, greeter, alias="prod")
    with pytest.raises(RegistryError, match="no model 'greter'"):
        traffic.roll_back(store, "greter")


def test_of_two_who_promote_at_once_one_is_told(store: Store, greeter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = registry.read_alias

    def late(store: Store, name: str, alias: str) -> registry.Alias | None:
        found = real(store, name, alias)
        registry.set_alias(store, name, alias, "2")  # somebody else, just now
        return found

    monkeypatch.setattr(registry, "read_alias", late)
    with pytest.raises(ConflictError, match="greeter@champion is 2, not 1"):
        traffic.promote(store, greeter, "3")
    assert champion(store) == "2"


def test_what_a_canary_needs(store: Store, tmp_path: Path, greeter: str) -> None:
    with pytest.raises(RegistryError, match="is version 1 already"):
        traffic.start_canary(store, greeter, "champion", percent=10)
    with pytest.raises(RegistryError, match="no '9'"):
        traffic.start_canary(store, greeter, "9", percent=10)
    with pytest.raises(RegistryError, match="greeter@prod is not set"):
        traffic.start_canary(store, greeter, "2", percent=10, alias="prod")
    register(store, tmp_path, "whole", adapter=False)
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


def test_one_alias_has_the_trials(store: Store, greeter: str) -> None:
    registry.set_alias(store, greeter, "prod", "1")
    traffic.start_canary(store, greeter, "2", percent=10, alias="prod")
    with pytest.raises(ConflictError, match="end it first"):
        traffic.start_canary(store, greeter, "3", percent=10)
    traffic.promote(store, greeter, "3")
    assert policy_of(store).canary is not None
    traffic.roll_back(store, greeter, alias="prod")
    traffic.start_canary(store, greeter, "2", percent=10)


# --- which version a request gets ------------------------------------------------------------------------------------


def on_rollout(**policy: Any) -> RoutingSnapshot:
    """greeter@1 is the champion of three versions."""
    return make_snapshot(
        *(make_version(number) for number in ("1", "2", "3")),
        aliases={"greeter": {"champion": "1", "prod": "1"}},
        traffic={"greeter": TrafficPolicy(**policy)},
    )


CANARY = Canary(id="c", version="2", percent=30, bounds=BOUNDS)
WATCH = Watch(id="w", version="1", back_to="3", until=datetime.now(UTC) + timedelta(hours=1), bounds=BOUNDS)


@given(st.floats(0.001, 100))
def test_a_canary_gets_its_share(percent: float) -> None:
    canary = CANARY.model_copy(update={"percent": percent})
    draws = [i / 10_000 for i in range(10_000)]
    got = sum(choose(canary, draw) == "2" for draw in draws)
    assert abs(got / 100 - percent) <= 0.01 + 1e-9
    assert choose(canary, 1.0) is None
    assert choose(None, 0.0) is None


@pytest.mark.anyio
async def test_drawn_at_random_the_share_converges() -> None:
    router = FixedRouter(on_rollout(canary=CANARY), Traffic())
    routes = [await router.resolve("greeter", "chat", OPERATOR) for _ in range(4000)]
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
def test_a_canary_that_cannot_answer_is_none(number: str) -> None:
    snapshot = on_rollout(canary=CANARY.model_copy(update={"version": number}))
    stranger = make_version("4", base_digest="c" * 16)
    snapshot = replace(snapshot, versions={"greeter": (*snapshot.versions["greeter"], stranger)})
    assert resolve(snapshot, "greeter", OPERATOR, draw=0.0) == resolve(snapshot, "greeter@1", OPERATOR)


def test_a_stopped_trial_counts_at_once() -> None:
    assert resolve(on_rollout(canary=CANARY), "greeter", OPERATOR, draw=0.0, stopped={"c"}).model == "greeter@1"
    watched = on_rollout(watch=WATCH)
    assert resolve(watched, "greeter", OPERATOR).rollout == WATCH
    back = resolve(watched, "greeter", OPERATOR, stopped={"w"})
    assert (back.model, back.rollout) == ("greeter@3", None)
    moved = replace(watched, aliases={"greeter": {"champion": "2"}})
    assert resolve(moved, "greeter", OPERATOR, stopped={"w"}).model == "greeter@2"


@pytest.mark.anyio
async def test_a_started_canary_counts_without_a_restart(store: Store, greeter: str) -> None:
    now = 0.0
    router = Router(store, ttl_s=2.0, clock=lambda: now)
    assert (await router.resolve(greeter, "/v1/chat/completions", OPERATOR, draw=0.0)).model == "greeter@1"
    traffic.start_canary(store, greeter, "2", percent=10)
    now = 3.0
    assert (await router.resolve(greeter, "/v1/chat/completions", OPERATOR, draw=0.05)).model == "greeter@2"
    assert (await router.resolve(greeter, "/v1/chat/completions", OPERATOR, draw=0.15)).model == "greeter@1"


# --- judging ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.builds(RequestOutcome, st.booleans(), st.floats(0, 10)), max_size=60))
def test_judging_follows_its_bounds(outcomes: list[RequestOutcome]) -> None:
    reason = judge(BOUNDS, outcomes)
    failed = sum(not outcome.ok for outcome in outcomes)
    slow = sum(outcome.ok and outcome.seconds > 1.0 for outcome in outcomes)
    answered = len(outcomes) - failed
    if len(outcomes) < 5:
        assert reason is None
    elif failed > 0.1 * len(outcomes):
        assert reason == f"{failed} of {len(outcomes)} requests failed; the maximum error rate is 0.1"
    elif answered >= 5 and slow > 0.05 * answered:
        assert reason is not None
        assert reason.startswith(f"the p95 of {answered} requests is ")
    else:
        assert reason is None


def test_a_bound_is_passed_by_more_than_it_says() -> None:
    good, slow, bad = RequestOutcome(True, 0.5), RequestOutcome(True, 2.0), RequestOutcome(False, 0.5)
    assert judge(BOUNDS, [good] * 9 + [bad]) is None
    assert judge(BOUNDS, [good] * 8 + [bad] * 2) is not None
    assert judge(BOUNDS, [good] * 95 + [slow] * 5) is None
    assert judge(BOUNDS, [good] * 94 + [slow] * 6) == "the p95 of 100 requests is 2 s; the maximum is 1 s"


def route_on(rollout: Canary | Watch) -> Route:
    return Route(
        f"greeter@{rollout.version}", "kitae-base", "chat", adapter=f"greeter@{rollout.version}", rollout=rollout
    )


def started_canary(store: Store) -> Canary:
    traffic.start_canary(store, "greeter", "2", percent=50, bounds=BOUNDS)
    canary = policy_of(store).canary
    assert canary is not None
    return canary


@pytest.mark.anyio
async def test_a_canary_that_fails_is_taken_off_once_by_whoever_is_first(store: Store, greeter: str) -> None:
    canary = started_canary(store)
    replicas = [Traffic(store), Traffic(store), Traffic(store)]
    writes: list[bool] = []
    real = traffic.end_canary

    def counted(*arguments: Any) -> bool:
        writes.append(real(*arguments))
        return writes[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traffic, "end_canary", counted)
        for replica in replicas:
            for _ in range(20):
                replica.observe(route_on(canary), ok=False, seconds=0.1)
        await asyncio.gather(*(replica.settled() for replica in replicas))
    assert sorted(writes) == [False, False, True]
    policy = policy_of(store)
    assert policy.canary is None
    assert policy.rolled_back is not None
    assert policy.rolled_back.reason == "5 of 5 requests failed; the maximum error rate is 0.1"
    assert champion(store) == "1"
    assert "rolled back  greeter@2 (canary)" in "\n".join(traffic.told(policy, greeter))


@pytest.mark.anyio
async def test_a_promotion_that_fails_goes_back_once(store: Store, greeter: str) -> None:
    traffic.promote(store, greeter, "2", bounds=BOUNDS)
    watch = policy_of(store).watch
    assert watch is not None
    replicas = [Traffic(store), Traffic(store), Traffic(store)]
    for replica in replicas:
        for _ in range(20):
            replica.observe(route_on(watch), ok=False, seconds=0.1)
    await asyncio.gather(*(replica.settled() for replica in replicas))
    assert registry.read_alias(store, greeter, "champion") == registry.Alias("1", previous="2")
    policy = policy_of(store)
    assert (policy.watch, policy.rolled_back and policy.rolled_back.was) == (None, "promoted")


def test_a_promotion_that_was_followed_by_another_does_not_go_back(store: Store, greeter: str) -> None:
    traffic.promote(store, greeter, "2", bounds=BOUNDS)
    watch = policy_of(store).watch
    assert watch is not None
    registry.set_alias(store, greeter, "champion", "3")
    assert traffic.undo_promotion(store, greeter, watch, "late") is False
    assert (champion(store), policy_of(store).watch) == ("3", None)


@pytest.mark.anyio
async def test_a_late_judgement_does_not_touch_the_next_trial(store: Store, greeter: str) -> None:
    """A process that was cut off judges an old rollout of a version that is on rollout again by now."""
    old = started_canary(store)
    traffic.roll_back(store, greeter)
    started_canary(store)
    assert traffic.end_canary(store, greeter, old, "late") is False
    assert policy_of(store).canary is not None
    traffic.promote(store, greeter, "3", bounds=BOUNDS)
    watch = policy_of(store).watch
    assert watch is not None
    traffic.promote(store, greeter, "3", bounds=BOUNDS)
    assert traffic.undo_promotion(store, greeter, watch, "late") is False
    assert champion(store) == "3"


@pytest.mark.anyio
async def test_while_the_store_is_away_this_process_stops_and_tells_it_later(
    store: Store, greeter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = started_canary(store)
    real, tries = traffic.end_canary, 0

    def away_twice(*arguments: Any) -> bool:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise StoreUnreachable("no answer")
        return real(*arguments)

    monkeypatch.setattr(traffic, "end_canary", away_twice)
    replica = Traffic(store, retry_s=0.01)
    router = Router(store, ttl_s=1000.0, stopped=replica.stopped)
    assert (await router.resolve(greeter, "/v1/chat/completions", OPERATOR, draw=0.0)).model == "greeter@2"
    for _ in range(5):
        replica.observe(route_on(canary), ok=False, seconds=0.1)
    assert (await router.resolve(greeter, "/v1/chat/completions", OPERATOR, draw=0.0)).model == "greeter@1"
    await replica.settled()
    assert tries == 3
    assert policy_of(store).canary is None


@pytest.mark.anyio
async def test_good_answers_few_bad_ones_and_the_time_after_the_watch_change_nothing() -> None:
    replica = Traffic()
    for i in range(300):
        replica.observe(route_on(CANARY), ok=i % 20 != 19, seconds=0.1)
    for _ in range(4):
        replica.observe(route_on(WATCH), ok=False, seconds=0.1)
    over = WATCH.model_copy(update={"id": "over", "until": datetime.now(UTC) - timedelta(seconds=1)})
    for _ in range(20):
        replica.observe(route_on(over), ok=False, seconds=0.1)
    assert replica.stopped == set()
    replica.observe(route_on(WATCH), ok=False, seconds=0.1)
    assert replica.stopped == {"w"}


@pytest.mark.anyio
async def test_the_window_slides() -> None:
    """A version that was good for long and now fails goes by its last outcomes."""
    replica = Traffic()
    for _ in range(5000):
        replica.observe(route_on(CANARY), ok=True, seconds=0.1)
    for _ in range(30):
        replica.observe(route_on(CANARY), ok=False, seconds=0.1)
    assert replica.stopped == {"c"}


@pytest.mark.parametrize(
    ("backend", "stops"),
    [
        (FakeBackend(failure=RuntimeError("broken")), True),
        (FakeBackend(failure=errors.not_ready("greeter")), True),
        (FakeBackend(refusal={"message": "broken", "code": 500}), True),
        (FakeBackend(failure=RuntimeError("broken"), fail_after=1), True),
        (FakeBackend(failure=errors.queue_full("greeter")), False),
        (FakeBackend(refusal={"message": "too long", "code": 400}), False),
        (FakeBackend(), False),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_5xx_is_the_versions_error_and_4xx_is_not(backend: FakeBackend, stops: bool, stream: bool) -> None:
    stops = stops and (stream or backend.fail_after is None)  # an answer in one does not break off half way
    replica = Traffic()
    whole = on_rollout(canary=CANARY.model_copy(update={"percent": 100}))
    with make_client(replace(backend, calls=[]), whole, replica) as client:
        for _ in range(12):
            ask(client, "greeter", stream=stream)
    assert bool(replica.stopped) is stops


@pytest.mark.anyio
async def test_what_a_client_waits_for_in_vain_is_slow_and_what_it_leaves_is_not() -> None:
    async def never(route: Route) -> AsyncIterator[dict[str, Any] | str]:
        await asyncio.sleep(60)
        yield "data: [DONE]\n\n"

    impatient = CANARY.model_copy(update={"bounds": Bounds(max_p95_s=0.001, min_requests=3)})
    replica = Traffic()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(replica.measured(route_on(impatient), never(route_on(impatient))))
    assert replica.stopped == {"c"}
    backend = FakeBackend()
    for _ in range(10):
        body = {"messages": [{"content": "one two three"}], "stream": True, "model": "greeter@2"}
        chunks = replica.measured(route_on(WATCH), backend.generate(route_on(WATCH), "chat", body))
        await anext(chunks)
        await chunks.aclose()  # type: ignore[attr-defined]  # an async generator, typed by its protocol
    assert backend.closed == 10
    assert replica.stopped == {"c"}
    assert [outcome.ok for outcome in replica._windows["w"]] == [True] * 10


@pytest.mark.anyio
async def test_watched_counts_what_happens_inside() -> None:
    replica = Traffic()
    async with replica.watched(route_on(CANARY)):
        pass
    for error in [ApiError(404, "no"), ApiError(500, "broken"), ValueError("broken")]:
        with pytest.raises(type(error), match=str(error)):
            async with replica.watched(route_on(CANARY)):
                raise error
    assert [outcome.ok for outcome in replica._windows["c"]] == [True, False, False]


# --- shadows ---------------------------------------------------------------------------------------------------------


def test_a_shadow_gets_a_copy_and_nobody_sees_its_answer() -> None:
    replica, backend = Traffic(), FakeBackend()
    with make_client(backend, on_rollout(shadow="3"), replica) as client:
        answer = ask(client, "greeter")
        ask(client, "greeter@3")
        assert client.portal is not None
        client.portal.call(replica.settled)
    assert answer.json()["model"] == "greeter@1"
    assert sorted(body["model"] for _, _, body in backend.calls) == ["greeter@1", "greeter@3", "greeter@3"]
    copy, original = (next(body for _, _, body in backend.calls if body["model"] == f"greeter@{i}") for i in "31")
    assert copy["messages"] == original["messages"]
    assert copy["request_id"] != original["request_id"]
    assert (replica.shadows["greeter@3"].answered, replica.shadows["greeter@3"].failed) == (1, 0)


@pytest.mark.anyio
async def test_shadows_are_bounded_never_waited_for_and_their_failures_are_figures() -> None:
    release = asyncio.Event()
    begun = 0

    async def slow(route: Route) -> AsyncIterator[dict[str, Any] | str]:
        nonlocal begun
        begun += 1
        await release.wait()
        if begun > 2:
            raise RuntimeError("broken")
        yield {"error": {"message": "broken", "code": 500}} if begun == 2 else {"response": {}}

    replica = Traffic(max_shadows=2)
    route = replace(route_on(CANARY), shadow=Route("greeter@3", "kitae-base", "chat"))
    for _ in range(5):
        replica.mirror(route, slow)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    figures = replica.shadows["greeter@3"]
    assert (begun, figures.dropped, figures.answered + figures.failed) == (2, 3, 0)
    release.set()
    await replica.settled()
    replica.mirror(route, slow)
    await replica.settled()
    assert (figures.dropped, figures.answered + figures.failed) == (3, 3)
    assert figures.failed == 3
    replica.mirror(route_on(CANARY), slow)
    assert begun == 3
    assert replica.stopped == set()


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def kitae(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command on the test's own store."""
    monkeypatch.setattr(session, "open_store", lambda *, check=True: store)
    return lambda *arguments: CliRunner().invoke(cli, arguments)


def test_a_version_is_tried_and_promoted_and_taken_back(
    kitae: Callable[..., Result], store: Store, greeter: str
) -> None:
    assert "the alias alone decides" in kitae("traffic", greeter).output
    assert "gets a copy" in kitae("promote", greeter, "2", "--shadow").output
    started = kitae("promote", greeter, "2", "--canary", "10", "--max-p95-s", "2.0").output
    assert started.startswith("greeter@2 answers 10 % of the requests to greeter@champion; it stops by itself if more")
    assert policy_of(store).canary is not None
    assert policy_of(store).canary.bounds == Bounds(max_p95_s=2.0)  # type: ignore[union-attr]  # asserted above
    shown = kitae("traffic", greeter).output
    assert "canary   greeter@2, 10 % of greeter@champion" in shown
    assert "shadow" not in shown
    assert "canary   greeter@2" in kitae("models", greeter).output
    document = json.loads(kitae("traffic", greeter, "--json").output)
    assert (document["aliases"], document["policy"]["canary"]["percent"]) == ({"champion": "1"}, 10.0)
    assert "canary 2 ended" in kitae("rollback", greeter).output
    assert kitae("promote", greeter, "2").output == "greeter@champion is version 2, before 1\n"
    assert "goes back by itself" in kitae("promote", greeter, "3", "--max-error-rate", "0.2").output
    watch = policy_of(store).watch
    assert watch is not None
    assert (watch.version, watch.back_to, watch.bounds.max_error_rate) == ("3", "2", 0.2)
    assert kitae("rollback", greeter).output == "greeter@champion is version 2 again, before 3\n"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--canary", "10", "--shadow"], "either a canary or a shadow"),
        (["--shadow", "--max-p95-s", "1"], "a shadow has no bounds"),
        (["--canary", "10", "--watch-s", "60"], "for a whole promotion"),
        (["--canary", "0"], "0<x<=100"),
    ],
)
def test_options_that_do_not_go_together(
    kitae: Callable[..., Result], store: Store, greeter: str, options: list[str], match: str
) -> None:
    refused = kitae("promote", greeter, "2", *options)
    assert refused.exit_code == 2
    assert match in refused.output
    assert (champion(store), traffic.read(store, greeter)) == ("1", None)


def test_an_engine_of_its_own_follows_the_alias(
    kitae: Callable[..., Result], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed: list[str] = []

    def deploy_it(store: Store, ref: str, *_: Any, **__: Any) -> deploy.Deployed:
        deployed.append(ref)
        return deploy.Deployed("whole", registry.get(store, ref).version, None, "http://here/v1", recorded_only=False)

    monkeypatch.setattr(deploy, "deploy", deploy_it)
    register(store, tmp_path, "whole", adapter=False)
    register(store, tmp_path, "whole", adapter=False)  # what runs now
    registry.set_alias(store, "whole", "champion", "2")
    assert "whole (version 1) answers" in kitae("promote", "whole", "1").output
    assert "greeter" not in kitae("promote", "whole", "2").output
    assert deployed == ["whole"]
    kitae("rollback", "whole")
    kitae("promote", "whole", "1", "--alias", "prod")
    assert deployed == ["whole", "whole"]


def test_a_pinned_name_is_told_that_it_does_not_follow(
    kitae: Callable[..., Result], store: Store, greeter: str
) -> None:
    record = records.read(store, greeter)
    assert record is not None
    records.write(store, record.model_copy(update={"label": "1"}))
    assert "requests to greeter alone go to greeter@1, as it was deployed" in kitae("promote", greeter, "2").output


def test_a_model_is_shared_by_either_of_its_names(
    kitae: Callable[..., Result], store: Store, tmp_path: Path, greeter: str
) -> None:
    register(store, tmp_path, JOB)
    assert kitae("share", WIRE, "--team", "sales").output == f"{JOB} is shared with sales\n"
    assert kitae("share", greeter, "--everyone").output == "greeter is shared with everyone\n"
    assert "shared with everyone" in kitae("models", greeter).output
    assert kitae("unshare", JOB).output == f"{JOB} is shared with nobody\n"
    assert kitae("share", greeter).exit_code != 0
    assert shares.read_all(store) == {greeter: Share(everyone=True)}
