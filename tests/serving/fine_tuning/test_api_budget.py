"""A team's monthly budget at the API: jobs that exceed it are refused, those near it say so in their events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar

import httpx
import pytest
from click.testing import CliRunner

from ray_jobs.__main__ import cli
from ray_jobs.cli import session
from ray_jobs.errors import BudgetError
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.tenancy import budgets, usage
from ray_jobs.tenancy.prices import Prices
from ray_jobs.tenancy.usage import UsageRow
from tests.serving.api_calls import create_job, upload, wait_for
from tests.serving.api_harness import BASE, KEY, ApiServer, add_base, api_server, rows

PRICES = Prices(gpu_hour=2.0, cpu_hour=1.0)
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def server(store: Workspace) -> Iterator[ApiServer]:
    add_base(store)
    with api_server(store, prices=PRICES) as running:
        yield running


def search(hours: float) -> dict[str, Any]:
    return {"search": {"trials": 3, "budget": {"gpu_hours": hours}}}


def book(store: Workspace, hours: float) -> None:
    """Book a training that ended today."""
    day = datetime.now(UTC).date()
    row = UsageRow(day=day, team="default", key_id="k", model="old", kind="training", worker_seconds=hours * 3600)
    usage.write(store, "default", day, "old", 1, [row])


def test_a_job_over_budget_is_refused_and_one_near_it_says_so(server: ApiServer, http: httpx.Client) -> None:
    budgets.set_budget(server.store, "default", 10.0)
    book(server.store, 3.0)
    quiet = create_job(http, seed=1, **search(1.0))["id"]
    near = create_job(http, seed=2, **search(5.0))["id"]
    file = upload(http, rows(12)).json()["id"]
    body = {"model": BASE, "training_file": file, **search(1.5)}
    for more in ({}, {"dry_run": True}):
        refused = http.post("/fine_tuning/jobs", json=body | more)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (429, "insufficient_quota")
        assert refused.headers["x-should-retry"] == "false"
        assert "90% of its budget of 10.00" in error["message"]
        assert "about 1.50 (the budget of its search)" in error["message"]
    events = {job: http.get(f"/fine_tuning/jobs/{job}/events").json()["data"] for job in (quiet, near)}
    warned = {job: [e["message"] for e in found if e["level"] == "warn"] for job, found in events.items()}
    assert warned[quiet] == []
    assert "has used 90% of its budget" in warned[near][0]
    plan = http.post("/fine_tuning/jobs", json=body | search(1.0) | {"dry_run": True}).json()["dry_run"]["budget"]
    assert plan == {
        "per_month": 10.0, "booked": 3.0, "reserved": 6.0, "state": "warning", "job": 1.0,
        "job_basis": "the budget of its search",
    }  # fmt: skip
    assert len(http.get("/fine_tuning/jobs").json()["data"]) == 2
    http.post(f"/fine_tuning/jobs/{near}/cancel")
    wait_for(http, near, "cancelled")
    deadline = time.monotonic() + 30
    while http.post("/fine_tuning/jobs", json=body | search(6.0)).status_code != 200:  # until its end is recorded
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_an_ended_job_counts_as_what_it_used(server: ApiServer, http: httpx.Client, store: Workspace) -> None:
    budgets.set_budget(server.store, "default", 10.0)
    job = create_job(http, **search(9.0))["id"]
    wait_for(http, job, "queued")
    server.run_launched()
    wait_for(http, job, "succeeded")
    budget = budgets.read(store, "default")
    assert budget is not None
    found = budgets.standing(store, "default", budget, PRICES, datetime.now(UTC))
    assert found.reserved == 0.0
    assert found.booked < 0.1


def test_a_refused_create_reserves_nothing(server: ApiServer, http: httpx.Client, store: Workspace) -> None:
    from ray_jobs.tenancy import api_keys

    budgets.set_budget(store, "blue", 10.0)
    _, secret = api_keys.create(store, "blue", "app", api_keys.Limits(concurrent_jobs=1))
    with httpx.Client(base_url=http.base_url, headers={"authorization": f"Bearer {secret}"}, timeout=60) as blue:
        create_job(blue, seed=1, **search(1.0))
        file = upload(blue, rows(12)).json()["id"]
        for seed in range(3):
            body = {"model": BASE, "training_file": file, "seed": seed, **search(4.0)}
            answer = blue.post("/fine_tuning/jobs", json=body)
            assert answer.json()["error"]["code"] == "concurrent_jobs_exceeded"


def test_a_budget_without_prices_admits_nothing(store: Workspace) -> None:
    add_base(store)
    budgets.set_budget(store, "default", 10.0)
    with (
        api_server(store) as server,
        httpx.Client(base_url=f"{server.url}/v1", headers=HEADERS, timeout=60) as http,
    ):
        file = upload(http, rows(12)).json()["id"]
        refused = http.post("/fine_tuning/jobs", json={"model": BASE, "training_file": file})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "budget_unavailable")
        assert refused.headers["retry-after"]


@pytest.fixture
def command(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setattr(session, "open_store", lambda *, check=True: store)
    monkeypatch.setenv("KITAE_PRICES", PRICES.model_dump_json())
    return CliRunner()


def test_the_command_line_sets_shows_and_clears_it(store: Workspace, command: CliRunner) -> None:
    book(store, 8.5)
    done = command.invoke(cli, ["budget", "set", "default", "--per-month", "10"])
    assert "has used 85% of its budget of 10.00 this month (8.50 booked" in done.output
    (shown,) = json.loads(command.invoke(cli, ["budget", "show", "--json"]).stdout)
    assert (shown["team"], shown["booked"], shown["state"], shown["share"]) == ("default", 8.5, "warning", 0.85)
    assert "warning" in command.invoke(cli, ["budget", "show", "default"]).stdout
    used = command.invoke(cli, ["usage"])
    assert "warning: team default has used 85% of its budget" in used.stdout
    assert "8.50" in used.stdout
    document = json.loads(command.invoke(cli, ["usage", "--json"]).stdout)
    assert (document["total"]["cost"], document["budgets"][0]["state"]) == (8.5, "warning")
    assert "has no budget" in command.invoke(cli, ["budget", "clear", "default"]).output
    assert json.loads(command.invoke(cli, ["budget", "show", "--json"]).stdout) == []


def test_a_budget_needs_prices(store: Workspace, command: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets.set_budget(store, "blue", 1.0)
    monkeypatch.delenv("KITAE_PRICES")
    refused = command.invoke(cli, ["budget", "set", "default", "--per-month", "10"])
    assert isinstance(refused.exception, BudgetError)
    shown = command.invoke(cli, ["usage"])
    assert shown.exit_code == 0
    assert "cannot be checked without prices" in shown.stderr


@pytest.mark.parametrize("name", ["plan", "run", "tune"])
def test_the_command_line_refuses_a_job_over_budget(
    store: Workspace, command: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, name: str
) -> None:
    from ray_jobs import pipeline

    class Done:
        run = job_id = "t1"
        params: ClassVar[dict[str, float]] = {}

        def as_text(self) -> str:
            return "went ahead"

    def went_ahead(store: Workspace, spec: JobSpec, **_: object) -> Done:
        return Done()

    for each in ("plan", "run", "tune"):
        monkeypatch.setattr(pipeline, each, went_ahead)
    file = tmp_path / "job.yaml"
    file.write_text(
        "name: faq\ntask: chat\nbase_model: org/base\ndata: {train: rows.jsonl}\n"
        "search: {trials: 2, budget: {gpu_hours: 3}}\n"
    )
    budgets.set_budget(store, "default", 10.0)
    assert command.invoke(cli, [name, str(file)]).exit_code == 0
    book(store, 8.0)
    refused = command.invoke(cli, [name, str(file)])
    assert isinstance(refused.exception, BudgetError)
    assert "about 3.00 (the budget of its search)" in str(refused.exception)
    budgets.set_budget(store, "default", 12.0)
    assert command.invoke(cli, [name, str(file)]).stderr == ""
    budgets.set_budget(store, "default", 11.0)
    near = command.invoke(cli, [name, str(file)])
    assert near.exit_code == 0
