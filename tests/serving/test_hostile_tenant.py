"""What a team's pods write reaches no other team, and stops nothing.

The hostile team writes with the reach that `infra/object-store` gives it: damaged and forged records of every kind.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from ray_jobs import registry
from ray_jobs.deploy import records as deployments
from ray_jobs.deploy.serve_api import ServeSettings, serve_config
from ray_jobs.storage import Workspace
from ray_jobs.tenancy import usage, webhooks
from serving.fine_tuning import records
from tests.serving.api_calls import create_job, wait_for
from tests.serving.api_harness import BASE, begin_job
from tests.serving.hostile_tenant import GARBAGE, Pod
from tests.serving.two_teams import OURS, QUESTION, THEIRS, Team, World, two_teams


@pytest.fixture(scope="module")
def world(module_store: Workspace) -> Iterator[World]:
    with two_teams(module_store) as world:
        yield world


@contextmanager
def queued_job(world: World, seed: int) -> Iterator[tuple[httpx.Client, str, str]]:
    """A job of ours that waits for a runner: our client at /v1, the job's API id and Kitae's own."""
    with httpx.Client(base_url=f"{world.server.url}/v1", headers=world.ours.client.headers, timeout=60) as v1:
        job = create_job(v1, seed=seed)
        wait_for(v1, job["id"], "queued")
        yield v1, job["id"], world.store.get_json(f"teams/{OURS}/jobs/{job['id']}.json")["job_id"]


def seen_by(team: Team) -> dict[str, tuple[int, Any]]:
    """All that a team reads, in one pass."""
    found = {}
    for path in (
        "/v1/models",
        "/v1/files",
        "/v1/fine_tuning/jobs",
        f"/v1/models/{team.model}",
        f"/v1/files/{team.result_file}/content",
        f"/v1/fine_tuning/jobs/{team.job}",
        f"/v1/fine_tuning/jobs/{team.job}/events",
        f"/v1/fine_tuning/jobs/{team.job}/checkpoints",
        f"/v1/fine_tuning/jobs/{team.running_job}",
    ):
        answer = team.client.get(path)
        found[path] = answer.status_code, answer.text
    chat = team.client.post("/v1/chat/completions", json={"model": team.model, "messages": QUESTION})
    found["chat"] = chat.status_code, ""
    return found


def records_of(team: Team, job_id: str) -> list[str]:
    """A key of each kind of record that the team's pods write, existing or new."""
    return [
        f"jobs/{job_id}/job.json",
        f"jobs/{job_id}/waiting.json",
        f"jobs/{job_id}/notice.json",
        f"jobs/{job_id}/stages/train-0123456789abcdef.json",
        f"jobs/{job_id}/events/00000001.json",
        f"jobs/{job_id}/events/99999999.json",
        f"jobs/{job_id}/events/a/b.json",
        f"jobs/{job_id}/search/x/problem.json",
        f"models/{team.job}/9/manifest.json",
        f"models/{team.job}/1/manifest.json",
        f"models/{team.job}/claims/1.json",
        f"aliases/{team.job}/champion.json",
        f"aliases/{team.job}/a/b.json",
        f"deployments/{team.job}.json",
        "deployments/hostile.json",
        "deployments/a/b.json",
        "jobs/hostile/job.json",
        "datasets/x/manifest.json",
        "bases/x/manifest.json",
    ]


@pytest.mark.parametrize("what", GARBAGE)
def test_a_damaged_record_of_any_kind_changes_nothing_for_another_team(world: World, what: str) -> None:
    ours, theirs, store = world.ours, world.theirs, world.store
    job_id = store.get_json(f"teams/{OURS}/jobs/{ours.job}.json")["job_id"]
    before = seen_by(theirs)
    assert {status for status, _ in before.values()} == {200}
    with Pod(world.our_work).instead(dict.fromkeys(records_of(ours, job_id), GARBAGE[what])):
        time.sleep(0.1)  # longer than the routes are cached
        assert seen_by(theirs) == before
        assert world.operator.get("/v1/models").status_code == 200
        assert world.server.app is not None
        for path in ("/v1/models", "/v1/files", "/v1/fine_tuning/jobs", f"/v1/fine_tuning/jobs/{ours.job}/events"):
            assert ours.client.get(path).status_code == 200, path
        ready = world.operator.get("/readyz").json()["unreadable_records"]
        assert f"deployments/{OURS}/hostile.json" in ready["deployment record"]
        assert "unreadable_records" not in theirs.client.get("/readyz").json()
        metrics = world.operator.get("/metrics").text
        assert 'kitae_unreadable_records{kind="deployment record"}' in metrics
    deadline = time.monotonic() + 20
    while world.operator.get("/readyz").json()["unreadable_records"].get("deployment record"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


SECRETS = ("keys/", "webhooks/", f"teams/{THEIRS}/", f"files/{THEIRS}/")


def test_a_result_file_holds_nothing_but_the_jobs_own_metrics(world: World) -> None:
    """A job's record that names the key of a secret does not make the endpoint copy it."""
    store = world.store
    webhooks.add(store, THEIRS, "https://hooks.example/x", webhooks.EVENTS, webhooks.Policy())
    keys = [next(info.key for info in store.list(prefix)) for prefix in SECRETS]
    for number, key in enumerate(keys):
        with queued_job(world, 500 + number) as (v1, identifier, job_id):
            running = begin_job(world.our_work, job_id)
            Pod(world.our_work).put(f"jobs/{job_id}/metrics.csv", b"step\n1\n")
            running.finish("succeeded", result={"metrics_csv": key, "trained_tokens": 1})
            done = wait_for(v1, identifier, "succeeded")
            (file,) = done["result_files"]
            assert v1.get(f"/files/{file}/content").content == b"step\n1\n"


def test_the_ledger_does_not_believe_what_a_job_reports(world: World) -> None:
    store = world.store
    with queued_job(world, 600) as (v1, identifier, job_id):
        begin_job(world.our_work, job_id)
        record = world.our_work.get_json(f"jobs/{job_id}/job.json")
        spec = {**record["spec"], "team": THEIRS, "name": "another-name", "compute": {"workers": 1000}}
        stage = {"name": "train", "inputs": {}, "outputs": {}, "seconds": 9e8, "attempt": 1}
        Pod(world.our_work).put(f"jobs/{job_id}/stages/train-0.json", stage | {"finished_at": "2026-01-01T00:00:00Z"})
        lies = {
            "spec": spec,
            "started_at": "1971-01-01T00:00:00Z",
            "finished_at": "1971-01-02T00:00:00Z",
            "result": {"trained_tokens": 10**14, "metrics_csv": None},
        }
        Pod(world.our_work).put(f"jobs/{job_id}/job.json", record | lies)
        wait_for(v1, identifier, "succeeded")
    closed = records.load(store, OURS, identifier)
    today = datetime.now(UTC).date()
    rows = usage.read(store, None, today - timedelta(days=30_000), today)
    (row,) = [row for row in rows if row.model == identifier]
    assert (row.team, row.key_id, row.day) == (OURS, world.ours.key_id, today)
    assert row.worker_seconds <= time.time() - closed.created_at + 1
    assert closed.most_tokens is not None
    assert row.prompt_tokens == closed.most_tokens
    assert not [row for row in rows if row.model == "another-name"]


def test_a_deployment_record_serves_nothing_but_its_own_model(world: World) -> None:
    """Records that name another model, its files or another application are not served."""
    theirs, store = world.theirs.job, world.store
    forged: dict[str, dict[str, Any]] = {
        "files-of-another-model": {"kind": "full", "key": f"models/{theirs}/1", "version": "1"},
        "key-of-a-secret": {"kind": "full", "key": f"files/{THEIRS}", "version": "1"},
        "not-a-base": {"kind": "base", "key": f"models/{theirs}/1", "max_lora_rank": 8},
        "predictor": {
            "kind": "predictor",
            "key": "models/predictor/1",
            "version": "1",
            "base_key": f"models/{theirs}/1",
        },
        "another-application": {"kind": "base", "key": "bases/x", "base": BASE},
        "up": {"kind": "full", "key": "models/up/../x/1", "version": "../x/1"},
        "unknown-task": {"kind": "full", "key": "models/unknown-task/1", "version": "1", "task": "of next year"},
    }
    documents = {
        f"deployments/{name}.json": {"name": name, "task": "chat", **fields} for name, fields in forged.items()
    }
    documents["deployments/alias-of-another.json"] = Workspace(store, THEIRS).get_json(f"deployments/{theirs}.json")
    before = seen_by(world.theirs)
    with Pod(world.our_work).instead(documents):
        time.sleep(0.1)
        assert deployments.read_all(store).keys().isdisjoint({*forged, "alias-of-another"})
        served = serve_config(deployments.read_all(store).values(), ServeSettings("", None))["applications"]
        assert len({application["name"] for application in served}) == len(served)
        for name in [*forged, "alias-of-another"]:
            chat = world.ours.client.post("/v1/chat/completions", json={"model": name, "messages": QUESTION})
            assert chat.status_code == 404, name
        assert seen_by(world.theirs) == before


def test_a_version_under_another_teams_name_does_not_exist(world: World) -> None:
    """A manifest under another team's model is neither listed, nor called, nor does it hide the team's own."""
    home, theirs = world.our_work, world.theirs
    manifest = Workspace(home, THEIRS).read_manifest(f"models/{theirs.job}/1")
    assert manifest is not None
    for number in ("1", "77"):
        home.commit(f"models/{theirs.job}/{number}", [], manifest.meta)
    home.put_json(f"aliases/{theirs.job}/champion.json", {"version": "77"})
    before = seen_by(theirs)
    assert "77" not in [version.version for version in registry.versions(Workspace(home, THEIRS), theirs.job)]
    for team in (world.ours, theirs):
        body = {"model": f"{theirs.job}@77", "messages": QUESTION}
        assert team.client.post("/v1/chat/completions", json=body).status_code == 404
    assert world.ours.client.delete(f"/v1/models/{theirs.model}").status_code == 404
    assert seen_by(theirs) == before
    assert registry.owner(home, theirs.job) == THEIRS


def test_a_job_with_an_unreadable_record_can_be_cancelled(world: World) -> None:
    store = world.store
    with queued_job(world, 700) as (v1, identifier, job_id):
        Pod(world.our_work).put(f"jobs/{job_id}/job.json", b"{")
        assert v1.get(f"/fine_tuning/jobs/{identifier}").json()["status"] == "queued"
        assert v1.post(f"/fine_tuning/jobs/{identifier}/pause").json()["error"]["code"] == "invalid_state"
        assert v1.post(f"/fine_tuning/jobs/{identifier}/cancel").json()["status"] == "cancelled"
        assert identifier not in [found for _, found in records.all_open(store)]
