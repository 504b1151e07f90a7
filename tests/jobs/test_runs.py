"""The heartbeat of an attempt, the status `lost` that follows from it, and the hours that are booked."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ray_jobs import jobs
from ray_jobs.errors import JobCancelled, JobPaused
from ray_jobs.jobs import Released, runs
from ray_jobs.jobs.runs import LOST_AFTER_S, RUNS, Heartbeat, JobRun, is_lost
from ray_jobs.quota import bookings
from ray_jobs.storage import Workspace
from ray_jobs.tenancy import usage
from tests.builders import make_spec

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)


def put_run(store: Workspace, **changes: Any) -> JobRun:
    facts = {"job": "greeter-1", "attempt": 1, "model": "greeter", "workers": 2, "gpus_per_worker": 1, "tokens": 100}
    times = {"started_at": NOW - timedelta(hours=1), "at": NOW, "held_s": 1800.0}
    run = JobRun.model_validate(facts | times | changes)
    RUNS.create(store, run.name, run)
    return run


def booked(store: Workspace, team: str) -> list[tuple[str, int, float, float, int]]:
    rows = usage.read(store.root, team, NOW.date() - timedelta(days=1), NOW.date() + timedelta(days=1))
    return [(row.model, row.requests, row.worker_seconds, row.gpu_seconds, row.prompt_tokens) for row in rows]


def test_an_ended_run_is_booked_once_to_the_team_of_its_place(store: Workspace) -> None:
    blue, now_s = Workspace(store, "blue"), NOW.timestamp()
    run = put_run(blue, ended=True)
    assert bookings.book(store, now_s) == 1
    assert bookings.book(store, now_s) == 0
    assert RUNS.read(blue, run.name) is None
    RUNS.create(blue, run.name, run)  # a second process had read it before it was deleted
    bookings.book(store, now_s)
    assert booked(store, "blue") == [("greeter", 1, 3600.0, 3600.0, 100)]
    assert booked(store, "default") == []


def test_a_run_that_lives_is_not_booked_and_one_of_the_api_is_not_either(store: Workspace) -> None:
    put_run(store)
    put_run(store, job="ftjob-1-2", ended=True)
    bookings.book(store, NOW.timestamp() + LOST_AFTER_S - 1)
    assert booked(store, "default") == []


def test_the_hours_are_at_most_those_since_its_start(store: Workspace) -> None:
    put_run(store, ended=True, held_s=10.0**8)
    bookings.book(store, NOW.timestamp())
    assert booked(store, "default") == [("greeter", 1, 7200.0, 7200.0, 100)]


def test_a_lost_runner_is_booked_and_stays_lost(store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    run = put_run(store, job=job.id)
    later_s = NOW.timestamp() + LOST_AFTER_S + 1
    assert not is_lost(store, job.record, NOW.timestamp() + 1)
    assert is_lost(store, job.record, later_s)
    bookings.book(store, later_s)
    bookings.book(store, later_s)
    assert [row[1] for row in booked(store, "default")] == [1]
    assert is_lost(store, job.record, later_s)
    bookings.book(store, later_s + bookings.KEPT_S)
    assert RUNS.read(store, run.name) is None
    assert not is_lost(store, job.finish("succeeded"), later_s)


def test_a_forged_run_is_bounded_and_does_not_stop_the_others(store: Workspace) -> None:
    put_run(store, ended=True)
    store.put("runs/forged-1.json", b'{"job": "forged", "attempt": 1, "held_s": 1e300, "workers": 10000000}')
    store.put_json("runs/other-1.json", put_run(store, job="x").model_dump(mode="json") | {"ended": True})
    bookings.book(store, NOW.timestamp())
    assert [row[0] for row in booked(store, "default")] == ["greeter"]


def test_a_heartbeat_counts_the_stages_that_hold_workers(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "BEAT_S", 0.05)
    job = jobs.start_attempt(store, make_spec())
    with Heartbeat(job, make_spec()).beating() as run:
        with run.stage("dataset"):
            time.sleep(0.1)
        with run.stage("train"):
            time.sleep(0.2)
            found = RUNS.read(store, f"{job.id}-1")
            assert found is not None
            assert not found.ended
            assert found.held_s > 0.05
        run.add_tokens(7)
    found = RUNS.read(store, f"{job.id}-1")
    assert found is not None
    assert (found.ended, found.tokens) == (True, 7)
    assert found.held_s < (found.at - found.started_at).total_seconds()


@pytest.mark.parametrize(("stop", "error"), [(jobs.request_cancel, JobCancelled), (jobs.request_pause, JobPaused)])
def test_a_release_that_was_stopped_while_it_waited_stays_so(store: Workspace, stop: Any, error: Any) -> None:
    spec = make_spec()
    jobs.start_attempt(store, spec, launched=Released(1))
    stop(store, spec.job_id)
    with pytest.raises(error, match=r"raise job\.attempt"):
        jobs.start_attempt(store, spec, launched=Released(1))
    assert jobs.start_attempt(store, spec, launched=Released(2)).attempt == 2


def test_a_release_whose_runner_saved_itself_resumes(store: Workspace) -> None:
    spec = make_spec()
    jobs.start_attempt(store, spec, launched=Released(1)).pause()
    assert jobs.start_attempt(store, spec, launched=Released(1)).attempt == 2
