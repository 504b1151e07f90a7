"""Stores written by earlier versions are read by the present one: `status`, `trials`, `models`, `plan`, `resume`.

`write.py` beside this file writes such a store, once a release; every directory here holds one.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from click.testing import CliRunner

from ray_jobs import jobs, migration, registry
from ray_jobs.__main__ import cli
from ray_jobs.data import dataset
from ray_jobs.deploy import records, traffic
from ray_jobs.registry import catalogue, shares
from ray_jobs.search.records import SearchRecords
from ray_jobs.spec import DEFAULT_TEAM
from ray_jobs.storage import Store, Workspace
from ray_jobs.tenancy import api_keys, usage, webhooks
from tests.conftest import StoreServer
from tests.pipeline.live_service import Service, Watched
from tests.serving.api_harness import KEY, api_server
from tests.stored_versions.write import (
    BASE,
    CHAT,
    CLASSIFIER,
    DAY,
    PAUSED,
    SEARCHED,
    TEAM,
    archive,
    job_document,
    store_uri,
)

VERSIONS = sorted(path.parent.name for path in Path(__file__).parent.glob("*/store.tar.xz"))
Kitae = Callable[..., str]


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def stored(version: str, store_server: StoreServer, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The store of a version, unpacked into the S3 server and moved to the present layout."""
    store = Store(store_uri(version), store_server.settings(), cache=tmp_path_factory.mktemp("cache"))
    with tarfile.open(archive(version)) as packed:
        for member in packed:
            file = packed.extractfile(member)
            assert file is not None
            store.put(member.name, file.read())
    if migration.read_layout(store) is None:
        migration.run(store, migration.plan(store))
    return Workspace(store, DEFAULT_TEAM)


@pytest.fixture
def kitae(stored: Workspace, store_server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kitae:
    """Runs a `kitae` command on the store; returns its output."""
    for name, value in store_server.environment(stored.uri()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KITAE_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return run


def id_of(store: Workspace, name: str) -> str:
    (found,) = [record.id for record in jobs.list_jobs(store) if record.spec["name"] == name]
    return found


def test_a_store_of_every_earlier_version_is_kept() -> None:
    assert VERSIONS


def test_status_lists_every_job(kitae: Kitae, stored: Workspace) -> None:
    found = {record["spec"]["name"]: record["status"] for record in json.loads(kitae("status", "--json"))}
    assert {name: found[name] for name in (CHAT, CLASSIFIER, SEARCHED, PAUSED)} == {
        CHAT: "succeeded",
        CLASSIFIER: "succeeded",
        SEARCHED: "succeeded",
        PAUSED: "paused",
    }
    assert id_of(stored, CHAT) in kitae("status")


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        (CHAT, ["dataset", "base", "encode", "train", "evaluate", "parity", "register", "publish"]),
        (CLASSIFIER, ["dataset", "base", "encode", "train", "evaluate", "register", "publish"]),
        (SEARCHED, ["dataset", "base", "encode", "search", "evaluate", "register"]),
        (PAUSED, ["dataset", "base", "encode"]),
    ],
)
def test_status_of_a_job_shows_its_stages(kitae: Kitae, stored: Workspace, name: str, stages: list[str]) -> None:
    shown = kitae("status", id_of(stored, name))
    assert all(stage in shown for stage in stages)
    assert list(dict.fromkeys(record.name for record in jobs.stages(stored, id_of(stored, name)))) == stages
    assert list(jobs.events(stored, id_of(stored, name)))


def test_trials_shows_a_finished_search(kitae: Kitae, stored: Workspace, tmp_path: Path) -> None:
    job_id = id_of(stored, SEARCHED)
    results = json.loads(kitae("trials", job_id, "--json"))
    assert {result["status"] for result in results} == {"ok"}
    assert len({result["run"]["trial"] for result in results}) == 5
    assert {result["run"]["params"]["base_model"] for result in results} == {
        stored.uri("files/encoder"),
        stored.uri("files/other"),
    }
    result = jobs.load(stored, job_id).result
    assert result is not None
    assert f"{result['search']['params']['learning_rate']:.3g}" in kitae("trials", job_id)
    kitae("trials", job_id, "--html", str(tmp_path / "page.html"))
    assert "learning_rate" in (tmp_path / "page.html").read_text(encoding="utf-8")
    (folder,) = stored.list_dirs(f"jobs/{job_id}/search/")
    kept = SearchRecords(stored, f"jobs/{job_id}/search/{folder}")
    assert len(kept.results()) == len(results)
    assert kept.spent()["worker"] > 0


@pytest.mark.parametrize("name", [CHAT, CLASSIFIER, SEARCHED])
def test_models_shows_versions_with_their_metrics_and_lineage(kitae: Kitae, stored: Workspace, name: str) -> None:
    assert name in kitae("models")
    assert "champion" in kitae("models", name)
    version = registry.get(stored, f"{name}@champion")
    assert version.lineage.job_id == id_of(stored, name)
    assert version.lineage.spec.name == name
    assert version.metrics["loss"] > 0
    assert (version.lineage.trial is not None) == (name == SEARCHED)
    assert list(stored.fetch(version.key).glob("*.safetensors"))
    if name != SEARCHED:
        assert any(alias.startswith("ckpt-step-") for alias in registry.aliases(stored, name))


@pytest.mark.parametrize(("name", "rows", "labels"), [(CHAT, 40, []), (CLASSIFIER, 120, ["a", "b"])])
def test_a_dataset_is_loaded(stored: Workspace, name: str, rows: int, labels: list[str]) -> None:
    (record,) = [record for record in jobs.stages(stored, id_of(stored, name)) if record.name == "dataset"]
    files = dataset.load(stored, record.outputs["digest"])
    assert len(files.train_rows) + len(files.validation_rows) == rows
    assert files.validation_rows == files.test_rows
    assert record.outputs["labels"] == labels


@pytest.mark.parametrize("name", [CHAT, CLASSIFIER, SEARCHED])
def test_plan_of_a_finished_job_skips_every_stage(kitae: Kitae, stored: Workspace, tmp_path: Path, name: str) -> None:
    """Its inputs have the same hashes as the version before computed, and the job file the same id."""
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job_document(stored, name)))
    shown = kitae("plan", str(tmp_path / "job.yaml"))
    assert f"job {id_of(stored, name)}" in shown
    assert "will run" not in shown
    assert "skipped: done in" in shown


def test_what_serves_and_who_may_use_it(stored: Workspace, kitae: Kitae) -> None:
    deployed = records.read_all(stored)
    assert {deployed[CHAT].kind, deployed[CLASSIFIER].kind} == {"adapter", "predictor"}
    assert deployed[deployed[CHAT].base or ""].kind == "base"
    policy = traffic.read(stored, CHAT)
    assert policy is not None
    assert policy.canary is not None
    assert policy.canary.percent == 10
    assert f"{policy.canary.version}" in kitae("traffic", CHAT)
    assert shares.read(stored, CHAT).includes(TEAM)
    entry = catalogue.find(stored, BASE)
    assert entry is not None
    assert entry.tasks == ("chat",)
    assert BASE in kitae("bases")


def test_what_a_team_has(stored: Workspace, kitae: Kitae) -> None:
    (key,) = api_keys.list_keys(stored)
    assert (key.team, key.name, key.limits.requests_per_minute) == (TEAM, "laptop", 60)
    assert key.id in kitae("keys", "list")
    (row,) = usage.read(stored, TEAM, DAY, DAY)
    assert (row.model, row.requests, row.prompt_tokens) == (CHAT, 3, 40)
    (endpoint,) = webhooks.endpoints(stored, TEAM)
    assert endpoint.events == ("fine_tuning.job.succeeded",)


def test_jobs_of_the_api_are_answered(stored: Workspace) -> None:
    with api_server(stored) as server:
        client = httpx.Client(base_url=f"{server.url}/v1", headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

        def get(path: str) -> Any:
            return client.get(path).raise_for_status().json()

        found = {job["status"]: job for job in get("/fine_tuning/jobs")["data"]}
        assert set(found) == {"succeeded", "cancelled"}
        job = found["succeeded"]
        assert get(f"/fine_tuning/jobs/{job['id']}")["fine_tuned_model"] == job["fine_tuned_model"]
        assert len(get(f"/fine_tuning/jobs/{job['id']}/checkpoints")["data"]) == 2
        assert get(f"/fine_tuning/jobs/{job['id']}/events")["data"]
        assert get(f"/files/{job['training_file']}")["filename"] == "rows.jsonl"
        assert job["fine_tuned_model"] in [model["id"] for model in get("/models")["data"]]


@pytest.mark.heavy
@pytest.mark.parametrize("version", VERSIONS[:1], indirect=True)  # the oldest, whose store is moved
def test_a_paused_job_is_resumed(stored: Workspace, ray_service: Service) -> None:
    """`kitae resume` continues the training from the checkpoint of the version before."""
    job_id = id_of(stored, PAUSED)
    at = Watched(stored, job_id).step()
    assert at > 0
    driver = ray_service.kitae(stored, "resume", job_id)
    assert driver.wait() == 0, driver.output
    assert jobs.load(stored, job_id).status == "succeeded"
    (trained,) = [record for record in jobs.stages(stored, job_id) if record.name == "train"]
    assert trained.outputs["resumed_from_step"] == at
    assert registry.get(stored, PAUSED).lineage.job_id == job_id
