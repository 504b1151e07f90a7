"""The job record against a real store: attempts, cancelling, pausing, events, stages."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from ray_jobs import jobs
from ray_jobs.errors import JobCancelled, JobError, JobPaused, JobSuperseded
from ray_jobs.jobs import Event, JobRecord, Status
from ray_jobs.storage import Workspace
from tests.builders import make_spec

UNPAUSED: dict[tuple[bool, bool, bool, bool], Status] = {
    # (started, finished, failed, cancelled)
    (False, False, False, False): "queued",
    (True, False, False, False): "running",
    (True, True, False, False): "succeeded",
    (True, True, True, False): "failed",
    (False, True, False, True): "cancelled",  # before its first attempt
    (True, True, False, True): "cancelled",
    (True, True, True, True): "cancelled",  # its runner failed while stopping
    # A half-written record still has one of the six.
    (False, True, False, False): "succeeded",
    (False, True, True, False): "failed",
    (False, False, True, False): "queued",
    (True, False, True, False): "running",
    (False, False, False, True): "cancelled",
    (False, False, True, True): "cancelled",
    (True, False, False, True): "cancelled",
    (True, False, True, True): "cancelled",
    (False, True, True, True): "cancelled",
}


@pytest.mark.parametrize("facts", list(itertools.product([False, True], repeat=4)))
def test_the_status_of_every_combination(facts: tuple[bool, bool, bool, bool]) -> None:
    started, finished, failed, cancelled = facts
    now = datetime.now(UTC)
    record = JobRecord(
        id="a-1",
        spec={},
        created_at=now,
        started_at=now if started else None,
        finished_at=now if finished else None,
        cancelled_at=now if cancelled else None,
        error="x" if failed else None,
    )
    assert record.status == UNPAUSED[facts]
    # Only a waiting or running job can be paused.
    waits_or_runs = UNPAUSED[facts] in ("queued", "running")
    paused = record.model_copy(update={"paused_at": now})
    assert paused.status == ("paused" if waits_or_runs else UNPAUSED[facts])


def test_a_record_round_trips_through_json() -> None:
    now = datetime.now(UTC)
    record = JobRecord(id="a-1", spec={}, created_at=now, started_at=now, finished_at=now, error="x", attempt=2)
    written = record.model_dump(mode="json")
    assert written["status"] == "failed"
    assert JobRecord.model_validate(written) == record


def test_creating_twice_is_one_queued_job(store: Workspace) -> None:
    first = jobs.create(store, make_spec())
    assert first.status == "queued"
    assert jobs.create(store, make_spec()) == first
    assert [record.id for record in jobs.list_jobs(store)] == [make_spec().job_id]


def test_an_attempt_from_start_to_success(store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec(), owner="here")
    job.check(fresh=True)
    running = jobs.load(store, job.id)
    assert (running.status, running.attempt, running.owner) == ("running", 1, "here")
    ended = job.finish("succeeded", result={"model": "greeter@1"})
    assert ended.status == "succeeded"
    assert jobs.load(store, job.id) == ended
    assert ended.result == {"model": "greeter@1"}


def test_a_failed_job_resumes_in_a_new_attempt(store: Workspace) -> None:
    jobs.start_attempt(store, make_spec()).finish("failed", error="NaN loss at step 3")
    assert jobs.load(store, make_spec().job_id).error == "NaN loss at step 3"
    again = jobs.start_attempt(store, make_spec())
    record = jobs.load(store, again.id)
    assert (record.attempt, record.status, record.error, record.finished_at) == (2, "running", None, None)


def test_the_older_runner_is_superseded_and_can_write_nothing(store: Workspace) -> None:
    older = jobs.start_attempt(store, make_spec(), owner="older")
    newer = jobs.start_attempt(store, make_spec(), owner="newer")
    with pytest.raises(JobSuperseded, match=r"attempt 1 .* attempt 2, by newer"):
        older.check(fresh=True)
    with pytest.raises(JobSuperseded):
        older.finish_stage("train", {"seed": 1}, {"loss": 1.0}, 2.0)
    with pytest.raises(JobSuperseded):
        older.finish("failed", error="too late")
    assert jobs.read_stage(store, newer.id, "train", {"seed": 1}) is None
    newer.check(fresh=True)
    assert newer.finish("succeeded").status == "succeeded"


def test_of_racing_runners_exactly_the_last_continues(store: Workspace) -> None:
    started: list[jobs.Job] = []
    barrier = threading.Barrier(4)

    def start() -> None:
        barrier.wait()
        started.append(jobs.start_attempt(store, make_spec()))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job.attempt for job in started) == [1, 2, 3, 4]
    for job in started:
        if job.attempt == 4:
            job.check(fresh=True)
        else:
            with pytest.raises(JobSuperseded):
                job.check(fresh=True)


def test_check_reads_the_store_at_intervals(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs.start_attempt(store, make_spec())
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    jobs.request_cancel(store, job.id)
    job.check()  # read a moment ago
    now_s += jobs.CHECK_EVERY_S
    with pytest.raises(JobCancelled):
        job.check()


def test_a_cancelled_job_stops_and_can_be_resumed(store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    assert jobs.request_cancel(store, job.id).status == "cancelled"
    assert jobs.request_cancel(store, job.id).status == "cancelled"
    with pytest.raises(JobCancelled, match="kitae resume greeter-"):
        job.check(fresh=True)
    with pytest.raises(JobCancelled):
        job.finish("succeeded")
    again = jobs.start_attempt(store, make_spec())
    again.check(fresh=True)
    assert jobs.load(store, job.id).status == "running"


def test_a_queued_job_can_be_cancelled_and_a_finished_one_not(store: Workspace) -> None:
    queued = jobs.create(store, make_spec("queued"))
    assert jobs.request_cancel(store, queued.id).status == "cancelled"
    done = jobs.start_attempt(store, make_spec("done"))
    done.finish("succeeded")
    with pytest.raises(JobError, match=r"already over \(succeeded\)"):
        jobs.request_cancel(store, done.id)


def test_a_paused_job_stops_and_resumes_in_the_next_attempt(store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    paused = jobs.request_pause(store, job.id)
    assert (paused.status, paused.finished_at, paused.over()) == ("paused", None, False)
    assert jobs.request_pause(store, job.id) == paused
    with pytest.raises(JobPaused, match="kitae resume greeter-"):
        job.check(fresh=True)
    with pytest.raises(JobPaused):
        job.finish_stage("train", {"seed": 1}, {"loss": 1.0}, 2.0)
    with pytest.raises(JobPaused):
        job.finish("failed", error="the workers ended without a result")
    again = jobs.start_attempt(store, make_spec())
    again.check(fresh=True)
    assert (again.record.status, again.record.paused_at) == ("running", None)
    with pytest.raises(JobSuperseded):
        job.check(fresh=True)


def test_only_a_job_that_is_not_over_can_be_paused(store: Workspace) -> None:
    queued = jobs.create(store, make_spec("queued"))
    assert jobs.request_pause(store, queued.id).status == "paused"
    done = jobs.start_attempt(store, make_spec("done"))
    done.finish("succeeded")
    with pytest.raises(JobError, match=r"already over \(succeeded\); there is nothing to pause"):
        jobs.request_pause(store, done.id)
    jobs.request_cancel(store, jobs.create(store, make_spec("cancelled")).id)
    with pytest.raises(JobError, match=r"already over \(cancelled\)"):
        jobs.request_pause(store, make_spec("cancelled").job_id)


def test_a_paused_job_can_be_cancelled(store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    jobs.request_pause(store, job.id)
    assert jobs.request_cancel(store, job.id).status == "cancelled"
    with pytest.raises(JobCancelled):
        job.check(fresh=True)
    assert jobs.start_attempt(store, make_spec()).record.status == "running"


def test_a_record_of_an_older_version_is_read() -> None:
    now = datetime.now(UTC)
    written = JobRecord(id="a-1", spec={}, created_at=now, started_at=now, attempt=1).model_dump(mode="json")
    del written["paused_at"]
    assert JobRecord.model_validate(written).status == "running"
    event = {"attempt": 1, "sequence": 1, "at": now.isoformat(), "level": "info", "message": "x", "data": {}}
    assert Event.model_validate(event).kind == "message"


def test_a_runner_stopped_by_a_signal_records_a_cancellation(store: Workspace) -> None:
    assert jobs.start_attempt(store, make_spec()).finish("cancelled").status == "cancelled"


def test_a_failure_needs_an_error_and_only_a_failure(store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    with pytest.raises(ValueError, match="has an error"):
        job.finish("failed")
    with pytest.raises(ValueError, match="has an error"):
        job.finish("succeeded", error="what?")


def test_events_are_read_in_order_and_after_a_key(store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    job.event("info", "ingest: 224 rows", {"rows": 224})
    job.event("warning", "2 rows left out")
    seen = list(jobs.events(store, job.id))
    assert [(event.level, event.message, event.data) for _, event in seen] == [
        ("info", "ingest: 224 rows", {"rows": 224}),
        ("warning", "2 rows left out", {}),
    ]
    jobs.start_attempt(store, make_spec()).event("error", "attempt 2 speaks")
    assert [event.message for _, event in jobs.events(store, job.id, after=seen[-1][0])] == ["attempt 2 speaks"]


def test_events_of_two_processes_of_one_attempt_are_all_kept(store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    other = jobs.Job(store, job.record)
    for number in range(3):
        job.event("info", f"driver {number}")
        other.event("info", f"worker {number}")
    assert len({event.message for _, event in jobs.events(store, job.id)}) == 6


def test_a_note_comes_after_earlier_events(store: Workspace) -> None:
    queued = jobs.create(store, make_spec())
    jobs.note(store, queued.id, "info", "created")
    job = jobs.start_attempt(store, make_spec())
    job.event("info", "one")
    job.event("info", "two", {"loss": 1.0}, kind="metrics")
    noted = jobs.note(store, job.id, "warning", "pause requested", {"by": "someone"})
    job.event("info", "three")
    jobs.note(store, job.id, "info", "four")
    written = [event for _, event in jobs.events(store, job.id)]
    assert [event.message for event in written] == ["created", "one", "two", "pause requested", "three", "four"]
    assert [(event.attempt, event.sequence) for event in written] == [(0, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6)]
    assert [event.kind for event in written] == ["message", "message", "metrics", "message", "message", "message"]
    assert written[3] == noted
    assert noted.data == {"by": "someone"}
    with pytest.raises(JobError, match="no job"):
        jobs.note(store, "unknown", "info", "x")


def test_notes_written_at_once_are_all_kept(store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: jobs.note(store, job.id, "info", f"note {number}"), range(8)))
    written = [event for _, event in jobs.events(store, job.id)]
    assert sorted(event.message for event in written) == [f"note {number}" for number in range(8)]
    assert [event.sequence for event in written] == list(range(1, 9))


def test_a_stage_is_found_by_its_inputs_alone(store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    assert jobs.read_stage(store, job.id, "ingest", {"rows": "abc", "seed": 1}) is None
    job.finish_stage("ingest", {"rows": "abc", "seed": 1}, {"dataset": "d1"}, 3.5)
    again = jobs.start_attempt(store, make_spec())
    found = jobs.read_stage(store, again.id, "ingest", {"seed": 1, "rows": "abc"})
    assert found is not None
    assert (found.outputs, found.seconds, found.attempt) == ({"dataset": "d1"}, 3.5, 1)
    assert jobs.read_stage(store, again.id, "ingest", {"rows": "abc", "seed": 2}) is None
    assert jobs.read_stage(store, again.id, "train", {"rows": "abc", "seed": 1}) is None


def test_a_repeated_stage_replaces_its_record(store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    job.finish_stage("deploy", {"model": "a@1"}, {"endpoint": "old"}, 1.0)
    job.finish_stage("deploy", {"model": "a@1"}, {"endpoint": "new"}, 1.0)
    assert [record.outputs for record in jobs.stages(store, job.id)] == [{"endpoint": "new"}]


def test_an_unknown_job_names_the_nearest(store: Workspace) -> None:
    with pytest.raises(JobError, match="`kitae status` lists the jobs"):
        jobs.load(store, "greeter")
    known = jobs.create(store, make_spec()).id
    with pytest.raises(JobError, match=f"did you mean '{known}'"):
        jobs.load(store, known[:-1] + "x")
    with pytest.raises(JobError, match=f"did you mean '{known}'"):
        jobs.load(store, "gre")


def test_jobs_are_listed_newest_first_and_orphans_left_out(store: Workspace) -> None:
    older = jobs.create(store, make_spec("older"))
    newer = jobs.create(store, make_spec("newer"))
    moved = older.model_copy(update={"created_at": newer.created_at - timedelta(hours=1)})
    store.put_json(f"jobs/{older.id}/job.json", moved.model_dump(mode="json"))
    store.put_json("jobs/orphan/stages/ingest-0.json", {})
    assert [record.id for record in jobs.list_jobs(store)] == [newer.id, older.id]


def test_an_attempt_that_pauses_follows_the_rule_of_request_pause(store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    job.pause()
    paused = jobs.load(store, job.id)
    assert paused.status == "paused"
    assert jobs.request_pause(store, job.id) == paused, "one pause"
    with pytest.raises(JobPaused):
        job.pause()
    newer = jobs.start_attempt(store, make_spec())
    with pytest.raises(JobSuperseded):
        job.pause()
    newer.finish("succeeded")
    with pytest.raises(JobSuperseded, match="the job is over"):
        newer.pause()
