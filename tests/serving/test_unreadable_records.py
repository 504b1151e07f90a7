"""A damaged record of the endpoint's own, of any kind, stops no team and loses nothing."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, date, datetime

import httpx
import pytest

from ray_jobs import registry
from ray_jobs.deploy import traffic
from ray_jobs.registry import catalogue, shares
from ray_jobs.tenancy import api_keys, usage, webhooks
from serving.files.stored_files import Files
from serving.files.uploads import Uploads
from serving.fine_tuning import records
from serving.http.ids import new_id
from tests.builders import make_spec
from tests.serving.api_calls import create_job, wait_for
from tests.serving.api_harness import ApiServer, NoTokens, add_base, register

LONG_AGO_S = 1_700_000_000.0
OLD_FILE, OLD_JOB, OLD_UPLOAD = (new_id(kind, now_s=LONG_AGO_S) for kind in ("file", "ftjob", "upload"))
DAMAGED = {
    f"keys/{'a' * 16}.json": "record of an API key",
    f"teams/default/files/{OLD_FILE}.json": "file's record",
    f"teams/default/jobs/{OLD_JOB}.json": "fine-tuning job",
    f"teams/default/uploads/{OLD_UPLOAD}.json": "upload",
    f"open/operator/{new_id('ftjob', now_s=LONG_AGO_S)}.json": "marker of an open job",
    f"usage/default/{date.today().isoformat()}/x-000001.json": "usage object",
    "webhooks/default/we_damaged.json": "webhook endpoint",
    "webhooks-out/evt_damaged.json": "webhook event",
    "traffic/damaged.json": "traffic policy",
    "shares/damaged.json": "record of the shares of a model",
    "catalogue/other.json": "entry of the catalogue",
    "deployments/damaged.json": "deployment record",
    "jobs/damaged/job.json": "job record",
    "models/damaged/1/manifest.json": "model version",
    "aliases/damaged/champion.json": "alias",
}
"""Key → kind."""


@pytest.mark.parametrize("data", [b"{", b'{"alias": 7, "everyone": "next year"}'], ids=["damaged", "newer"])
def test_a_damaged_record_of_each_kind_is_skipped(http: httpx.Client, server: ApiServer, data: bytes) -> None:
    store = server.store
    for key in DAMAGED:
        store.put(key, data)
    store.put(f"files/default/{OLD_FILE}/rows.jsonl", b"kept")
    store.put(f"uploads/default/{OLD_UPLOAD}/1", b"kept")
    records.mark_open(store, "default", "operator", OLD_JOB)
    job = create_job(http)
    wait_for(http, job["id"], "queued")
    server.run_launched()
    wait_for(http, job["id"], "succeeded")
    for path in ("/models", "/files", "/fine_tuning/jobs"):
        assert http.get(path).status_code == 200, path
    # What cannot be read is neither deleted nor closed.
    assert OLD_JOB in [identifier for _, identifier in records.all_open(store)]
    register(store, make_spec("damaged"), "2")
    assert [version.version for version in registry.versions(store, "damaged")] == ["2"]
    assert registry.aliases(store, "damaged") == {}
    assert [entry.name for entry in catalogue.entries(store)] == [add_base(store).name]
    assert (shares.read_all(store), traffic.read_all(store)) == ({}, {})
    assert api_keys.list_keys(store) == []
    assert webhooks.endpoints(store, "default") == []
    today = datetime.now(UTC).date()
    assert [row.kind for row in usage.read(store, "default", today, today)] == ["training"]
    asyncio.run(webhooks.Sender(store, webhooks.Policy()).tick())
    files = Files(store, NoTokens(store))
    files.sweep(time.time())
    Uploads(store, files).sweep(time.time())
    for key in (*DAMAGED, f"files/default/{OLD_FILE}/rows.jsonl", f"uploads/default/{OLD_UPLOAD}/1"):
        assert store.exists(key), key
    deadline = time.monotonic() + 20
    seen = {kind for kind, count in store.unreadable.counts().items() if count}
    while missing := {kind for kind in DAMAGED.values() if kind not in seen} - {"job record"}:
        assert time.monotonic() < deadline, missing
        time.sleep(0.2)
        seen |= {kind for kind, count in store.unreadable.counts().items() if count}
