"""A job's events and `kitae quota show` give the same reason and the same start for a waiting job."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from ray_jobs.cluster.kinds import CLUSTER_QUEUE, COHORT, LOCAL_QUEUE, WORKLOAD, Object
from ray_jobs.kueue.queues import Queues, local_queues
from ray_jobs.launch.runner_state import roughly
from ray_jobs.quota import status
from tests.launch.two_teams import NEEDS, Place, two_teams

RED = replace(NEEDS, team="red")


def answers(place: Place) -> dict[str, str]:
    """The message of each waiting runner, after comparing it with `quota show`."""
    objects, now = place.server.objects, datetime.fromtimestamp(place.now_s, UTC)
    queues = Queues(objects.list(CLUSTER_QUEUE), objects.list(COHORT), local_queues(objects.list(LOCAL_QUEUE)))
    runners = place.launcher.runners("ftjob-")
    messages = {}
    for entry in status.waiting(queues, objects.list(WORKLOAD), now=now):
        start = "" if entry.starts_at is None else f"; about {roughly((entry.starts_at - now).total_seconds())}"
        messages[entry.name] = runners[entry.name].message
        assert messages[entry.name] == f"waiting: {entry.reason.partition(' (Kueue: ')[0]}{start}"
    return messages


def ran_for_an_hour(place: Place) -> None:
    place.launch("ftjob-past-1")
    place.start("ftjob-past-1")
    place.now_s += 3600
    place.kueue.finish("ftjob-past-1", "kitae-blue")


def test_a_team_waits_for_quota_that_another_team_borrows() -> None:
    with two_teams() as place:
        ran_for_an_hour(place)
        place.launch("ftjob-red-1", replace(RED, workers=12))
        place.start("ftjob-red-1", "kitae-red")
        place.now_s += 1200
        place.launch("ftjob-blue-1", replace(NEEDS, workers=6))
        place.kueue.reconcile()
        assert answers(place) == {
            "ftjob-blue-1": "waiting: blue uses 0 of 8 h100; 4 are lent to others; about 40 min",
        }


def test_a_small_job_passes_a_large_one_and_a_high_priority_passes_both() -> None:
    with two_teams(cohort=None) as place:
        ran_for_an_hour(place)
        for name, workers in (("a", 3), ("b", 5)):
            place.launch(f"ftjob-{name}-1", replace(NEEDS, workers=workers))
            place.start(f"ftjob-{name}-1")
            place.now_s += 1200
        for name, workers, priority in (("large", 8, 0), ("small", 3, 0), ("high", 3, 100)):
            place.launch(f"ftjob-{name}-1", replace(NEEDS, workers=workers, priority=priority))
        place.kueue.reconcile()
        waits = "waiting: blue uses 8 of 8 h100; about "
        # `a` ends in 20 min, `b` in 40; `high` runs until 80, `small` until 100.
        assert answers(place) == {
            "ftjob-high-1": f"{waits}20 min",
            "ftjob-small-1": f"{waits}40 min",
            "ftjob-large-1": f"{waits}2 h",
        }


def test_a_cohorts_own_quota_can_be_borrowed() -> None:
    with two_teams(lending=0) as place:
        resources = [{"name": "nvidia.com/gpu", "nominalQuota": 4}]
        group = {"coveredResources": ["nvidia.com/gpu"], "flavors": [{"name": "h100", "resources": resources}]}
        cohort: Object = {
            "apiVersion": COHORT.api_version,
            "kind": "Cohort",
            "metadata": {"name": "kitae"},
            "spec": {"resourceGroups": [group]},
        }
        place.server.objects.create(COHORT, cohort)
        place.launch("ftjob-a-1", replace(NEEDS, workers=6))
        place.start("ftjob-a-1")
        place.launch("ftjob-b-1", replace(NEEDS, workers=5))
        place.kueue.reconcile()  # the fake knows no quota of a cohort
        assert answers(place) == {"ftjob-b-1": "waiting: blue uses 6 of 8 h100; 4 can be borrowed"}


def test_a_stopped_queue_is_the_reason() -> None:
    with two_teams() as place:
        place.launch("ftjob-a-1", replace(NEEDS, workers=17))
        place.server.objects.patch(CLUSTER_QUEUE, "kitae-blue", {"spec": {"stopPolicy": "Hold"}})
        place.kueue.reconcile()
        assert answers(place) == {"ftjob-a-1": "waiting: the team's ClusterQueue is stopped (stopPolicy: Hold)"}
