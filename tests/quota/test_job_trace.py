"""The job trace read from the store; reports, tables and pages."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from ray_jobs.jobs import StageRecord
from ray_jobs.kueue.pool import Pool, QuotaLimits, TeamQuota
from ray_jobs.kueue.simulate import QueuedJob
from ray_jobs.quota import results
from ray_jobs.quota.compare import compare
from ray_jobs.quota.job_trace import JobTrace, past_job, read
from ray_jobs.quota.report import as_csv, report
from ray_jobs.storage import Workspace
from ray_jobs.tenancy import usage
from ray_jobs.tenancy.usage import UsageRow
from tests.quota.builders import NOW, make_record, put

DAY = NOW.date()
MORNING = NOW.replace(hour=0)


def trace(*records: Any, now: datetime | None = None) -> JobTrace:
    found = (past_job(record, str(record.spec.get("team") or "default"), now=now) for record in records)
    return JobTrace(tuple(job for job in found if not isinstance(job, str)))


def make_pool(**prices: float) -> Pool:
    teams = {
        "blue": TeamQuota({"cpu": QuotaLimits(Decimal(8)), "h100": QuotaLimits(Decimal(4))}),
        "red": TeamQuota({"h100": QuotaLimits(Decimal(2))}),
    }
    return Pool(teams, {"h100": "gpu", "cpu": "cpu"}, prices)


def test_a_record_has_the_arrival_and_the_units() -> None:
    job = past_job(make_record("a"), "blue")
    assert not isinstance(job, str)
    assert (job.team, job.model, job.units, job.kind, job.duration_s) == ("blue", "a", 2, "gpu", 3600)
    assert (job.name, job.priority) == (make_record("a").id, 0)
    assert job.arrival_s == (MORNING + timedelta(hours=10)).timestamp()
    cores = past_job(
        make_record("c", spec_fields={"compute": {"workers": 3, "cpus_per_worker": 0.5}, "priority": -5}), "default"
    )
    assert not isinstance(cores, str)
    assert (cores.team, cores.kind, cores.units, cores.priority) == ("default", "cpu", 1.5, -5)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"finished_at": None}, "still runs or waits"),
        ({"finished_at": None, "paused_at": NOW}, "still runs or waits"),
        ({"started_at": None, "attempt": 0, "cancelled_at": NOW}, "never started"),
        ({"spec": {"name": "Not A Name"}}, "record that cannot be read"),
    ],
)
def test_an_incomplete_record_is_left_out_with_a_reason(changes: dict[str, Any], why: str) -> None:
    assert past_job(make_record("a", **changes), "blue") == why


def test_the_trace_is_read_from_records_and_the_ledger(store: Workspace) -> None:
    runs = make_record("runs", finished_at=None)
    again = make_record("again", attempt=2)
    days_ago = {n: NOW - timedelta(days=n) for n in (8, 9)}
    old = make_record("old", created_at=days_ago[9], started_at=days_ago[9], finished_at=days_ago[8])
    put(store, make_record("a"), runs, again, old)
    stages = [
        StageRecord(name="train", inputs={}, outputs={}, seconds=seconds, attempt=attempt, finished_at=NOW)
        for attempt, seconds in ((1, 600), (2, 50))
    ]
    for i, stage in enumerate(stages):
        Workspace(store, "blue").put_json(f"jobs/{again.id}/stages/train-{i}.json", stage.model_dump(mode="json"))
    ledger = UsageRow(day=DAY, team="red", key_id="k", model="gone", kind="training", requests=1, gpu_seconds=7200)
    usage.write(store, "red", DAY, "gone-0123456789", 1, [ledger])
    usage.write(store, "red", DAY, make_record("a").id, 1, [ledger.model_copy(update={"model": "a"})])
    usage.write(store, "red", DAY, "api-0123456789abcdef", 1, [ledger.model_copy(update={"kind": "inference"})])
    found = read(store, since=DAY, until=DAY)
    assert {job.model: job.duration_s for job in found.jobs} == {"a": 3600, "again": 3600 + 600}
    assert found.left_out == ((runs.id, "still runs or waits"),)
    assert [(job, row.team, row.gpu_seconds) for job, row in found.ledger_jobs] == [("gone-0123456789", "red", 7200)]
    assert found.notes() == ["1 job(s) left out: still runs or waits", "1 job(s) left out: only in the ledger"]
    cut = {job.model: job.duration_s for job in read(store, since=DAY, now=NOW).jobs}
    assert cut == {"a": 3600, "again": 4200, "runs": 5400}
    assert {job.model for job in read(store).jobs} == {"a", "again", "old"}
    assert {job.model for job in read(store, since=DAY - timedelta(days=8)).jobs} == {"a", "again", "old"}
    assert {job.model for job in read(store, since=DAY - timedelta(days=8)).arrived(DAY, DAY).jobs} == {"a", "again"}


def test_hours_idle_hours_and_cost_of_teams() -> None:
    cores = make_record("c", spec_fields={"team": "blue", "compute": {"workers": 3}})
    stranger = make_record("s", spec_fields={"team": "green", "compute": {"gpus_per_worker": 1}})
    made = report(trace(make_record("a"), cores, stranger), make_pool(h100=3.0, cpu=0.5), MORNING, NOW, "team")
    blue, green, red = made.rows
    assert (blue.name, blue.jobs, blue.gpu_hours, blue.core_hours) == ("blue", 2, 2, 3)
    assert (blue.idle_gpu_hours, blue.idle_core_hours) == (12 * 4 - 2, 12 * 8 - 3)
    assert (blue.cost, blue.idle_cost) == (2 * 3 + 3 * 0.5, 46 * 3 + 93 * 0.5)
    assert (green.gpu_hours, green.idle_gpu_hours, green.cost) == (1, None, 0)
    assert (red.gpu_hours, red.idle_gpu_hours, red.cost) == (0, 24, 0)
    assert (made.total.jobs, made.total.gpu_hours, made.total.idle_gpu_hours) == (3, 3, 12 * 6 - 3)
    assert made.notes == ("no quota, so no idle hours and no price: green",)


def test_only_hours_within_the_period_count() -> None:
    record = make_record("a")  # 10:30 to 11:30, two GPUs
    at_11 = MORNING + timedelta(hours=11)
    assert report(trace(record), make_pool(), MORNING, at_11, "team").total.gpu_hours == 1
    assert report(trace(record), make_pool(), at_11, NOW, "team").total.gpu_hours == 1
    assert report(trace(record), make_pool(), NOW, NOW + timedelta(hours=1), "team").total.gpu_hours == 0


def test_jobs_and_models_and_teams_without_a_quota_have_no_idle_hours() -> None:
    first, second = make_record("a"), make_record("b")
    made = report(trace(first, second), make_pool(h100=1), MORNING, NOW, "model")
    rows = [(row.name, row.gpu_hours, row.idle_gpu_hours, row.cost) for row in made.rows]
    assert rows == [("a", 2, None, 2), ("b", 2, None, 2)]
    assert [row.name for row in report(trace(first, second), None, MORNING, NOW, "job").rows] == [first.id, second.id]
    bare = report(trace(first), None, MORNING, NOW, "team")
    assert (bare.total.idle_gpu_hours, bare.total.cost) == (None, None)
    assert "--quota" in bare.notes[0]


def test_the_csv_has_one_line_a_row_and_no_total() -> None:
    made = report(trace(make_record("a")), make_pool(h100=3.0), MORNING, NOW, "team")
    rows = list(csv.DictReader(io.StringIO(as_csv(made))))
    assert [row["team"] for row in rows] == ["blue", "red"]
    assert rows[0] | {"team": "blue"} == rows[0]
    assert (rows[0]["gpu_hours"], rows[0]["idle_gpu_hours"], rows[0]["cost"]) == ("2", "46", "6")
    model = report(trace(make_record("a")), make_pool(h100=3.0), MORNING, NOW, "model")
    assert next(csv.DictReader(io.StringIO(as_csv(model))))["idle_gpu_hours"] == ""


def test_the_table_leaves_out_empty_columns() -> None:
    columns, rows = results.report_rows(report(trace(make_record("a")), make_pool(), MORNING, NOW, "team"))
    assert columns == ["team", "jobs", "GPU h", "idle GPU h", "idle core h"]
    assert rows[-1] == ["total", "1", "2.00", "70.00", "96.00"]


def replayed(team: str = "blue") -> Any:
    queued_jobs = [QueuedJob(f"w{i}", team, 600.0 * i, 3600, 2) for i in range(12)]
    present = Pool({team: TeamQuota({"h100": QuotaLimits(Decimal(2))})}, {"h100": "gpu"}, {"h100": 2.0})
    proposed = Pool({team: TeamQuota({"h100": QuotaLimits(Decimal(4))})}, {"h100": "gpu"}, {"h100": 2.0})
    return compare(present, proposed, queued_jobs)


def test_the_tables_of_a_simulation_show_changes() -> None:
    columns, rows = results.team_rows(*replayed())
    assert dict(zip(columns, rows[0], strict=True))["wait p50"] == "4h35m → 1h40m"
    assert dict(zip(columns, rows[0], strict=True))["jobs"] == "12"
    columns, rows = results.flavor_rows(*replayed())
    shown = dict(zip(columns, rows[0], strict=True))
    assert (shown["nominal"], shown["utilisation"], shown["hours used"]) == ("2 → 4", "100.0% → 50.0%", "24.0")
    assert shown["cost of the quota"] == "48.00 → 96.00"


def figures(html: str) -> list[tuple[list[Any], dict[str, Any]]]:
    """(data, layout) of every plot, as plotly.js gets them."""
    decoder, found = json.JSONDecoder(), []
    for call in re.finditer(r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*", html):
        data, end = decoder.raw_decode(html, call.end())
        layout, _ = decoder.raw_decode(html, html.index("{", end))
        found.append((data, layout))
    return found


def test_the_page_of_a_simulation_is_self_contained_and_plots_both_quotas() -> None:
    html = results.simulation_page(*replayed("<b>lue"), title="A <title>", notes=["a & b"])
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="', html)
    assert "<b>lue" not in html
    assert "&lt;b&gt;lue" in html
    assert "A &lt;title&gt;" in html
    waits, levels = figures(html)
    for data, _ in (waits, levels):
        assert [line["name"] for line in data] == ["present", "proposed"]
        for line in data:
            assert len(line["x"]) == len(line["y"]) > 5
            assert line["x"] == sorted(line["x"])
            assert min(line["y"]) >= 0
    for line in waits[0]:
        assert line["y"] == sorted(line["y"])  # shares grow
        assert line["y"][-1] == 1
    assert waits[1]["yaxis"]["tickformat"] == ".0%"


def test_usage_levels_are_means_over_time() -> None:
    before, after = replayed()
    for each, end_s in ((before, before.window_s[1]), (after, before.window_s[1])):
        levels = results.usage_levels(each, "h100", end_s)
        mean = sum(level for _, level in levels) / len(levels)
        assert mean * (end_s - each.window_s[0]) / 3600 == pytest.approx(24)


def test_the_page_of_a_report_has_used_and_idle_hours_of_each_row() -> None:
    html = results.report_page(report(trace(make_record("a")), make_pool(h100=3.0), MORNING, NOW, "team"), title="Use")
    ((used, idle), layout) = figures(html)[0]
    assert (used["name"], idle["name"], layout["barmode"]) == ("used", "idle", "stack")
    assert (used["x"], idle["x"]) == ([2, 0], [46, 24])
    assert layout["yaxis"]["ticktext"] == ["blue", "red"]
    assert "70.00" in html
    empty = results.report_page(report(JobTrace(()), None, MORNING, NOW, "job"), title="Use")
    assert "No job ran" in empty
    assert figures(empty) == []
