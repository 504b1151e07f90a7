"""Which models a team may use: bases, its own, and those shared with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ray_jobs.errors import RegistryError
from ray_jobs.registry import shares
from ray_jobs.registry.shares import Share
from ray_jobs.storage import Workspace
from serving.access.auth import OPERATOR, Caller
from serving.http.errors import ApiError
from serving.inference.router import read_snapshot, resolve
from tests.serving.inference.rollouts import member
from tests.serving.routing import make_snapshot, make_version

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
        (member("board"), ["base", "greeter", "greeter@1", "secret-plans", "secret-plans@1"]),
        (member("support"), ["base", "faq", "faq@1", "faq@2", "greeter", "greeter@1"]),
        (member("sales"), ["base", "faq", "faq@1", "faq@2", "greeter", "greeter@1"]),
        (member("default"), ["base", "greeter", "greeter@1"]),
        (member("guests"), ["base", "greeter", "greeter@1"]),
        (OPERATOR, ["base", "faq", "faq@1", "faq@2", "greeter", "greeter@1", "secret-plans", "secret-plans@1"]),
    ],
)
def test_a_team_sees_bases_its_own_and_what_is_shared_with_it(viewer: Caller, names: list[str]) -> None:
    assert sorted(COMPANY.names(viewer)) == names
    for name in COMPANY.names(OPERATOR):
        if name in names:
            resolve(COMPANY, name, viewer)
        else:
            with pytest.raises(ApiError):
                resolve(COMPANY, name, viewer)


@pytest.mark.parametrize("model", ["secret-plans", "secret-plans@1", "secret-plans@7", "secret-plan", "secret-plans@"])
def test_a_hidden_model_gets_the_same_error_as_an_unknown_one(model: str) -> None:
    without = make_snapshot(
        *(version for name in ("faq", "greeter") for version in COMPANY.versions[name]), shares=COMPANY.shares
    )
    errors = []
    for snapshot in (COMPANY, without):
        with pytest.raises(ApiError) as caught:
            resolve(snapshot, model, member("support"))
        errors.append((caught.value.status, caught.value.code, caught.value.message, caught.value.headers))
    assert errors[0] == errors[1]
    assert "secret" not in errors[0][2].replace(model, "")


def test_two_teams_with_one_name_each_see_their_own_versions() -> None:
    mixed = make_snapshot(make_version("1", team="a"), make_version("2", team="b"))
    assert resolve(mixed, "greeter", member("a")).model == "greeter@1"
    assert resolve(mixed, "greeter", member("b")).model == "greeter@2"
    assert "greeter@2" not in mixed.names(member("a"))


def untimed(share: Share) -> Share:
    """A share without the times at which its teams were added."""
    assert share.added_at.keys() == {*share.teams, *(["*"] if share.everyone else [])}
    return share.model_copy(update={"added_at": {}})


def test_shares_grow_and_shrink(store: Workspace, greeter: str) -> None:
    assert untimed(shares.share(store, greeter, teams=["sales"])) == Share(teams=("sales",))
    first = shares.read(store, greeter).added_at["sales"]
    assert shares.share(store, greeter, teams=["board", "sales"]).teams == ("board", "sales")
    assert shares.read(store, greeter).added_at["sales"] == first
    assert untimed(shares.share(store, greeter, everyone=True)) == Share(teams=("board", "sales"), everyone=True)
    assert shares.share(store, greeter, teams=["sales"]).everyone
    assert untimed(shares.unshare(store, greeter, teams=["board"])) == Share(teams=("sales",), everyone=True)
    assert untimed(shares.unshare(store, greeter, everyone=True)) == Share(teams=("sales",))
    assert untimed(read_snapshot(store).shares[greeter]) == Share(teams=("sales",))
    assert shares.unshare(store, greeter) == shares.NOT_SHARED
    assert shares.read_all(store) == {}


def test_invalid_shares_are_refused(store: Workspace, greeter: str) -> None:
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


def test_a_base_of_a_team_answers_that_team_only() -> None:
    """Also where an adapter on it is shared; the adapter answers."""
    bases = {"base": COMPANY.records["base"].model_copy(update={"team": "support"})}
    brought = replace(COMPANY, records={**COMPANY.records, **bases})
    resolve(brought, "base", member("support"))
    assert resolve(brought, "faq", member("sales")).model == "faq@2"
    assert "base" not in brought.names(member("sales"))
    with pytest.raises(ApiError, match="'base' is not deployed"):
        resolve(brought, "base", member("sales"))
