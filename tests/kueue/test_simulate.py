"""The simulation, compared with queueing theory and with a simulation in steps of a second, and rule by rule."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.kueue.pool import Pool, TeamQuota
from ray_jobs.kueue.simulate import Allocation, QueuedJob, QueuedJobOutcome, simulate
from ray_jobs.quota.compare import steps
from tests.kueue.builders import job, limits, make_pool


def starts(outcomes: Sequence[QueuedJobOutcome]) -> dict[str, list[float]]:
    return {o.queued_job.name: [allocation.start_s for allocation in o.allocations] for o in outcomes}


# ---- theory


def erlang_c(servers: int, load: float) -> float:
    """Probability that an arrival waits in M/M/c (Erlang 1917). `load`: arrival rate × mean service time."""
    terms = sum(load**k / math.factorial(k) for k in range(servers))
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (terms + last)


def run_s(outcome: QueuedJobOutcome) -> float:
    return sum(allocation.end_s - allocation.start_s for allocation in outcome.allocations)


def poisson_trace(servers: int, rho: float, count: int, seed: int) -> list[QueuedJob]:
    """Arrivals of M/M/c with mean service time 1. Gaps and services are scaled to their expected sums, which removes
    most of the noise from the mean wait."""
    drawn = random.Random(f"{seed} {servers} {rho}")
    gaps = [drawn.expovariate(1) for _ in range(count)]
    services = [drawn.expovariate(1) for _ in range(count)]
    gap_scale, service_scale = count / (servers * rho) / sum(gaps), count / sum(services)
    now, jobs = 0.0, []
    for i, (gap, service) in enumerate(zip(gaps, services, strict=True)):
        now += gap * gap_scale
        jobs.append(job(str(i), "a", now, service * service_scale))
    return jobs


@pytest.mark.parametrize(("servers", "rho"), [(1, 0.6), (2, 0.7), (4, 0.7), (8, 0.8)])
def test_waits_of_m_m_c_match_erlang_c_within_5_percent(servers: int, rho: float) -> None:
    runs, count = 3, 20_000
    waits: list[float] = []
    pool = make_pool(a=limits(servers))
    for seed in range(runs):
        waits += [outcome.wait_s for outcome in simulate(pool, poisson_trace(servers, rho, count, seed))]
    waiting = erlang_c(servers, servers * rho)
    assert sum(waits) / len(waits) == pytest.approx(waiting / (servers * (1 - rho)), rel=0.05)
    assert sum(wait > 1e-9 for wait in waits) / len(waits) == pytest.approx(waiting, rel=0.05)
    # The waiting time of the waiting jobs is exponentially distributed.
    p95 = max(0.0, math.log(waiting / 0.05) / (servers * (1 - rho)))
    assert float(np.quantile(waits, 0.95)) == pytest.approx(p95, rel=0.1)


def test_each_wait_of_m_m_c_matches_the_recursion_for_fifo() -> None:
    """Kiefer and Wolfowitz 1955: a job starts on the server that is free first."""
    jobs = poisson_trace(3, 0.9, 3_000, 1)
    free = [0.0] * 3
    expected = []
    for each in jobs:
        start = max(each.arrival_s, heapq.heappop(free))
        heapq.heappush(free, start + each.duration_s)
        expected.append(start - each.arrival_s)
    assert [o.wait_s for o in simulate(make_pool(a=limits(3)), jobs)] == pytest.approx(expected)


def mean_wait_of_a_scan(jobs: Sequence[QueuedJob], gpus: int) -> float:
    """One pool by priority: at each event all waiting jobs are tried in order."""
    free, total_s, waiting = gpus, 0.0, list[QueuedJob]()
    ends: list[tuple[float, int]] = []
    arrivals = list(jobs)
    while arrivals or ends:
        now_s = min([end for end, _ in ends[:1]] + [each.arrival_s for each in arrivals[:1]])
        while ends and ends[0][0] <= now_s:
            free += heapq.heappop(ends)[1]
        while arrivals and arrivals[0].arrival_s <= now_s:
            waiting.append(arrivals.pop(0))
        for each in sorted(waiting, key=lambda each: (-each.priority, each.arrival_s)):
            if each.units <= free:
                free -= int(each.units)
                total_s += now_s - each.arrival_s
                heapq.heappush(ends, (now_s + each.duration_s, int(each.units)))
                waiting.remove(each)
    return total_s / len(jobs)


def test_one_team_by_priority_waits_as_long_as_in_a_scan_of_its_queue() -> None:
    drawn, gpus, now_s = random.Random(5), 16, 0.0
    jobs = []
    for i in range(500):
        now_s += drawn.expovariate(1.1 * gpus / 3.75 / 3600)  # 110 % of the GPUs, of 3.75 a job
        size, priority = drawn.choice((1, 2, 4, 8)), drawn.choice((-100, 0, 0, 100))
        jobs.append(job(str(i), "a", now_s, drawn.expovariate(1 / 3600), size, priority))
    waits = [outcome.wait_s for outcome in simulate(make_pool(a=limits(gpus)), jobs)]
    assert sum(waits) / len(waits) == pytest.approx(mean_wait_of_a_scan(jobs, gpus))
    assert max(waits) > 0


# ---- in steps of a second


Numbers = dict[str, tuple[int, int | None, int | None]]
"""By team: nominal, borrowing limit and lending limit of one flavor; all in one cohort."""


def stepped(teams: Numbers, jobs: Sequence[QueuedJob]) -> dict[str, int]:
    """Starts by an independent implementation: every second it ends and admits jobs, and recounts usage from the list
    of running jobs. Whole seconds, no preemption."""
    queue = sorted(jobs, key=lambda w: (-w.priority, w.arrival_s))
    begun: dict[str, int] = {}
    busy: list[tuple[QueuedJob, int]] = []
    now = 0

    def used(team: str, held: Sequence[tuple[str, int]] = ()) -> int:
        return sum(int(w.units) for w, _ in busy if w.team == team) + sum(n for name, n in held if name == team)

    def fits(each: QueuedJob, held: Sequence[tuple[str, int]] = ()) -> bool:
        nominal, borrow, _ = teams[each.team]
        after = {name: used(name, held) for name in teams}
        after[each.team] += int(each.units)
        # Usage beyond a team's guaranteed quota is taken from the sum of all lendable quota.
        keeps = {name: 0 if lend is None else own - min(own, lend) for name, (own, _, lend) in teams.items()}
        lent = sum(own - keeps[name] for name, (own, _, _) in teams.items())
        taken = sum(max(0, after[name] - keeps[name]) for name in teams)
        return taken <= lent and (borrow is None or after[each.team] <= nominal + borrow)

    while len(begun) < len(jobs) or busy:
        busy = [(w, end) for w, end in busy if end > now]
        tried: set[str] = set()
        while True:
            # A cycle: each team's first untried job; those that need not borrow come first.
            waiting = [w for w in queue if w.arrival_s <= now and w.name not in begun and w.name not in tried]
            heads = [
                next(w for w in waiting if w.team == name) for name in teams if any(w.team == name for w in waiting)
            ]
            if not heads:
                break
            fitting = {w.name for w in heads if fits(w)}
            heads.sort(
                key=lambda w: (
                    w.name in fitting and used(w.team) + w.units > teams[w.team][0],
                    -w.priority,
                    w.arrival_s,
                )
            )
            held: list[tuple[str, int]] = []
            for each in heads:
                if each.name not in fitting:
                    tried.add(each.name)
                    held.append((each.team, max(0, min(int(each.units), teams[each.team][0] - used(each.team, held)))))
                elif fits(each, held):
                    begun[each.name] = now
                    busy.append((each, now + int(each.duration_s)))
        now += 1
        assert now < 10_000
    return begun


_TEAM = st.tuples(st.integers(1, 6), st.none() | st.integers(0, 4), st.none() | st.integers(0, 3))


@st.composite
def traces(draw: st.DrawFn) -> tuple[Numbers, list[QueuedJob]]:
    teams = {name: draw(_TEAM) for name in ("blue", "red", "teal")[: draw(st.integers(1, 3))]}
    teams = {n: (nominal, borrow, lend and min(lend, nominal)) for n, (nominal, borrow, lend) in teams.items()}
    count = draw(st.integers(1, 14))
    jobs = []
    for i in range(count):
        team = draw(st.sampled_from(sorted(teams)))
        # At most the nominal quota, so that every job starts.
        units = draw(st.integers(1, teams[team][0]))
        # All at different times: the order of simultaneous arrivals is not compared.
        jobs.append(job(f"w{i}", team, 3 * i, draw(st.integers(1, 30)), units, draw(st.integers(0, 2))))
    return teams, jobs


@given(traces())
@settings(max_examples=150, deadline=None)
def test_a_random_trace_matches_the_simulation_in_steps(
    trace: tuple[Numbers, list[QueuedJob]],
) -> None:
    teams, jobs = trace
    own: dict[str, Any] = {name: limits(*numbers) for name, numbers in teams.items()}
    pool = make_pool(**own)
    found = {name: at[0] for name, at in starts(simulate(pool, jobs)).items()}
    assert found == stepped(teams, jobs)


# ---- rule by rule


def test_a_team_borrows_only_what_others_lend() -> None:
    pool = make_pool(blue=limits(4, borrow=3), red=limits(8, lend=2))
    found = starts(simulate(pool, [job("own", "blue", 0, 10, 4), *(job(f"b{i}", "blue", i, 10) for i in (1, 2, 3))]))
    assert found == {"own": [0], "b1": [1], "b2": [2], "b3": [10]}  # red lends 2, though 3 may be borrowed
    pool = make_pool(blue=limits(4, borrow=1), red=limits(8))
    found = starts(simulate(pool, [job("own", "blue", 0, 10, 4), *(job(f"b{i}", "blue", i, 10) for i in (1, 2))]))
    assert found == {"own": [0], "b1": [1], "b2": [10]}  # red lends all, and 1 may be borrowed


def test_every_team_may_use_a_cohorts_own_quota() -> None:
    pool = Pool({"blue": TeamQuota({"h100": limits(1)})}, {"h100": "gpu"}, shared={("kitae", "h100"): Decimal(2)})
    assert starts(simulate(pool, [job("big", "blue", 0, 10, 3), job("huge", "blue", 1, 10, 4)])) == {
        "big": [0],
        "huge": [],
    }


def test_teams_of_different_cohorts_or_none_do_not_share() -> None:
    own = {"h100": limits(1)}
    alone, other = TeamQuota(own, cohort=None), TeamQuota(own, cohort="other")
    teams: dict[str, Any] = {"a": alone, "b": alone, "c": TeamQuota(own), "d": other}
    pool = make_pool(**teams)
    jobs = [job(f"{team}{i}", team, i, 10) for team in teams for i in (0, 1)]
    assert starts(simulate(pool, jobs)) == {w.name: [0 if w.name[1] == "0" else 10] for w in jobs}


def test_strict_fifo_waits_behind_a_large_job_and_best_effort_fifo_does_not() -> None:
    jobs = [job("first", "blue", 0, 10, 3), job("large", "blue", 1, 10, 4), job("small", "blue", 2, 5)]
    best = make_pool(blue=TeamQuota({"h100": limits(4)}))
    strict = make_pool(blue=TeamQuota({"h100": limits(4)}, strategy="StrictFIFO"))
    assert starts(simulate(best, jobs)) == {"first": [0], "large": [10], "small": [2]}
    assert starts(simulate(strict, jobs)) == {"first": [0], "large": [10], "small": [20]}


def test_a_strict_teams_head_reserves_quota_against_borrowers() -> None:
    jobs = [
        job("r0", "red", 0, 10, 3),
        job("b0", "blue", 1, 20, 2),
        job("large", "blue", 2, 10, 4),  # waits for b0 even after red's three are free
        job("r1", "red", 3, 30, 1),  # has to borrow, and one is free
    ]
    strict = make_pool(blue=TeamQuota({"h100": limits(4)}, strategy="StrictFIFO"), red=limits(2))
    best = make_pool(blue=limits(4), red=limits(2))
    assert starts(simulate(best, jobs)) == {"r0": [0], "b0": [1], "large": [21], "r1": [3]}
    assert starts(simulate(strict, jobs)) == {"r0": [0], "b0": [1], "large": [21], "r1": [10]}


def test_priority_precedes_arrival_and_nothing_is_preempted_by_default() -> None:
    jobs = [job("runs", "blue", 0, 10), job("low", "blue", 1, 10), job("high", "blue", 2, 10, priority=100)]
    assert starts(simulate(make_pool(blue=limits(1)), jobs)) == {"runs": [0], "high": [10], "low": [20]}


def test_a_job_preempts_the_latest_starts_of_lower_priority_and_no_more_than_needed() -> None:
    pool = make_pool(blue=TeamQuota({"h100": limits(4)}, within="LowerPriority"))
    jobs = [job(f"low{i}", "blue", i, 100, 1) for i in range(3)]
    jobs += [job("mid", "blue", 3, 100, 1, 5), job("high", "blue", 10, 20, 2, 10)]
    found = {o.queued_job.name: o for o in simulate(pool, jobs, restart_s=7)}
    assert found["low0"].allocations == (Allocation(0, 100, "h100"),)
    assert found["low2"].allocations == (Allocation(2, 10, "h100"), Allocation(30, 30 + 92 + 7, "h100"))
    assert found["low1"].allocations == (Allocation(1, 10, "h100"), Allocation(30, 30 + 91 + 7, "h100"))
    assert found["low1"].wait_s == 20
    assert run_s(found["low1"]) == 107
    assert found["high"].allocations == (Allocation(10, 30, "h100"),)
    equal = [job("old", "blue", 1, 50, 4), job("new", "blue", 0.5, 50, 4)]
    assert starts(simulate(pool, equal)) == {"old": [50.5], "new": [0.5]}


def test_an_older_job_preempts_a_newer_one_of_equal_priority_only_by_policy() -> None:
    jobs = [
        job("block", "blue", 0, 10, 3),
        job("older", "blue", 1, 10, 4),
        job("newer", "blue", 2, 50, 1),
    ]
    never = make_pool(blue=TeamQuota({"h100": limits(4)}, within="LowerPriority"))
    newer = make_pool(blue=TeamQuota({"h100": limits(4)}, within="LowerOrNewerEqualPriority"))
    assert starts(simulate(never, jobs, restart_s=0)) == {"block": [0], "newer": [2], "older": [52]}
    assert starts(simulate(newer, jobs, restart_s=0)) == {"block": [0], "newer": [2, 20], "older": [10]}


@pytest.mark.parametrize(
    ("reclaim", "priority", "at"),
    [("Never", 0, 100), ("LowerPriority", 0, 100), ("LowerPriority", 9, 5), ("Any", 0, 5)],
)
def test_borrowed_quota_is_reclaimed_by_policy(reclaim: Any, priority: int, at: float) -> None:
    blue = TeamQuota({"h100": limits(2)}, reclaim=reclaim)
    pool = make_pool(blue=blue, red=limits(2))
    jobs = [job("r0", "red", 0, 100, 2), job("r1", "red", 1, 99, 2), job("b", "blue", 5, 10, 2, priority)]
    found = starts(simulate(pool, jobs, restart_s=0))
    assert found["b"] == [at]
    assert found["r0"] == [0]  # red's own
    assert len(found["r1"]) == (2 if at == 5 else 1)


def test_no_job_reclaims_beyond_its_teams_nominal_quota() -> None:
    pool = make_pool(blue=TeamQuota({"h100": limits(2)}, reclaim="Any"), red=limits(2))
    jobs = [job("r", "red", 0, 100, 1), job("r1", "red", 0.5, 100, 3), job("b", "blue", 5, 10, 3)]
    assert starts(simulate(pool, jobs))["b"] == [100.5]


def test_two_teams_that_reclaim_from_each_other_end() -> None:
    """Each team has a small job that reclaims its quota, and a large one that preempts the small one and borrows."""
    both = TeamQuota({"h100": limits(8)}, within="LowerPriority", reclaim="Any")
    jobs = [job("b-base", "blue", 0, 500, 5, 9), job("r-base", "red", 0, 500, 6, 9)]
    jobs += [job("b-large", "blue", 1, 50, 8, 0), job("r-large", "red", 2, 50, 8, 0)]
    jobs += [job("b-small", "blue", 3, 50, 2, -9), job("r-small", "red", 4, 50, 2, -9)]
    outcomes = simulate(make_pool(blue=both, red=both, teal=limits(4)), jobs, restart_s=10)
    assert all(outcome.started for outcome in outcomes)
    preemptions = sum(len(outcome.allocations) - 1 for outcome in outcomes)
    assert 1 <= preemptions < 20


def test_the_first_flavor_with_room_is_used() -> None:
    pool = make_pool(flavors=("h100", "a100"), blue=limits(1, borrow=0), red=limits(1, borrow=0))
    found = simulate(pool, [job(f"b{i}", "blue", i, 10) for i in range(3)])
    assert [(o.allocations[0].flavor, o.allocations[0].start_s) for o in found] == [
        ("h100", 0),
        ("a100", 1),
        ("h100", 10),
    ]
    borrowing = make_pool(flavors=("h100", "a100"), blue=limits(1), red=limits(1))
    found = simulate(borrowing, [job(f"b{i}", "blue", i, 10) for i in range(2)])
    assert [o.allocations[0].flavor for o in found] == ["h100", "h100"]
    own = dict.fromkeys(("h100", "a100"), limits(1))
    patient = make_pool(flavors=("h100", "a100"), blue=TeamQuota(own, borrow_first=False), red=limits(1))
    found = simulate(patient, [job(f"b{i}", "blue", i, 10) for i in range(2)])
    assert [o.allocations[0].flavor for o in found] == ["h100", "a100"]


def test_cores_and_gpus_are_different_flavors() -> None:
    pool = make_pool(flavors=("h100", "cpu"), blue=limits(1))
    jobs = [
        QueuedJob("g", "blue", 0, 10, 1, "gpu"),
        QueuedJob("c", "blue", 0, 10, 0.5, "cpu"),
        QueuedJob("d", "blue", 0, 10, 0.5, "cpu"),
    ]
    found = simulate(pool, jobs)
    assert [o.allocations[0] for o in found] == [
        Allocation(0, 10, "h100"),
        Allocation(0, 10, "cpu"),
        Allocation(0, 10, "cpu"),
    ]


def test_a_job_beyond_every_quota_never_starts_and_blocks_no_other() -> None:
    pool = make_pool(blue=TeamQuota({"h100": limits(2)}, strategy="StrictFIFO"))
    found = simulate(pool, [job("huge", "blue", 0, 10, 3), job("fine", "blue", 1, 10, 2)])
    assert starts(found) == {"huge": [], "fine": [1]}
    with pytest.raises(ValueError, match="never started"):
        _ = found[0].wait_s
    with pytest.raises(ValueError, match="no team 'red'"):
        simulate(pool, [job("r", "red", 0, 1)])


def test_a_running_job_has_its_units_until_it_ends() -> None:
    pool = make_pool(blue=limits(2))
    found = simulate(pool, [job("w", "blue", 100, 10, 2)], running=[(job("r", "blue", 100, 40), "h100")])
    assert starts(found) == {"w": [140]}


@given(
    traces(),
    st.sampled_from(["Never", "LowerPriority", "LowerOrNewerEqualPriority"]),
    st.sampled_from(["Never", "LowerPriority", "Any"]),
)
@settings(max_examples=100, deadline=None)
def test_usage_stays_within_quota_under_every_preemption_policy(
    trace: tuple[Numbers, list[QueuedJob]], within: Any, reclaim: Any
) -> None:
    """Usage never exceeds the quota, every job runs for its whole duration, and all units are returned."""
    given_teams, jobs = trace
    teams: dict[str, Any] = {}
    for name, numbers in given_teams.items():
        teams[name] = TeamQuota({"h100": limits(*numbers)}, within=within, reclaim=reclaim)
    pool = make_pool(**teams)
    outcomes = simulate(pool, jobs, restart_s=2)
    for outcome in outcomes:
        preempted = len(outcome.allocations) - 1
        lost_s = sum(min(2.0, allocation.end_s - allocation.start_s) for allocation in outcome.allocations[:-1])
        assert run_s(outcome) == pytest.approx(outcome.queued_job.duration_s + lost_s)
        assert outcome.wait_s >= 0
        assert all(a.end_s <= b.start_s for a, b in zip(outcome.allocations, outcome.allocations[1:], strict=False))
        if within == "Never" and reclaim == "Never":
            assert preempted == 0
    levels = steps(outcomes, "h100")
    assert max(level for _, level in levels) <= float(pool.nominal("h100"))
    assert levels[-1][1] == 0
    for name, (nominal, borrow, _) in given_teams.items():
        mine = steps([o for o in outcomes if o.queued_job.team == name], "h100")
        assert max((level for _, level in mine), default=0) <= nominal + (math.inf if borrow is None else borrow)
