"""Launcher and job service under random and chosen sequences of events.

A job's status never goes backwards, no RayJob is created twice, none is left behind.
"""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_jobs import jobs
from tests.conftest import StoreServer
from tests.launch.world import JOBS, TEAM, World, run

STARTS = ("start",) * 6
USUAL = ("tick", "other tick", "watch", "reconcile", "advance", "advance", "begin", "check", "wait")
OTHERS = ("pause", "resume", "cancel", "finish", "crash", "preempt", "expire", "collect")
FAULTS = ("500", "409", "lost answer", "lost request", "expired token", "forgotten", "down", "heal")
events = st.lists(
    st.tuples(st.sampled_from((*STARTS, *USUAL, *OTHERS, *FAULTS)), st.integers(0, 40)),
    min_size=10,
    max_size=30,
)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(happened=events, lingers=st.booleans())
def test_random_events(store_server: StoreServer, happened: list[tuple[str, int]], lingers: bool) -> None:
    def act(world: World) -> None:
        for event in happened:
            world.happen(*event)

    run(store_server, act, lingers)


BEGUN = "tick reconcile advance advance advance begin"
SCRIPTS = {
    "a runner before its watch event is not lost": (
        f"{BEGUN} watch watch crash wait:2 other_tick reconcile advance advance advance begin finish "
        "reconcile advance advance advance begin wait:2 tick"
    ),
    "a preempted runner that was paused unnoticed makes room for its successor": (
        f"{BEGUN} watch preempt advance down pause:0 pause:1 resume:0 resume:1 heal tick watch tick reconcile"
    ),
    "the shown service receives a preemption late": f"{BEGUN} watch tick preempt other_tick tick watch tick",
    "a crash at the end of a pause": f"{BEGUN} pause:0 pause:1 crash resume:0 resume:1 tick check tick",
    "a preemption while the API is away": f"{BEGUN} watch down tick preempt advance heal watch tick reconcile tick",
    "cancelled while it waits and the API is away": "tick reconcile down cancel:0 cancel:1 tick heal tick watch tick",
    "the history is forgotten while everything moves": f"{BEGUN} watch forgotten preempt watch watch tick finish tick",
    "the history is forgotten before a preemption is received": f"{BEGUN} watch tick preempt forgotten",
    "resumed while it is being deleted": f"{BEGUN} pause:0 pause:1 wait:2 tick resume:0 resume:1 tick collect",
}


@pytest.mark.parametrize("lingers", [False, True], ids=["deleted at once", "deletion lingers"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_chosen_sequences(store_server: StoreServer, script: str, lingers: bool) -> None:
    def act(world: World) -> None:
        for event in SCRIPTS[script].split():
            what, _, which = event.replace("_", " ").partition(":")
            world.happen(what, int(which or 0))

    run(store_server, act, lingers)


def test_a_preempted_job_is_queued_again_and_ends(store_server: StoreServer) -> None:
    def act(world: World) -> None:
        for what in ("tick", "reconcile", "advance", "advance", "advance", "begin", "tick"):
            world.happen(what, 0)
        assert sorted(world.statuses) == ["queued", "running"]
        world.happen("wait", 10)
        world.happen("tick", 0)
        world.happen("preempt", 0)
        world.happen("wait", 10)
        world.happen("tick", 0)
        assert world.statuses == ["queued", "queued"]
        assert len(world.made) == JOBS
        (api,) = [api for api in world.apis if jobs.load(world.store, api.job_id).attempt == 1]
        messages = [event.message for _, event in jobs.events(world.store, api.job_id)]
        assert any(message.startswith("preempted: another job goes first") for message in messages)
        other = next(found for found in world.apis if found is not api)
        messages = [event.message for _, event in jobs.events(world.store, other.job_id)]
        assert "waiting: blue uses 2 of 2 h100" in messages

    run(store_server, act)


def test_a_launch_after_its_jobs_end_is_undone(store_server: StoreServer) -> None:
    """The job is cancelled and closed while the request is in flight; then the answer is lost."""

    def act(world: World) -> None:
        launch = world.shown.launcher.launch

        def slow(runner_id: str, *given: object) -> None:
            (api,) = [api for api in world.apis if runner_id.startswith(api.id)]
            assert world.other.cancel(TEAM, api.id).status == "cancelled"
            world.server.drop(after=True, when=lambda request: request.verb == "create")
            launch(runner_id, *given)  # type: ignore[arg-type]

        world.shown.parallel_jobs = 1
        with patch.object(world.shown.launcher, "launch", slow):
            world.shown.reconcile()
        assert world.made
        assert world.live() == []

    run(store_server, act)
