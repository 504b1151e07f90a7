"""When waiting Workloads are likely to start."""

from __future__ import annotations

import pytest

from ray_jobs.cluster.kinds import Object
from ray_jobs.kueue.queues import Queues, local_queues
from ray_jobs.kueue.start_estimate import Durations, estimate_starts, remaining_s
from tests.quota.builders import NOW, make_finished, make_local, make_queue, make_workload

HOUR = 3600.0
BLUE_HOUR: Durations = {"blue": [HOUR] * 3}


def starts(
    workloads: list[Object], *queues: Object, older: Durations | None = None, cohorts: list[Object] | None = None
) -> dict[str, float]:
    """Minutes from now, by runner."""
    locals_ = [make_local(team) for team in ("blue", "red")]
    found = Queues(queues, cohorts or [], local_queues(locals_))
    estimates = estimate_starts(workloads, found, now_s=NOW.timestamp(), older=older)
    return {
        name.removeprefix("rayjob-"): round((start_s - NOW.timestamp()) / 60, 3)
        for (_, name), start_s in estimates.items()
    }


def blue(nominal: int, used: int, **facts: object) -> Object:
    return make_queue("blue", {"nominalQuota": str(nominal)}, used=used, **({"cohort": None} | facts))  # type: ignore[arg-type]  # facts of a queue


def test_waiting_workloads_start_when_running_ones_are_likely_to_end() -> None:
    workloads = [
        make_workload("runs-3", "blue", 3, minutes_ago=40, running=True),
        make_workload("runs-1", "blue", 1, minutes_ago=10, running=True),
        make_workload("large", "blue", 4, minutes_ago=9),
        make_workload("small", "blue", 1, minutes_ago=8),
        make_workload("huge", "blue", 5, minutes_ago=7),
    ]
    # Three GPUs are free after 20 minutes: small starts before large, which starts when small ends.
    assert starts(workloads, blue(4, 4), older=BLUE_HOUR) == {"large": 80, "small": 20}
    assert starts(workloads, blue(4, 4), older={"": [HOUR]}) == {"large": 80, "small": 20}
    assert starts(workloads, blue(4, 4), older={"red": [HOUR]}) == {}
    workloads[3]["spec"]["active"] = False
    assert starts(workloads, blue(4, 4), older=BLUE_HOUR) == {"large": 50}


def test_the_strict_queue_keeps_its_order() -> None:
    workloads = [
        make_workload("runs", "blue", 3, minutes_ago=40, running=True),
        make_workload("large", "blue", 4, minutes_ago=9),
        make_workload("small", "blue", 1, minutes_ago=8),
    ]
    strict = blue(4, 3, spec={"queueingStrategy": "StrictFIFO"})
    assert starts(workloads, strict, older=BLUE_HOUR) == {"large": 20, "small": 80}
    assert starts(workloads, blue(4, 3), older=BLUE_HOUR) == {"large": 60, "small": 0}


def test_a_higher_priority_starts_first_even_if_it_is_newer() -> None:
    low = make_workload("low", "blue", 1, minutes_ago=9)
    high = make_workload("high", "blue", 1, minutes_ago=8, priority=100)
    runs = make_workload("runs", "blue", 1, minutes_ago=30, running=True)
    assert starts([runs, low, high], blue(1, 1), older=BLUE_HOUR) == {"low": 90, "high": 30}
    assert starts([low, high], blue(1, 0), older=BLUE_HOUR) == {"low": 60, "high": 0}


def test_a_running_workload_is_preempted_only_by_a_higher_priority() -> None:
    preempting = blue(1, 1, spec={"preemption": {"withinClusterQueue": "LowerPriority"}})
    runs = make_workload("runs", "blue", 1, minutes_ago=30, running=True, priority=50)
    assert starts([runs, make_workload("w", "blue", 1, priority=10)], preempting, older=BLUE_HOUR) == {"w": 30}
    assert starts([runs, make_workload("w", "blue", 1, priority=90)], preempting, older=BLUE_HOUR) == {"w": 0}


def test_borrowed_quota_returns_when_the_other_teams_job_ends() -> None:
    red = make_queue("red", {"nominalQuota": "4"}, used=6, borrowed=2)
    workloads = [
        make_workload("borrows", "red", 6, minutes_ago=45, running=True),
        make_workload("waits", "blue", 3),
    ]
    both = (blue(4, 0, cohort="kitae"), red)
    assert starts(workloads, *both, older={"": [HOUR]}) == {"waits": 15}


@pytest.mark.parametrize(("lending", "expected"), [(None, {"large": 0}), ("1", {})])
def test_a_lending_limit_keeps_a_large_job_out(lending: str | None, expected: dict[str, float]) -> None:
    limits = {"nominalQuota": "4"} | ({} if lending is None else {"lendingLimit": lending})
    workloads = [make_workload("large", "blue", 6)]
    both = (blue(4, 0, cohort="kitae"), make_queue("red", limits))
    assert starts(workloads, *both, older=BLUE_HOUR) == expected


def test_the_cohorts_own_quota_can_be_borrowed() -> None:
    resources = [{"name": "nvidia.com/gpu", "nominalQuota": "2"}]
    group = {"coveredResources": ["nvidia.com/gpu"], "flavors": [{"name": "h100", "resources": resources}]}
    cohort: Object = {"metadata": {"name": "kitae"}, "spec": {"resourceGroups": [group]}}
    workloads = [make_workload("w", "blue", 6)]
    assert starts(workloads, blue(4, 0, cohort="kitae"), older=BLUE_HOUR) == {}
    assert starts(workloads, blue(4, 0, cohort="kitae"), older=BLUE_HOUR, cohorts=[cohort]) == {"w": 0}


def test_a_second_flavor_is_used_when_the_first_is_full() -> None:
    queue = blue(1, 1)
    (group,) = queue["spec"]["resourceGroups"]
    group["flavors"].append({**group["flavors"][1], "name": "a100"})
    runs = make_workload("runs", "blue", 1, minutes_ago=10, running=True)
    waits = [make_workload("first", "blue", 1, minutes_ago=9), make_workload("second", "blue", 1, minutes_ago=8)]
    assert starts([runs, *waits], queue, older=BLUE_HOUR) == {"first": 0, "second": 50}
    both = make_workload("both", "blue", 2)  # two GPUs of one flavor do not exist
    assert starts([both], queue, older=BLUE_HOUR) == {}


def test_finished_workloads_in_the_cluster_take_precedence_over_older_jobs() -> None:
    runs = make_workload("runs", "blue", 4, minutes_ago=10, running=True)
    waits = make_workload("waits", "blue", 4)
    done = make_finished("done", "blue", 4, began_minutes_ago=90, ended_minutes_ago=60)
    assert starts([runs, waits, done], blue(4, 4)) == {"waits": 20}
    assert starts([runs, waits, done], blue(4, 4), older=BLUE_HOUR) == {"waits": 20}
    assert starts([runs, waits], blue(4, 4), older=BLUE_HOUR) == {"waits": 50}


def test_remaining_time_is_based_on_jobs_that_ran_longer() -> None:
    assert remaining_s([], 5) is None
    assert remaining_s([10, 20, 90], 0) == 20
    assert remaining_s([10, 20, 90], 15) == 75
    assert remaining_s([10, 20, 90], 200) == 200
