"""The fine-tuning service over HTTP, on a real store with a fake launcher."""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path

import httpx
import pytest

from ray_jobs import jobs
from ray_jobs.errors import ClusterUnreachable, JobCancelled, JobPaused, PriorityTooHigh, RequestTooLarge, UnknownQueue
from ray_jobs.jobs import Launched
from ray_jobs.storage import Workspace
from ray_jobs.tenancy import usage, webhooks
from serving.access.auth import OPERATOR
from serving.files.stored_files import Files
from serving.fine_tuning import lifecycle, records
from serving.fine_tuning.service import FineTuningService
from serving.http import openai_types
from tests.builders import make_spec
from tests.launch.fake_launcher import FakeLauncher
from tests.serving.api_calls import create_job, upload, wait_for
from tests.serving.api_harness import BASE, ApiServer, NoTokens, add_base, begin_job, rows


def test_a_job_is_launched_and_its_end_is_published_once(
    http: httpx.Client, server: ApiServer, store: Workspace
) -> None:
    webhooks.add(store, "default", "https://hooks.example/x", webhooks.EVENTS, webhooks.Policy())
    job = create_job(http, suffix="日本 語", metadata={"a": "1"})
    wait_for(http, job["id"], "queued")
    (runner_id,) = server.launcher.known
    assert runner_id == f"{job['id']}-1"
    assert server.launcher.arguments[runner_id][:1] == ["resume"]
    assert "--launched" in server.launcher.arguments[runner_id]
    server.run_launched()
    done = wait_for(http, job["id"], "succeeded")
    assert done["fine_tuned_model"].startswith(f"ft:{BASE}:default:")
    assert done["fine_tuned_model"].endswith(job["id"].removeprefix("ftjob-"))
    assert done["trained_tokens"] == 1234
    assert http.get("/fine_tuning/jobs", params={"metadata[a]": "1"}).json()["data"][0]["id"] == job["id"]
    assert http.get("/fine_tuning/jobs", params={"metadata[a]": "2"}).json()["data"] == []
    # Its end is published once, however often it is read.
    for _ in range(3):
        http.get(f"/fine_tuning/jobs/{job['id']}")
    assert records.all_open(store) == []
    assert len(list(store.list("webhooks-out"))) == 1
    today = time.gmtime()
    day = date(today.tm_year, today.tm_mon, today.tm_mday)
    trained = [row for row in usage.read(store, "default", day, day) if row.kind == "training"]
    assert [(row.requests, row.prompt_tokens, row.model) for row in trained] == [(1, 1234, job["id"])]
    assert len(http.get("/files", params={"purpose": "fine-tune-results"}).json()["data"]) == 1


def test_a_lost_runner_is_started_again_and_the_job_succeeds(
    http: httpx.Client, server: ApiServer, store: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "relaunch_delay_s", lambda launches: 0.0)
    job = create_job(http)
    wait_for(http, job["id"], "queued")
    begin_job(store, server.launcher.arguments[f"{job['id']}-1"][1])
    server.launcher.become(f"{job['id']}-1", "running")
    wait_for(http, job["id"], "running")
    server.launcher.become(f"{job['id']}-1", "ended", "evicted: the node is gone")
    wait_for(http, job["id"], "queued")
    deadline = time.monotonic() + 20
    while f"{job['id']}-2" not in server.launcher.known:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    server.run_launched()
    wait_for(http, job["id"], "succeeded")
    events = http.get(f"/fine_tuning/jobs/{job['id']}/events", params={"limit": 50}).json()["data"]
    assert any("evicted: the node is gone" in event["message"] for event in events)
    assert [event["id"] for event in events] == sorted((event["id"] for event in events), reverse=True)


def test_a_job_is_launched_when_an_unreachable_launcher_returns(http: httpx.Client, server: ApiServer) -> None:
    server.launcher.answers = False
    job = create_job(http)
    wait_for(http, job["id"], "queued")
    assert server.launcher.known == {}
    server.launcher.answers = True
    deadline = time.monotonic() + 20
    while not server.launcher.known:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    server.run_launched()
    wait_for(http, job["id"], "succeeded")


def test_pause_stops_the_runner_and_resume_starts_another(
    http: httpx.Client, server: ApiServer, store: Workspace
) -> None:
    job = create_job(http)
    wait_for(http, job["id"], "queued")
    running = begin_job(store, server.launcher.arguments[f"{job['id']}-1"][1])
    server.launcher.become(f"{job['id']}-1", "running")
    wait_for(http, job["id"], "running")
    assert http.post(f"/fine_tuning/jobs/{job['id']}/pause").json()["status"] == "paused"
    with pytest.raises(JobPaused):
        running.check(fresh=True)
    server.launcher.become(f"{job['id']}-1", "ended")
    assert http.get(f"/fine_tuning/jobs/{job['id']}").json()["status"] == "paused"
    assert f"{job['id']}-2" not in server.launcher.known
    assert http.post(f"/fine_tuning/jobs/{job['id']}/resume").json()["status"] == "queued"
    server.run_launched()
    wait_for(http, job["id"], "succeeded")
    again = http.post(f"/fine_tuning/jobs/{job['id']}/resume")
    assert (again.status_code, again.json()["error"]["code"]) == (400, "invalid_state")


def test_a_job_that_failed_by_accident_is_resumed(http: httpx.Client, server: ApiServer, store: Workspace) -> None:
    """It keeps what it has trained, and its hours are booked once."""
    job = create_job(http)
    wait_for(http, job["id"], "queued")
    runner = f"{job['id']}-1"
    lost = begin_job(store, server.launcher.arguments[runner][1])
    server.launcher.become(runner, "running")
    wait_for(http, job["id"], "running")
    lost.finish("failed", error="a worker on 10.0.0.7 died; `kitae resume x` resumes it", accident=True)
    server.launcher.become(runner, "ended")
    failed = wait_for(http, job["id"], "failed")
    assert failed["error"]["code"] == "worker_lost"
    assert "10.0.0.7" not in failed["error"]["message"]
    assert f"`POST /v1/fine_tuning/jobs/{job['id']}/resume` resumes it" in failed["error"]["message"]
    assert http.post(f"/fine_tuning/jobs/{job['id']}/resume").json()["status"] == "queued"
    server.run_launched()
    done = wait_for(http, job["id"], "succeeded")
    assert done["error"] is None
    attempts = [event["message"] for event in http.get(f"/fine_tuning/jobs/{job['id']}/events").json()["data"]]
    assert "attempt 2 started" in attempts
    rows = usage.read(store.root, "default", date(2000, 1, 1), date(2999, 1, 1))
    assert sum(row.prompt_tokens for row in rows) == 1234


def test_a_job_that_failed_by_its_own_error_is_not_resumed(
    http: httpx.Client, server: ApiServer, store: Workspace
) -> None:
    job = create_job(http)
    wait_for(http, job["id"], "queued")
    failed = begin_job(store, server.launcher.arguments[f"{job['id']}-1"][1])
    failed.finish("failed", error="the loss is not finite")
    wait_for(http, job["id"], "failed")
    answer = http.post(f"/fine_tuning/jobs/{job['id']}/resume")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_state")
    assert "its own error" in answer.json()["error"]["message"]


def test_a_pause_or_cancel_before_the_runner_begins_takes_effect(
    http: httpx.Client, server: ApiServer, store: Workspace
) -> None:
    """The runner is launched, and starts after the job was paused or cancelled."""
    for stop, error in (("pause", JobPaused), ("cancel", JobCancelled)):
        job = create_job(http)
        wait_for(http, job["id"], "queued")
        assert http.post(f"/fine_tuning/jobs/{job['id']}/{stop}").status_code == 200
        with pytest.raises(error):
            begin_job(store, server.launcher.arguments[f"{job['id']}-1"][1], Launched())
        assert f"{job['id']}-1" in server.launcher.stopped  # at once: it has no checkpoint to write


def test_a_dry_run_creates_nothing(http: httpx.Client, server: ApiServer, store: Workspace) -> None:
    plan = create_job(http, dry_run=True, lora_rank=8, search={"trials": 6})
    assert plan["dry_run"]["trials"] == 6
    assert plan["dry_run"]["job_file"]["training"]["lora"]["rank"] == 8
    assert plan["dry_run"]["rows"]["rows"] == 12
    assert list(store.list("teams/default/jobs")) == []
    assert list(store.list("open")) == []
    assert list(store.list("teams/default/creates")) == []


def test_a_file_that_a_job_reads_cannot_be_deleted(http: httpx.Client, server: ApiServer) -> None:
    job = create_job(http)
    answer = http.delete(f"/files/{job['training_file']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_in_use")
    assert answer.headers["x-should-retry"] == "false"
    http.post(f"/fine_tuning/jobs/{job['id']}/cancel")
    assert http.delete(f"/files/{job['training_file']}").status_code == 200


def test_a_job_fails_after_its_runner_was_lost_ten_times(store: Workspace, tmp_path: Path) -> None:
    now = [1_800_000_000.0]
    launcher = FakeLauncher()
    files = Files(store, NoTokens(store))
    tuning = FineTuningService(store, files, launcher, now=lambda: now[0])
    add_base(store)
    (tmp_path / "rows.jsonl").write_bytes(rows(12))
    file = files.create("a", "k", tmp_path / "rows.jsonl", filename="r.jsonl", purpose="fine-tune")
    body = openai_types.CreateFineTuningJob(model=BASE, training_file=file.id, team="a")
    job = tuning.create(body, OPERATOR, key=None, retried=False)
    for number in range(1, lifecycle.MAX_LAUNCHES + 1):
        tuning.reconcile()
        assert len(launcher.known) == number
        launcher.become(f"{job.id}-{number}", "ended", "no image")
        now[0] += 301
    tuning.reconcile()
    failed = tuning.get("a", job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.code == "runner_lost"
    assert "no image" in failed.error.message
    api = records.load(store, "a", job.id)
    assert jobs.load(api.workspace(store), api.job_id).status == "failed"
    assert records.all_open(store) == []


def events_of(http: httpx.Client, identifier: str) -> list[str]:
    data = http.get(f"/fine_tuning/jobs/{identifier}/events", params={"limit": 50}).json()["data"]
    return [event["message"] for event in data[::-1]]


def test_a_reason_for_waiting_is_an_event_once_and_at_most_once_a_minute(http: httpx.Client, server: ApiServer) -> None:
    job = create_job(http)
    wait_for(http, job["id"], "queued")
    runner_id = f"{job['id']}-1"
    waits = "waiting: blue uses 8 of 8 h100; 2 can be borrowed; about 40 min"
    for message in (waits, waits, "waiting: blue uses 7 of 8 h100; 2 can be borrowed"):
        server.launcher.become(runner_id, "pending", message)
        time.sleep(2.0)  # runner states are cached
        assert http.get(f"/fine_tuning/jobs/{job['id']}").json()["status"] == "queued"
    assert [message for message in events_of(http, job["id"]) if message.startswith("waiting")] == [waits]


def test_two_processes_report_a_reason_for_waiting_once(store: Workspace) -> None:
    job = jobs.start_attempt(store, make_spec())
    for now_s, message in ((0.0, "a"), (70.0, "a"), (80.0, "b"), (100.0, "c"), (150.0, "c")):
        for _ in range(2):
            jobs.note_changed(store, job.id, message, every_s=60.0, now_s=1000.0 + now_s)
    assert [event.message for _, event in jobs.events(store, job.id)] == ["a", "b", "c"]


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_job_that_never_fits_is_refused_and_stores_nothing(
    http: httpx.Client, server: ApiServer, store: Workspace, dry_run: bool
) -> None:
    file = upload(http, rows(12)).json()["id"]
    asked = {"model": BASE, "training_file": file, "dry_run": dry_run, "compute": {"workers": 99}}
    finding = "nvidia.com/gpu: 99 workers with 1 each ask for 99, and the most of h100 is 10"
    server.launcher.too_large = RequestTooLarge("no quota could ever admit this job", details=[finding])
    before = sorted(info.key for info in store.list())
    refused = http.post("/fine_tuning/jobs", json=asked)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("job_too_large", "compute")
    assert "the most of h100 is 10" in error["message"]
    assert error["details"] == [{"param": "compute", "message": finding}]
    server.launcher.too_large = UnknownQueue("team 'default' has no queue in this cluster; these have: blue")
    error = http.post("/fine_tuning/jobs", json=asked).json()["error"]
    assert (error["code"], error["param"]) == ("no_queue", "team")
    server.launcher.too_large = PriorityTooHigh("priority is 1, and team blue may use at most 0: lower it")
    error = http.post("/fine_tuning/jobs", json=asked).json()["error"]
    assert (error["code"], error["param"]) == ("priority_too_high", "priority")
    assert sorted(info.key for info in store.list()) == before
    server.launcher.too_large = ClusterUnreachable("the Kubernetes API does not answer")
    assert http.post("/fine_tuning/jobs", json=asked).status_code == 200  # checked again at launch


def test_a_runner_that_cannot_start_is_stopped_and_its_job_fails(http: httpx.Client, server: ApiServer) -> None:
    job = create_job(http)
    wait_for(http, job["id"], "queued")
    message = "cannot start: the image x cannot be pulled"
    server.launcher.become(f"{job['id']}-1", "pending", message, hopeless=True)
    failed = wait_for(http, job["id"], "failed")
    assert failed["error"]["message"].startswith(message)
    assert failed["error"]["message"].endswith("resumes the job with what it has trained")
    assert f"{job['id']}-1" in server.launcher.stopped
    assert len(server.launcher.known) == 1
