"""ClusterQueues, LocalQueues and Cohorts, read as a pool."""

from __future__ import annotations

from decimal import Decimal

from ray_jobs.kueue import queues
from ray_jobs.kueue.pool import CohortUsage, QuotaLimits
from tests.quota.builders import GPU, make_queue


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
        ("cpu", QuotaLimits(Decimal(16))),
        ("h100", QuotaLimits(Decimal(4), Decimal(2), Decimal(1))),
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
    assert pool.nominal("h100") == 7
    limits = {team: own.limits["h100"] for team, own in pool.teams.items()}
    usage = CohortUsage(limits, in_cohort=True, shared=Decimal(3))
    assert [usage.most("blue"), usage.most("green")] == [6000, 4000]
