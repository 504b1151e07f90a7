"""What a Workload requests and holds, counted as Kueue counts it; its place in the order of admission."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from ray_jobs.cluster.kinds import Object
from ray_jobs.kueue.objects import by_admission_order, pod_requests, totals, usage
from tests.quota.builders import GPU, make_workload, stamp


def container(requests: dict[str, str], **facts: Any) -> Object:
    return {"resources": {"requests": requests}, **facts}


def test_pod_sets_are_multiplied_by_their_pods() -> None:
    assert totals(make_workload("w", "blue", 2)) == {"cpu": 1 + 2 * 2, "memory": (4 + 2 * 8) * 2**30, GPU: 2}


def test_a_limit_without_a_request_is_the_request() -> None:
    resources = {"requests": {"cpu": "1"}, "limits": {"cpu": "2", GPU: "1"}}
    assert pod_requests({"containers": [{"resources": resources}]}) == {"cpu": 1, GPU: 1}


def test_init_containers_sidecars_and_overhead() -> None:
    sidecar = container({"cpu": "1"}, restartPolicy="Always")
    spec: Object = {
        "initContainers": [container({"cpu": "9"}), sidecar, container({"cpu": "2", "memory": "1Gi"})],
        "containers": [container({"cpu": "3"}), container({"cpu": "4"})],
        "overhead": {"cpu": "500m"},
    }
    assert pod_requests(spec) == {"cpu": Decimal("9.5"), "memory": 2**30}
    del spec["initContainers"][0]
    assert pod_requests(spec)["cpu"] == Decimal("8.5")  # the sidecar runs beside both containers


def test_kueues_own_count_takes_precedence() -> None:
    workload = make_workload("w", "blue", 2)
    workload["status"]["resourceRequests"] = [{"name": "workers", "resources": {GPU: "3", "cpu": "1500m"}}]
    assert totals(workload) == {GPU: 3, "cpu": Decimal("1.5")}


def test_an_admitted_workload_holds_what_its_admission_assigns() -> None:
    workload = make_workload("w", "blue", 3, running=True)
    assert usage(workload) == {("h100", "cpu"): 6, ("h100", "memory"): 24 * 2**30, ("h100", GPU): 3}
    assert totals(workload) == {"cpu": 6, "memory": 24 * 2**30, GPU: 3}
    workload["status"]["conditions"][0]["status"] = "False"  # evicted: the admission is out of date
    assert totals(workload)["cpu"] == 1 + 3 * 2


def test_the_order_of_admission_is_priority_and_then_age() -> None:
    timeout = {
        "type": "Evicted",
        "status": "True",
        "reason": "PodsReadyTimeout",
        "message": "",
        "lastTransitionTime": stamp(1),
    }
    workloads = [
        make_workload("new", "blue", 1, minutes_ago=5),
        make_workload("evicted", "blue", 1, minutes_ago=60, conditions=[timeout]),
        make_workload("preempted", "blue", 1, minutes_ago=50, conditions=[timeout | {"reason": "Preempted"}]),
        make_workload("high", "blue", 1, minutes_ago=1, priority=100),
    ]
    names = [workload["metadata"]["name"] for workload in by_admission_order(workloads)]
    assert names == ["rayjob-high", "rayjob-preempted", "rayjob-new", "rayjob-evicted"]
