"""Past jobs as the store tells of them; reports, tables and pages of them."""

from __future__ import annotations

import csv
import io
import re
import xml.dom.minidom
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from ray_jobs.jobs import StageRecord
from ray_jobs.quota import page, tables
from ray_jobs.quota.compare import compare
from ray_jobs.quota.job_trace import Past, past_job, read
from ray_jobs.quota.pool import Limits, Pool, Team
from ray_jobs.quota.report import as_csv, report
from ray_jobs.quota.simulate import Work
from ray_jobs.storage import Store
from ray_jobs.tenancy import usage
from ray_jobs.tenancy.usage import UsageRow
from tests.quota.builders import NOW, make_record, put

DAY = NOW.date()
MORNING = NOW.replace(hour=0)


def past(*records: Any, now: datetime | None = None) -> Past:
    return Past(tuple(job for job in (past_job(record, now=now) for record in records) if not isinstance(job, str)))


def make_pool(**prices: float) -> Pool:
    teams = {
        "blue": Team({"cpu": Limits(Decimal(8)), "h100": Limits(Decimal(4))}),
        "red": Team({"h100": Limits(Decimal(2))}),
    }
    return Pool(teams, {"h100": "gpu", "cpu": "cpu"}, prices)


def test_a_record_tells_when_a_job_came_and_what_it_held() -> None:
    job = past_job(make_record("a"))
    assert not isinstance(job, str)
    assert (job.team, job.model, job.units, job.kind, job.seconds, job.waited_s) == ("blue", "a", 2, "gpu", 3600, 1800)
    assert job.work() == Work(job.id, "blue", (MORNING + timedelta(hours=10)).timestamp(), 3600, 2, "gpu", 0)
    cores = past_job(make_record("c", spec_fields={"compute": {"workers": 3, "cpus_per_worker": 0.5}, "priority": -5}))
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
def test_a_record_that_tells_too_little_says_why(changes: dict[str, Any], why: str) -> None:
    assert past_job(make_record("a", **changes)) == why


def test_what_is_read_from_the_store(store: Store) -> None:
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
        store.put_json(f"jobs/{again.id}/stages/train-{i}.json", stage.model_dump(mode="json"))
    ledger = UsageRow(day=DAY, team="red", key_id="k", model="gone", kind="training", requests=1, gpu_seconds=7200)
    usage.write_training(store, ledger, writer="gone-0123456789", number=1)
    usage.write_training(store, ledger.model_copy(update={"model": "a"}), writer=make_record("a").id, number=1)
    usage.write(store, "red", DAY, "api-0123456789abcdef", 1, [ledger.model_copy(update={"kind": "inference"})])
    found = read(store, since=DAY, until=DAY)
    assert {job.model: job.seconds for job in found.jobs} == {"a": 3600, "again": 3600 + 600}
    assert [job.waited_s for job in found.jobs if job.model == "again"] == [None]
    assert found.left_out == ((runs.id, "still runs or waits"),)
    assert [(one.id, one.team, one.gpu_hours) for one in found.unplaced] == [("gone-0123456789", "red", 2)]
    assert found.notes() == ["1 job(s) left out: still runs or waits", "1 job(s) left out: only in the ledger"]
    cut = {job.model: job.seconds for job in read(store, since=DAY, now=NOW).jobs}
    assert cut == {"a": 3600, "again": 4200, "runs": 5400}
    assert {job.model for job in read(store).jobs} == {"a", "again", "old"}
    assert {job.model for job in read(store, since=DAY - timedelta(days=8)).jobs} == {"a", "again", "old"}
    assert {job.model for job in read(store, since=DAY - timedelta(days=8)).arrived(DAY, DAY).jobs} == {"a", "again"}


def test_hours_idle_hours_and_cost_of_teams() -> None:
    cores = make_record("c", spec_fields={"team": "blue", "compute": {"workers": 3}})
    stranger = make_record("s", spec_fields={"team": "green", "compute": {"gpus_per_worker": 1}})
    made = report(past(make_record("a"), cores, stranger), make_pool(h100=3.0, cpu=0.5), MORNING, NOW, "team")
    blue, green, red = made.rows
    assert (blue.name, blue.jobs, blue.gpu_hours, blue.core_hours) == ("blue", 2, 2, 3)
    assert (blue.idle_gpu_hours, blue.idle_core_hours) == (12 * 4 - 2, 12 * 8 - 3)
    assert (blue.cost, blue.idle_cost) == (2 * 3 + 3 * 0.5, 46 * 3 + 93 * 0.5)
    assert (green.gpu_hours, green.idle_gpu_hours, green.cost) == (1, None, 0)
    assert (red.gpu_hours, red.idle_gpu_hours, red.cost) == (0, 24, 0)
    assert (made.total.jobs, made.total.gpu_hours, made.total.idle_gpu_hours) == (3, 3, 12 * 6 - 3)
    assert made.notes == ("no quota, so no idle hours and no price: green",)


def test_only_what_lies_in_the_time_of_the_report_counts() -> None:
    record = make_record("a")  # 10:30 to 11:30, two GPUs
    at_11 = MORNING + timedelta(hours=11)
    assert report(past(record), make_pool(), MORNING, at_11, "team").total.gpu_hours == 1
    assert report(past(record), make_pool(), at_11, NOW, "team").total.gpu_hours == 1
    assert report(past(record), make_pool(), NOW, NOW + timedelta(hours=1), "team").total.gpu_hours == 0


def test_jobs_and_models_have_no_idle_hours_and_without_quotas_nothing_has() -> None:
    first, second = make_record("a"), make_record("b")
    made = report(past(first, second), make_pool(h100=1), MORNING, NOW, "model")
    rows = [(row.name, row.gpu_hours, row.idle_gpu_hours, row.cost) for row in made.rows]
    assert rows == [("a", 2, None, 2), ("b", 2, None, 2)]
    assert [row.name for row in report(past(first, second), None, MORNING, NOW, "job").rows] == [first.id, second.id]
    bare = report(past(first), None, MORNING, NOW, "team")
    assert (bare.total.idle_gpu_hours, bare.total.cost) == (None, None)
    assert "--quota" in bare.notes[0]


def test_the_csv_has_a_line_a_row_and_no_sum() -> None:
    made = report(past(make_record("a")), make_pool(h100=3.0), MORNING, NOW, "team")
    rows = list(csv.DictReader(io.StringIO(as_csv(made))))
    assert [row["team"] for row in rows] == ["blue", "red"]
    assert rows[0] | {"team": "blue"} == rows[0]
    assert (rows[0]["gpu_hours"], rows[0]["idle_gpu_hours"], rows[0]["cost"]) == ("2", "46", "6")
    model = report(past(make_record("a")), make_pool(h100=3.0), MORNING, NOW, "model")
    assert next(csv.DictReader(io.StringIO(as_csv(model))))["idle_gpu_hours"] == ""


def test_the_table_leaves_out_what_nobody_has() -> None:
    columns, rows = tables.report_rows(report(past(make_record("a")), make_pool(), MORNING, NOW, "team"))
    assert columns == ["team", "jobs", "GPU h", "idle GPU h", "idle core h"]
    assert rows[-1] == ["total", "1", "2.00", "70.00", "96.00"]


def played(team: str = "blue") -> Any:
    works = [Work(f"w{i}", team, 600.0 * i, 3600, 2) for i in range(12)]
    present = Pool({team: Team({"h100": Limits(Decimal(2))})}, {"h100": "gpu"}, {"h100": 2.0})
    proposed = Pool({team: Team({"h100": Limits(Decimal(4))})}, {"h100": "gpu"}, {"h100": 2.0})
    return compare(present, proposed, works)


def test_the_tables_of_a_simulation_say_what_changes() -> None:
    columns, rows = tables.team_rows(*played())
    assert dict(zip(columns, rows[0], strict=True))["wait p50"] == "4h35m → 1h40m"
    assert dict(zip(columns, rows[0], strict=True))["jobs"] == "12"
    columns, rows = tables.flavor_rows(*played())
    shown = dict(zip(columns, rows[0], strict=True))
    assert (shown["nominal"], shown["utilisation"], shown["hours used"]) == ("2 → 4", "100.0% → 50.0%", "24.0")
    assert shown["cost of the quota"] == "48.00 → 96.00"


def svgs(html: str) -> list[Any]:
    return [xml.dom.minidom.parseString(found) for found in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)]


def test_the_page_of_a_simulation_needs_nothing_else_and_draws_both() -> None:
    html = page.simulation(*played("<b>lue"), title="A <title>", notes=["a & b"])
    assert "http" not in html.replace("http-equiv", "")
    assert "<script" not in html
    assert "<b>lue" not in html
    assert "&lt;b&gt;lue" in html
    assert "A &lt;title&gt;" in html
    waits, use = svgs(html)
    lines = waits.getElementsByTagName("polyline")
    assert [line.getElementsByTagName("title")[0].firstChild.data for line in lines] == ["present", "proposed"]
    for drawing in (waits, use):
        for line in drawing.getElementsByTagName("polyline"):
            points = [tuple(map(float, each.split(","))) for each in line.getAttribute("points").split()]
            assert len(points) > 5
            assert all(0 <= x <= 640 and 0 <= y <= 240 for x, y in points)
            assert [x for x, _ in points] == sorted(x for x, _ in points)
    # Shares grow: on the page downwards is less.
    heights = [float(each.split(",")[1]) for each in lines[0].getAttribute("points").split()]
    assert heights == sorted(heights, reverse=True)


def test_the_level_of_use_is_the_mean_over_time() -> None:
    before, after = played()
    for each, end_s in ((before, before.window_s[1]), (after, before.window_s[1])):
        levels = page._levels(each, "h100", end_s)
        mean = sum(level for _, level in levels) / len(levels)
        assert mean * (end_s - each.window_s[0]) / 3600 == pytest.approx(24)


def test_the_page_of_a_report() -> None:
    html = page.usage(report(past(make_record("a")), make_pool(h100=3.0), MORNING, NOW, "team"), title="Use")
    (bars,) = svgs(html)
    assert len(bars.getElementsByTagName("rect")) == 2 * 2 + 2
    assert "70.00" in html
    empty = page.usage(report(Past(()), None, MORNING, NOW, "job"), title="Use")
    assert "Nothing has run" in empty
