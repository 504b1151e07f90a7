"""What the queues hold, why something waits and when it may start; quantities."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.cluster.client import Object
from ray_jobs.errors import SpecError
from ray_jobs.quota import amounts, queues
from ray_jobs.quota.job_trace import remaining_s
from ray_jobs.quota.pool import Limits
from ray_jobs.quota.status import Waiting, reason, rows, waiting
from tests.quota.builders import GPU, NOW, make_local, make_queue, make_workload, stamp

HOUR = 3600.0


def two_teams(**blue: Any) -> list[Object]:
    """Blue has 4 and uses 6 of them by borrowing from red's 4, of which 2 are in use."""
    return [
        make_queue("blue", {"nominalQuota": "4", **blue}, used=6, borrowed=2),
        make_queue("red", {"nominalQuota": "4"}, used=2),
    ]


LOCALS = [make_local("blue"), make_local("red")]


def test_a_row_says_what_is_used_borrowed_lent_free_and_waited_for() -> None:
    workloads = [
        make_workload("w1", "red", 3),
        make_workload("w2", "red", 1),
        make_workload("r", "blue", 6, running=True),
    ]
    found = {(row.team, row.flavor, row.resource): row for row in rows(two_teams(), workloads, LOCALS)}
    blue, red = found["blue", "h100", GPU], found["red", "h100", GPU]
    assert [blue.limits, blue.used, blue.borrowed, blue.available] == [Limits(Decimal(4)), 6, 2, 0]
    assert [red.used, red.borrowed, red.lent, red.available] == [2, 0, 2, 0]
    assert [red.waiting, red.waiting_jobs, blue.waiting_jobs] == [4, 2, 0]
    assert red.counted
    assert not found["red", "h100", "memory"].counted
    assert found["red", "cpu", "cpu"].counted
    assert found["red", "h100", "memory"].limits.nominal == 64 * 2**30
    assert found["red", "h100", "cpu"].waiting == 1 + 6 + 1 + 2


def test_a_workload_that_waits_says_since_when_and_why() -> None:
    evicted = {
        "type": "Evicted",
        "status": "True",
        "reason": "Preempted",
        "message": "by x",
        "lastTransitionTime": stamp(1),
    }
    workloads = [
        make_workload("second", "blue", 2, minutes_ago=5, conditions=[evicted], says="no room", priority=7),
        make_workload("first", "blue", 1, minutes_ago=9),
        make_workload("runs", "blue", 4, running=True),
    ]
    done = make_workload("done", "blue", 4)
    done["status"]["conditions"].append({"type": "Finished", "status": "True", "lastTransitionTime": stamp(1)})
    first, second = waiting(two_teams(), [*workloads, done], LOCALS, now=NOW)
    assert [first.name, first.team, first.flavor, first.asks[GPU]] == ["first", "blue", "h100", 1]
    assert (NOW - first.since, second.priority) == (timedelta(minutes=9), 7)
    assert "insufficient unused quota" in first.reason
    assert second.reason == "preempted: by x; no room"
    assert first.starts_at is None  # no past jobs to tell it from


def test_reasons_that_are_not_in_the_workloads_conditions() -> None:
    held = make_workload("w", "blue", 1, spec={"active": False})
    silent = make_workload("w", "blue", 1)
    silent["status"] = {}
    queue = two_teams()[0]
    assert reason(held, queue) == "it is held (spec.active: false)"
    assert reason(silent, queue) == "Kueue has not looked at it yet"
    assert reason(silent, None) == "there is no LocalQueue 'kitae' in namespace kitae-blue"
    assert "stopPolicy: Hold" in reason(silent, make_queue("blue", {"nominalQuota": 1}, spec={"stopPolicy": "Hold"}))
    queue["status"]["conditions"] = [{"type": "Active", "status": "False", "message": "flavor h100 is not there"}]
    assert reason(silent, queue) == "the team's ClusterQueue is not active: flavor h100 is not there"


def test_kueues_own_count_of_what_is_asked_for_goes_first() -> None:
    workload = make_workload("w", "blue", 2)
    workload["status"]["resourceRequests"] = [{"name": "workers", "resources": {GPU: "3", "cpu": "1500m"}}]
    (found,) = waiting(two_teams(), [workload], LOCALS, now=NOW)
    assert found.asks == {GPU: 3, "cpu": Decimal("1.5")}


def starts(workloads: list[Object], queue: Object, durations: dict[str, list[float]]) -> dict[str, float | None]:
    """Minutes from now."""
    found: list[Waiting] = waiting([queue], workloads, [make_local("blue")], now=NOW, durations=durations)
    minutes = {w.name: (w.starts_at - NOW).total_seconds() / 60 for w in found if w.starts_at is not None}
    return {w.name: round(minutes[w.name], 3) if w.name in minutes else None for w in found}


def test_what_waits_starts_when_what_runs_is_likely_to_end() -> None:
    queue = make_queue("blue", {"nominalQuota": "4"}, used=4, cohort=None)
    workloads = [
        make_workload("runs-3", "blue", 3, minutes_ago=40, running=True),
        make_workload("runs-1", "blue", 1, minutes_ago=10, running=True),
        make_workload("large", "blue", 4, minutes_ago=9),
        make_workload("small", "blue", 1, minutes_ago=8),
        make_workload("huge", "blue", 5, minutes_ago=7),
    ]
    hour = {"blue": [HOUR] * 3}
    # In 20 minutes three are free: small passes large; at 80 it is done, and large can start.
    assert starts(workloads, queue, hour) == {"large": 80, "small": 20, "huge": None}
    assert starts(workloads, queue, {"": [HOUR]}) == {"large": 80, "small": 20, "huge": None}
    assert starts(workloads, queue, {"red": [HOUR]}) == {"large": None, "small": None, "huge": None}
    workloads[3]["spec"]["active"] = False
    assert starts(workloads, queue, hour) == {"large": 50, "small": None, "huge": None}


def test_priority_goes_first_in_the_estimate_too() -> None:
    queue = make_queue("blue", {"nominalQuota": "1"}, used=1, cohort=None)
    workloads = [
        make_workload("runs", "blue", 1, minutes_ago=30, running=True),
        make_workload("low", "blue", 1, minutes_ago=9),
        make_workload("high", "blue", 1, minutes_ago=8, priority=100),
    ]
    assert starts(workloads, queue, {"blue": [HOUR]}) == {"low": 90, "high": 30}


def test_how_long_a_job_still_runs_is_told_from_those_that_ran_longer() -> None:
    assert remaining_s([], 5) is None
    assert remaining_s([10, 20, 90], 0) == 20
    assert remaining_s([10, 20, 90], 15) == 75
    assert remaining_s([10, 20, 90], 200) == 200


def test_a_pool_is_read_from_the_queues() -> None:
    spec = {
        "queueingStrategy": "StrictFIFO",
        "preemption": {"withinClusterQueue": "LowerPriority", "reclaimWithinCohort": "Any"},
        "flavorFungibility": {"whenCanBorrow": "TryNextFlavor", "whenCanPreempt": "MayStopSearch"},
    }
    quota = {"nominalQuota": "4", "borrowingLimit": "2", "lendingLimit": 1}
    labelled = make_queue("x", {"nominalQuota": "0"})
    labelled["metadata"]["labels"]["kitae.dev/team"] = "green"
    cohort = {
        "metadata": {"name": "kitae"},
        "spec": {"resourceGroups": [{"flavors": [{"name": "h100", "resources": [{"name": GPU, "nominalQuota": 3}]}]}]},
    }
    pool = queues.pool_of([make_queue("blue", quota, spec=spec), labelled], [cohort], {"h100": 3.2})
    blue, green = pool.teams["blue"], pool.teams["green"]
    assert list(blue.limits.items()) == [
        ("cpu", Limits(Decimal(16))),
        ("h100", Limits(Decimal(4), Decimal(2), Decimal(1))),
    ]
    assert (blue.strategy, blue.within, blue.reclaim) == ("StrictFIFO", "LowerPriority", "Any")
    assert (blue.borrow_first, blue.preempt_first) == (False, True)
    assert (green.strategy, green.within, green.reclaim, green.borrow_first) == (
        "BestEffortFIFO",
        "Never",
        "Never",
        True,
    )
    assert green.limits["h100"].nominal == 0  # it may borrow
    assert pool.kinds == {"cpu": "cpu", "h100": "gpu"}
    assert pool.shared == {("kitae", "h100"): 3}
    assert [pool.nominal("h100"), pool.most("blue", "h100"), pool.most("green", "h100")] == [7, 6, 4]


@pytest.mark.parametrize(
    ("quantity", "amount"),
    [
        ("8", 8),
        (8, 8),
        ("500m", "0.5"),
        ("16Gi", 2**34),
        ("16393244Ki", 16393244 * 2**10),
        ("2k", 2000),
        ("1e3", 1000),
        ("1.5", "1.5"),
        ("0", 0),
        ("3E", 3 * 10**18),
    ],
)
def test_quantities_are_kubernetes(quantity: str | int, amount: Any) -> None:
    assert amounts.parse(quantity) == Decimal(amount)


@pytest.mark.parametrize("quantity", ["", "many", "1Gb", "NaN", "inf", "m"])
def test_what_is_no_quantity_is_refused_with_an_example(quantity: str) -> None:
    with pytest.raises(SpecError, match="500m"):
        amounts.parse(quantity)


@given(st.decimals(0, 10**15, places=3) | st.integers(0, 2**50).map(Decimal))
def test_an_amount_is_spelled_so_that_it_is_read_back(amount: Decimal) -> None:
    assert amounts.parse(amounts.text(amount)) == amount
    assert amounts.text(Decimal(2**34)) == "16Gi"
    assert amounts.text(Decimal("0.5")) == "500m"
