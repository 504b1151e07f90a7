"""Why a Workload is not admitted."""

from __future__ import annotations

from typing import Any

import pytest

from ray_jobs.cluster.kinds import Object
from ray_jobs.kueue.queues import NO_QUEUES, Queues, local_queues
from ray_jobs.kueue.waiting import EVICTIONS, waiting_reason
from tests.quota.builders import make_local, make_queue, make_workload, stamp

NO_ROOM = "couldn't assign flavors to pod set workers: insufficient unused quota for nvidia.com/gpu in h100"


def queues(**facts: Any) -> Queues:
    found = make_queue("blue", {"nominalQuota": "4"}, used=4, **facts)
    return Queues([found], local=local_queues([make_local("blue")]))


def evicted(reason: str) -> Object:
    return {"type": "Evicted", "status": "True", "reason": reason, "message": "m", "lastTransitionTime": stamp(1)}


def test_numbers_with_kueues_message_beside_them() -> None:
    reason = waiting_reason(make_workload("w", "blue", 1), queues())
    assert (reason.text, reason.kueue_message) == ("blue uses 4 of 4 h100", NO_ROOM)
    alone = waiting_reason(make_workload("w", "blue", 1), NO_QUEUES)
    assert (alone.text, alone.kueue_message) == (NO_ROOM, "")


def test_a_cpu_job_waits_for_cpus() -> None:
    assert waiting_reason(make_workload("w", "blue", 0), queues()).text == "blue uses 0 of 16 CPUs"


def test_kueue_has_not_processed_it() -> None:
    workload = make_workload("w", "blue", 1)
    workload["status"] = {}
    assert waiting_reason(workload, queues()).text == "Kueue has not processed it yet"


def test_an_inactive_workload() -> None:
    held = make_workload("w", "blue", 1, spec={"active": False})
    assert "deactivated (spec.active: false)" in waiting_reason(held, queues()).text


def test_a_local_queue_that_does_not_exist() -> None:
    reason = waiting_reason(make_workload("w", "red", 1), queues())
    assert "the queues of this cluster's teams: kitae in kitae-blue" in reason.text
    silent = make_workload("w", "red", 1, says="")
    assert "LocalQueue kitae doesn't exist in namespace kitae-red" in waiting_reason(silent, queues()).text


def test_a_stopped_and_an_inactive_queue() -> None:
    workload = make_workload("w", "blue", 1)
    assert "stopPolicy: Hold" in waiting_reason(workload, queues(spec={"stopPolicy": "Hold"})).text
    found = queues()
    inactive = {"type": "Active", "status": "False", "message": "flavor h100 does not exist"}
    found.cluster_queues[0]["status"]["conditions"] = [inactive]
    assert waiting_reason(workload, found).text == "the team's ClusterQueue is not active: flavor h100 does not exist"


@pytest.mark.parametrize("reason", [*EVICTIONS, "Moon"])
def test_an_eviction_comes_first(reason: str) -> None:
    workload = make_workload("w", "blue", 1, conditions=[evicted(reason)])
    found = waiting_reason(workload, queues())
    assert found.eviction == EVICTIONS.get(reason, "stopped by Kueue (Moon)")
    assert found.text == f"{found.eviction}; blue uses 4 of 4 h100"


def test_a_retry_and_an_admission_check() -> None:
    workload = make_workload("w", "blue", 1)
    workload["status"]["requeueState"] = {"requeueAt": stamp(-5)}
    assert waiting_reason(workload, queues()).text == f"retried at {stamp(-5)}; blue uses 4 of 4 h100"
    checked = make_workload("w", "blue", 1, running=True)
    checked["status"]["admissionChecks"] = [{"name": "nodes", "state": "Pending", "message": "no machines yet"}]
    assert waiting_reason(checked, queues()).text == "has its quota, and waits for nodes: no machines yet"
