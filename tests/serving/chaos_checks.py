"""Checks of a finished chaos scenario: jobs, files and store agree with all responses that clients received."""

from __future__ import annotations

import time
from collections import Counter

from ray_jobs import jobs, registry
from serving.fine_tuning import records
from serving.fine_tuning.lifecycle import MAX_LAUNCHES
from tests.serving.api_replica import TEAM
from tests.serving.chaos_scenario import ChaosScenario
from tests.serving.client_history import ENDED


def check_jobs(scenario: ChaosScenario) -> None:
    """Check that each create made one job, which has ended once and as reported."""
    history, (process, _) = scenario.history, scenario.replicas
    made = [records.load(scenario.store, TEAM, identifier) for identifier in records.ids(scenario.store, TEAM)]
    numbers = Counter((job.metadata or {})["number"] for job in made)
    assert set(numbers.values()) <= {1}, "a create made several jobs"
    assert {number: job.id for job in made if (number := (job.metadata or {})["number"]) in history.created} == (
        history.created
    )
    assert set(numbers) <= set(history.created) | history.unanswered
    assert sorted(scenario.store.list_dirs("jobs/")) == sorted(job.job_id for job in made)
    for job in made:
        final = process.tuning.get(TEAM, job.id)
        history.record(final)
        assert final.status in ENDED
        if job.id in history.ended:
            assert final.status == history.ended[job.id]
        elif final.status == "failed":
            assert len(job.launches) >= MAX_LAUNCHES
        else:
            assert final.status == "cancelled"
            assert job.id in history.maybe_cancelled
        for file in final.result_files:
            assert b"".join(process.files.content(process.files.get(TEAM, file))).startswith(b"step,")
        assert [launch.number for launch in job.launches] == list(range(1, len(job.launches) + 1))
        scenario.list_events(job.id)
        events = [event for _, event in jobs.events(scenario.store, job.job_id)]
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        messages = Counter(event.message for event in events)
        assert messages[f"created fine-tuning job {job.id}"] == 1
        assert messages["files validated, job queued"] <= 1
        record = jobs.load(scenario.store, job.job_id)
        begun = [message for message in messages.elements() if message.startswith("attempt ") and "started" in message]
        assert len(begun) == len(set(begun)) == record.attempt <= len(job.launches)
        counted = [info.key for info in scenario.store.list(f"usage/{TEAM}") if job.job_id in info.key]
        assert len(counted) == (1 if record.attempt else 0), counted


def check_files(scenario: ChaosScenario) -> None:
    """Check that every file has its content and that the store has no leftovers."""
    history, (process, _) = scenario.history, scenario.replicas
    for identifier in scenario.usable_files():
        content = b"".join(process.files.content(process.files.get(TEAM, identifier)))
        assert content == history.files[identifier]
    for identifier in history.deleted:
        assert process.files.find(TEAM, identifier) is None
    process.files.sweep(time.time() + 2 * 86_400)
    process.uploads.sweep(time.time() + 2 * 3600)
    keys = [info.key for info in scenario.store.list(f"teams/{TEAM}/files")]
    recorded = {key.rpartition("/")[2].removesuffix(".json") for key in keys}
    assert set(scenario.usable_files()) <= recorded
    contents = {info.key.split("/")[2] for info in scenario.store.list(f"files/{TEAM}")}
    assert contents == recorded, (contents - recorded, recorded - contents)
    assert list(scenario.store.list("uploads")) == []
    for name in history.models_deleted:
        assert registry.versions(scenario.store, name) == []
        assert registry.aliases(scenario.store, name) == {}
