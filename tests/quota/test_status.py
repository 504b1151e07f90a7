"""The rows of `kitae quota show`: quota, usage and waiting Workloads."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from ray_jobs.kueue.pool import QuotaLimits
from ray_jobs.kueue.queues import Queues, local_queues
from ray_jobs.quota.status import rows, waiting
from tests.quota.builders import GPU, NOW, make_local, make_queue, make_workload, stamp


def two_teams() -> Queues:
    """Blue has 4 GPUs and uses 6; it borrows 2 of red's 4, of which red uses 2."""
    found = [
        make_queue("blue", {"nominalQuota": "4"}, used=6, borrowed=2),
        make_queue("red", {"nominalQuota": "4"}, used=2),
    ]
    return Queues(found, local=local_queues([make_local("blue"), make_local("red")]))


def test_a_row_has_usage_borrowed_lent_and_waiting_amounts() -> None:
    workloads = [
        make_workload("w1", "red", 3),
        make_workload("w2", "red", 1),
        make_workload("r", "blue", 6, running=True),
    ]
    found = {(row.team, row.quota.flavor, row.quota.resource): row for row in rows(two_teams(), workloads)}
    blue, red = found["blue", "h100", GPU], found["red", "h100", GPU]
    own, other = blue.quota, red.quota
    assert [own.limits, own.used, own.borrowed, own.available] == [QuotaLimits(Decimal(4)), 6, 2, 0]
    assert [other.used, other.borrowed, other.lent, other.available] == [2, 0, 2, 0]
    assert [red.waiting, red.waiting_jobs, blue.waiting_jobs] == [4, 2, 0]
    assert red.counted
    assert not found["red", "h100", "memory"].counted
    assert found["red", "cpu", "cpu"].counted
    assert found["red", "h100", "memory"].quota.limits.nominal == 64 * 2**30
    assert found["red", "h100", "cpu"].waiting == 1 + 6 + 1 + 2


def test_a_waiting_workload_has_its_age_and_reason() -> None:
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
    first, second = waiting(two_teams(), [*workloads, done], now=NOW)
    assert [first.name, first.team, first.flavor, first.asks[GPU]] == ["first", "blue", "h100", 1]
    assert (NOW - first.since, second.priority) == (timedelta(minutes=9), 7)
    assert "insufficient unused quota" in first.reason
    assert (
        second.reason == "preempted: another job goes first; blue uses 6 of 4 h100; 0 can be borrowed (Kueue: no room)"
    )
    assert first.starts_at is None  # no past jobs
