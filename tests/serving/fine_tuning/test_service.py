"""The fine-tuning service on a real store, its launcher an honest fake: files, jobs, what follows from their end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_jobs import jobs
from ray_jobs.errors import ClusterUnreachable, RequestTooLarge, UnknownQueue
from ray_jobs.jobs import Launched
from ray_jobs.models import bases
from ray_jobs.registry import catalogue
from ray_jobs.storage import Store
from ray_jobs.tenancy import usage, webhooks
from serving.files.row_validators import in_process
from serving.files.stored_files import Files
from serving.fine_tuning import lifecycle, records
from serving.fine_tuning.service import FineTuningService
from serving.http.ids import created_at_s, is_id, new_id
from serving.http.paging import page
from tests.builders import make_spec
from tests.launch.fake_launcher import FakeLauncher
from tests.models.tiny_models import save_causal, save_encoder
from tests.serving.api_harness import BASE, KEY, ApiServer, add_base, api_server, begin_job, rows


@pytest.fixture
def server(store: Store) -> Iterator[ApiServer]:
    add_base(store)
    with api_server(store) as running:
        yield running


@pytest.fixture
def http(server: ApiServer) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=f"{server.url}/v1", headers=headers, timeout=60) as client:
        yield client


def upload(http: httpx.Client, content: bytes, name: str = "rows.jsonl", **fields: Any) -> httpx.Response:
    return http.post("/files", files={"file": (name, content)}, data={"purpose": "fine-tune", **fields})


def create(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    file = upload(http, rows(12)).json()["id"]
    answer = http.post("/fine_tuning/jobs", json={"model": BASE, "training_file": file, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def wait_for(http: httpx.Client, identifier: str, status: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while (job := http.get(f"/fine_tuning/jobs/{identifier}").json())["status"] != status:
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    return dict(job)


# ---- ids and pages -----------------------------------------------------------------------------------------


def test_ids_sort_by_time_and_tell_it() -> None:
    ids = [new_id("file", now_s=1_700_000_000 + i / 1000) for i in range(50)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 50
    assert created_at_s(ids[7]) == pytest.approx(1_700_000_000.007)
    assert is_id("file", ids[0])
    assert not is_id("ftjob", ids[0])
    assert not is_id("file", "file-../../x")


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_have_everything_once_whatever_their_size(order: Any) -> None:
    ids = [f"x-{i:03d}" for i in range(23)]
    for limit in (1, 4, 22, 23, 50):
        seen: list[str] = []
        more = True
        while more:
            found, more = page(
                ids, lambda i: i if i != "x-005" else None, limit=limit, after=seen[-1] if seen else None, order=order
            )  # one call
            seen += found
        expected = [i for i in ids if i != "x-005"]
        assert seen == (expected if order == "asc" else expected[::-1])


def test_a_page_goes_on_after_an_item_that_is_gone() -> None:
    assert page(["x-1", "x-3"], lambda i: i, limit=9, after="x-2")[0] == ["x-1"]


# ---- files -----------------------------------------------------------------------------------------


def test_every_bad_line_is_told_in_one_answer_and_nothing_is_kept(http: httpx.Client, store: Store) -> None:
    good = rows(1).decode().strip()
    lines = [good, "not JSON", '{"messages": []}', good, '{"messages": [{"role": "king", "content": "x"}]}', "[1]"]
    before = sorted(info.key for info in store.list())
    answer = upload(http, "\n".join(lines).encode())
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_rows", "file")
    assert [finding["line"] for finding in error["details"]] == [2, 3, 5, 6]
    assert "role is 'king'" in error["details"][2]["reason"]
    assert "line 5" in error["message"]
    assert sorted(info.key for info in store.list()) == before


def test_tokens_duplicates_and_rows_too_long(store: Store, http: httpx.Client, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    bases.add(store, str(save_causal(directory)), "counting")
    content = rows(3) + rows(2) + json.dumps({"prompt": "word " * 400, "completion": "yes"}).encode()
    (tmp_path / "rows.jsonl").write_bytes(content)
    files = Files(store, in_process(store))
    record = files.create("a", "k", tmp_path / "rows.jsonl", filename="r.jsonl", purpose="fine-tune", model="counting")
    report = record.report
    assert report is not None
    assert (report.rows, report.duplicates, report.task, report.model) == (6, 2, "chat", "counting")
    assert report.too_long == (6,)  # the tiny model takes 256
    assert report.tokens is not None
    assert report.supervised_tokens is not None
    assert report.longest_tokens is not None
    assert report.tokens > report.longest_tokens > 256
    assert 0 < report.supervised_tokens < report.tokens


def test_rows_for_classification_are_told_by_their_columns_and_preferences_are_refused(http: httpx.Client) -> None:
    lines = b"".join(json.dumps({"text": f"t{i}", "label": "ab"[i % 2]}).encode() + b"\n" for i in range(12))
    assert upload(http, lines).json()["rows"]["task"] == "text_classification"
    assert upload(http, b"text,label\nhello,a\nbye,b\n", "rows.csv").json()["rows"]["rows"] == 2
    row = {"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}
    answer = upload(http, json.dumps(row).encode())
    assert answer.status_code == 400
    assert "preferences" in answer.json()["error"]["message"]


def test_japanese_rows_and_names(http: httpx.Client) -> None:
    pair = {"prompt": "返品はできますか。", "completion": "はい、三十日以内であればできます。"}
    content = "\n".join(json.dumps(pair | {"prompt": f"{pair['prompt']}{i}"}, ensure_ascii=False) for i in range(10))
    file = upload(http, content.encode(), "質問.jsonl").json()
    assert (file["filename"], file["rows"]["rows"]) == ("質問.jsonl", 10)
    assert http.get(f"/files/{file['id']}/content").content == content.encode()
    wrong = upload(http, content.encode("shift_jis"))
    assert wrong.status_code == 400
    assert "CP932" in wrong.json()["error"]["message"]


def test_files_are_listed_by_purpose_paged_and_deleted(http: httpx.Client) -> None:
    ids = [upload(http, rows(1, start=i)).json()["id"] for i in range(3)]
    other = http.post("/files", files={"file": ("x.bin", b"\x00\x01")}, data={"purpose": "user_data"}).json()["id"]
    listed = http.get("/files", params={"purpose": "fine-tune", "limit": 2}).json()
    assert [file["id"] for file in listed["data"]] == [ids[2], ids[1]]
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (True, ids[2], ids[1])
    rest = http.get("/files", params={"purpose": "fine-tune", "after": listed["last_id"]}).json()
    assert [file["id"] for file in rest["data"]] == [ids[0]]
    assert http.get(f"/files/{other}/content").content == b"\x00\x01"
    assert http.delete(f"/files/{ids[0]}").json() == {"id": ids[0], "object": "file", "deleted": True}
    assert http.get(f"/files/{ids[0]}").status_code == 404


def test_a_file_that_has_expired_is_gone_and_swept_and_so_is_one_without_a_record(
    store: Store, http: httpx.Client
) -> None:
    file = upload(http, rows(1), **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}).json()
    assert file["expires_at"] == file["created_at"] + 3600
    kept = upload(http, rows(1)).json()["id"]
    orphan = new_id("file", now_s=time.time() - 100_000)
    store.put(f"files/default/{orphan}/rows.jsonl", b"x")
    files = Files(store, in_process(store))
    files.sweep(time.time())
    assert not store.exists(f"files/default/{orphan}/rows.jsonl")
    assert http.get(f"/files/{file['id']}").status_code == 200
    files.sweep(time.time() + 3601)
    assert [info.key for info in store.list("files")] == [f"files/default/{kept}/rows.jsonl"]


@pytest.mark.parametrize("seconds", ["3599", "2592001", "soon"])
def test_an_expiry_out_of_range_is_refused(http: httpx.Client, seconds: str) -> None:
    answer = upload(http, rows(1), **{"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds})
    assert answer.status_code == 400
    assert "seconds" in answer.json()["error"]["param"]


def test_a_file_in_parts(http: httpx.Client) -> None:
    content = rows(20)
    announced = {"filename": "big.jsonl", "purpose": "fine-tune", "bytes": len(content), "mime_type": "text/jsonl"}
    made = http.post("/uploads", json=announced).json()
    pieces = [content[:100], content[100:500], content[500:]]
    parts = [http.post(f"/uploads/{made['id']}/parts", files={"data": piece}).json()["id"] for piece in pieces]
    wrong = http.post(f"/uploads/{made['id']}/complete", json={"part_ids": parts[:2]})
    assert wrong.status_code == 400
    assert "declared" in wrong.json()["error"]["message"]
    md5 = {"part_ids": parts, "md5": "0" * 32}
    assert http.post(f"/uploads/{made['id']}/complete", json=md5).json()["error"]["param"] == "md5"
    done = http.post(f"/uploads/{made['id']}/complete", json={"part_ids": parts}).json()
    assert done["status"] == "completed"
    assert http.get(f"/files/{done['file']['id']}/content").content == content
    assert http.post(f"/uploads/{made['id']}/cancel").json()["error"]["code"] == "upload_not_pending"


# ---- jobs -----------------------------------------------------------------------------------------


def test_a_job_is_launched_watched_and_ends(http: httpx.Client, server: ApiServer, store: Store) -> None:
    webhooks.add(store, "default", "https://hooks.example/x", webhooks.EVENTS, webhooks.Policy())
    job = create(http, suffix="日本 語", metadata={"a": "1"})
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
    # What follows from the end is told once, however often it is looked at.
    for _ in range(3):
        http.get(f"/fine_tuning/jobs/{job['id']}")
    assert records.all_open(store) == []
    assert len(list(store.list("webhooks-out"))) == 1
    today = time.gmtime()
    from datetime import date

    day = date(today.tm_year, today.tm_mon, today.tm_mday)
    trained = [row for row in usage.read(store, "default", day, day) if row.kind == "training"]
    assert [(row.requests, row.prompt_tokens, row.model) for row in trained] == [(1, 1234, job["id"])]
    assert len(http.get("/files", params={"purpose": "fine-tune-results"}).json()["data"]) == 1


def test_a_lost_runner_is_started_again_and_the_job_goes_on(
    http: httpx.Client, server: ApiServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "relaunch_delay_s", lambda launches: 0.0)
    job = create(http)
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


def test_a_launcher_that_is_away_loses_nothing(http: httpx.Client, server: ApiServer) -> None:
    server.launcher.answers = False
    job = create(http)
    wait_for(http, job["id"], "queued")
    assert server.launcher.known == {}
    server.launcher.answers = True
    deadline = time.monotonic() + 20
    while not server.launcher.known:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    server.run_launched()
    wait_for(http, job["id"], "succeeded")


def test_pause_frees_the_runner_and_resume_goes_on(http: httpx.Client, server: ApiServer, store: Store) -> None:
    job = create(http)
    wait_for(http, job["id"], "queued")
    running = begin_job(store, server.launcher.arguments[f"{job['id']}-1"][1])
    server.launcher.become(f"{job['id']}-1", "running")
    wait_for(http, job["id"], "running")
    assert http.post(f"/fine_tuning/jobs/{job['id']}/pause").json()["status"] == "paused"
    from ray_jobs.errors import JobPaused

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


def test_a_pause_and_a_cancel_before_the_runner_begins_stand(
    http: httpx.Client, server: ApiServer, store: Store
) -> None:
    """The runner was launched, and comes to its first line after somebody has thought better of it."""
    from ray_jobs.errors import JobCancelled, JobPaused

    for stop, error in (("pause", JobPaused), ("cancel", JobCancelled)):
        job = create(http)
        wait_for(http, job["id"], "queued")
        assert http.post(f"/fine_tuning/jobs/{job['id']}/{stop}").status_code == 200
        with pytest.raises(error):
            begin_job(store, server.launcher.arguments[f"{job['id']}-1"][1], Launched())
        assert f"{job['id']}-1" in server.launcher.stopped  # it had nothing to write, so it is stopped at once


def test_a_dry_run_runs_nothing(http: httpx.Client, server: ApiServer, store: Store) -> None:
    plan = create(http, dry_run=True, lora_rank=8, search={"trials": 6})
    assert plan["dry_run"]["trials"] == 6
    assert plan["dry_run"]["job_file"]["training"]["lora"]["rank"] == 8
    assert plan["dry_run"]["rows"]["rows"] == 12
    assert list(store.list("teams/default/jobs")) == []
    assert list(store.list("open")) == []
    assert list(store.list("teams/default/creates")) == []


def test_a_file_that_a_job_reads_is_not_deleted(http: httpx.Client, server: ApiServer) -> None:
    job = create(http)
    answer = http.delete(f"/files/{job['training_file']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_in_use")
    assert answer.headers["x-should-retry"] == "false"
    http.post(f"/fine_tuning/jobs/{job['id']}/cancel")
    assert http.delete(f"/files/{job['training_file']}").status_code == 200


def test_a_job_whose_runner_never_comes_back_fails_and_says_why(store: Store, tmp_path: Path) -> None:
    """Ten lost runners, by a clock of the test's own."""
    now = [1_800_000_000.0]
    launcher = FakeLauncher()
    files = Files(store, lambda key, filename, task, base: in_process(store)(key, filename, task, None))
    tuning = FineTuningService(store, files, launcher, now=lambda: now[0])
    add_base(store)
    (tmp_path / "rows.jsonl").write_bytes(rows(12))
    file = files.create("a", "k", tmp_path / "rows.jsonl", filename="r.jsonl", purpose="fine-tune")
    from serving.access.auth import OPERATOR
    from serving.http import openai_types

    body = openai_types.CreateFineTuningJob(model=BASE, training_file=file.id, team="a")
    job = tuning.create(body, OPERATOR, key=None, retried=False, max_open=None)
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
    assert jobs.load(store, api.job_id).status == "failed"
    assert records.all_open(store) == []


# ---- bases -----------------------------------------------------------------------------------------


def test_the_catalogue_has_what_a_base_can_do_and_keeps_its_names(store: Store, tmp_path: Path) -> None:
    from ray_jobs.errors import ModelError

    for name in ("chat", "encoder", "other"):
        (tmp_path / name).mkdir()
    entry = bases.add(store, str(save_causal(tmp_path / "chat")), "tiny")
    assert (entry.tasks, entry.max_tokens) == (("chat",), 256)
    assert bases.add(store, str(tmp_path / "chat"), "tiny").digest == entry.digest  # again
    assert bases.add(store, str(save_encoder(tmp_path / "encoder"))).tasks == ("text_classification",)
    with pytest.raises(ModelError, match="another base already"):
        bases.add(store, str(save_causal(tmp_path / "other", seed=1)), "tiny")
    assert bases.fingerprint(store, "tiny") == entry.digest
    assert bases.prepare(store, "tiny", "chat").key == entry.key
    with pytest.raises(ModelError, match="cannot do task: text_classification"):
        bases.prepare(store, "tiny", "text_classification")
    with pytest.raises(ModelError, match="did you mean 'tiny'"):
        catalogue.remove(store, "tinny")
    catalogue.remove(store, "tiny")
    assert [entry.name for entry in catalogue.entries(store)] == ["encoder"]


# ---- a launcher that says why, and what never fits -------------------------------------------------------------


def events_of(http: httpx.Client, identifier: str) -> list[str]:
    data = http.get(f"/fine_tuning/jobs/{identifier}/events", params={"limit": 50}).json()["data"]
    return [event["message"] for event in data[::-1]]


def test_what_a_job_waits_for_is_an_event_once_and_not_too_often(http: httpx.Client, server: ApiServer) -> None:
    job = create(http)
    wait_for(http, job["id"], "queued")
    runner_id = f"{job['id']}-1"
    waits = "waiting: blue uses 8 of 8 h100; 2 can be borrowed; about 40 min"
    for message in (waits, waits, "waiting: blue uses 7 of 8 h100; 2 can be borrowed"):
        server.launcher.become(runner_id, "pending", message)
        time.sleep(2.0)  # the list of runners is believed for a moment
        assert http.get(f"/fine_tuning/jobs/{job['id']}").json()["status"] == "queued"
    assert [message for message in events_of(http, job["id"]) if message.startswith("waiting")] == [waits]


def test_two_processes_tell_what_a_job_waits_for_once(store: Store) -> None:
    job = jobs.start_attempt(store, make_spec())
    for now_s, message in ((0.0, "a"), (70.0, "a"), (80.0, "b"), (100.0, "c"), (150.0, "c")):
        for _ in range(2):
            jobs.note_changed(store, job.id, message, every_s=60.0, now_s=1000.0 + now_s)
    assert [event.message for _, event in jobs.events(store, job.id)] == ["a", "b", "c"]


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_job_that_never_fits_is_refused_and_leaves_nothing(
    http: httpx.Client, server: ApiServer, store: Store, dry_run: bool
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
    assert sorted(info.key for info in store.list()) == before
    server.launcher.too_large = ClusterUnreachable("the Kubernetes API does not answer")
    assert http.post("/fine_tuning/jobs", json=asked).status_code == 200  # it is seen once it is launched


def test_a_runner_that_can_never_start_is_stopped_and_its_job_fails(http: httpx.Client, server: ApiServer) -> None:
    job = create(http)
    wait_for(http, job["id"], "queued")
    message = "cannot start: the image x cannot be pulled"
    server.launcher.become(f"{job['id']}-1", "pending", message, hopeless=True)
    failed = wait_for(http, job["id"], "failed")
    assert failed["error"]["message"] == message
    assert f"{job['id']}-1" in server.launcher.stopped
    assert len(server.launcher.known) == 1
