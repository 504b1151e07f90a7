"""The hours that a job's end books, whatever its pods report."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ray_jobs.storage import Workspace
from serving.fine_tuning.job_end import training_seconds
from serving.fine_tuning.records import ApiJob, HeldTime, Launch
from serving.fine_tuning.reported import CheckedRecord
from tests.serving.fine_tuning.test_lifecycle import NOW, api_of, job_of

LAUNCHED_AT = NOW.timestamp() - 600.0


def job(**held: Any) -> ApiJob:
    launch = Launch(number=1, at=LAUNCHED_AT, attempt_before=0)
    return api_of("begun").model_copy(update={"launches": (launch,), "held": HeldTime(**held)})


@pytest.mark.parametrize(
    ("held", "reported_s", "booked_s"),
    [
        ({}, 60.0, 60.0),  # never seen to run: as reported
        ({}, 9e9, 600.0),  # no longer than since the launch
        ({}, -9e9, 0.0),
        ({"seconds": 300.0}, 0.0, 300.0),  # at least as long as it was seen to run
        ({"seconds": 300.0, "since": NOW.timestamp() - 50.0}, 0.0, 350.0),
        ({"seconds": 300.0}, 400.0, 400.0),
    ],
)
def test_hours_are_bounded_by_what_the_endpoint_saw(
    store: Workspace, held: dict[str, Any], reported_s: float, booked_s: float
) -> None:
    record = job_of("failed")
    assert record is not None
    ended_at = datetime.fromtimestamp(NOW.timestamp(), UTC)
    times = {"finished_at": ended_at, "started_at": ended_at - timedelta(seconds=reported_s), "result": None}
    reported = CheckedRecord(record.model_copy(update=times))
    assert training_seconds(store, job(**held), reported, NOW.timestamp()) == pytest.approx(booked_s)


def test_a_job_that_was_never_launched_books_nothing(store: Workspace) -> None:
    api = api_of("none")
    assert training_seconds(store, api, job_of("cancelled"), NOW.timestamp()) == 0.0


def test_a_job_whose_record_cannot_be_read_books_the_time_that_was_seen(store: Workspace) -> None:
    assert training_seconds(store, job(seconds=120.0), None, NOW.timestamp()) == 120.0
