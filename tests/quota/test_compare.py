"""Two replays of one job trace: waiting times, utilisation and cost."""

from __future__ import annotations

import pytest

from ray_jobs.kueue.simulate import simulate
from ray_jobs.quota.compare import ALL, compare, measure
from tests.kueue.builders import job, limits, make_pool


def test_present_and_proposed_are_measured_over_the_same_window() -> None:
    jobs = [job(f"w{i}", "blue", 0, 3600) for i in range(4)] + [job("r", "red", 0, 7200)]
    present = make_pool(blue=limits(1, borrow=0), red=limits(1, borrow=0), prices={"h100": 2.0})
    proposed = make_pool(blue=limits(2, borrow=0), red=limits(1, borrow=0), prices={"h100": 2.0})
    before, after = compare(present, proposed, jobs)
    assert [before.window_s, after.window_s] == [(0, 4 * 3600)] * 2
    blue, red, everybody = before.teams
    assert [t.team for t in before.teams] == ["blue", "red", ALL]
    assert [blue.p50_s, blue.p95_s, blue.mean_s] == pytest.approx([5400, 2.85 * 3600, 5400])
    assert (blue.hours, blue.cost, red.hours, everybody.jobs) == (4, 8, 2, 5)
    assert (after.teams[0].p50_s, after.teams[0].mean_s) == (1800, 1800)
    (use,), (new,) = before.flavors, after.flavors
    assert (use.nominal, use.hours, use.idle_hours, use.utilisation) == (2, 6, 2, 0.75)
    assert (use.used_cost, use.nominal_cost) == (12, 16)
    assert (new.nominal, new.hours, new.idle_hours, new.utilisation, new.nominal_cost) == (3, 6, 6, 0.5, 24)


def test_a_team_whose_jobs_never_start_has_no_waiting_time() -> None:
    pool = make_pool(blue=limits(1))
    (blue,) = measure(pool, simulate(pool, [job("huge", "blue", 0, 1, 2)]), (0, 10)).teams
    assert (blue.never, blue.p50_s, blue.mean_s, blue.hours) == (1, None, None, 0)
