"""The state and the message of a runner, from its RayJob, Workload, pods and queues."""

from __future__ import annotations

from typing import Any

import pytest

from ray_jobs.cluster.kinds import Object
from ray_jobs.kueue.objects import seconds_of
from ray_jobs.kueue.waiting import EVICTIONS
from ray_jobs.launch import runner_state
from ray_jobs.launch.launcher import RunnerState
from ray_jobs.launch.runner_state import roughly, runner_of

AT = "2026-11-24T12:00:00Z"
AT_S = seconds_of(AT)


def rayjob_of(phase: str = "", **status: Any) -> Object:
    return {
        "metadata": {"name": "ftjob-a-1", "labels": {"kitae.dev/team": "blue"}},
        "status": {"jobDeploymentStatus": phase, **status},
    }


def workload_of(*conditions: tuple[str, str, str, str], **facts: Any) -> Object:
    """A Workload with conditions: (type, status, reason, message)."""
    found = [
        {"type": name, "status": status, "reason": reason, "message": message, "lastTransitionTime": AT}
        for name, status, reason, message in conditions
    ]
    requests = {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    template = {"spec": {"containers": [{"resources": {"requests": requests}}]}}
    spec = {"podSets": [{"name": "workers", "count": 2, "template": template}], **facts.pop("spec", {})}
    return {"metadata": {"namespace": "kitae-blue"}, "spec": spec, "status": {"conditions": found, **facts}}


ADMITTED = ("Admitted", "True", "Admitted", "")
PENDING = ("QuotaReserved", "False", "Pending", "couldn't assign flavors to pod set workers")
EVICTED = ("Evicted", "True", "Preempted", "Preempted to accommodate a workload")


@pytest.mark.parametrize(
    ("phase", "status", "workload", "state", "message"),
    [
        ("", {}, None, "pending", "waiting: Kueue has not processed it yet"),
        ("Suspended", {}, workload_of(PENDING), "pending", "waiting: couldn't assign flavors to pod set workers"),
        ("", {}, workload_of(ADMITTED), "pending", "starting"),
        ("Initializing", {}, workload_of(ADMITTED), "pending", "starting"),
        ("Retrying", {"failed": 2}, workload_of(ADMITTED), "pending", "starting again after 2 failed start(s)"),
        ("Running", {"jobStatus": "PENDING"}, workload_of(ADMITTED), "pending", ""),
        ("Running", {"jobStatus": "RUNNING"}, workload_of(ADMITTED), "running", ""),
        ("Running", {"jobStatus": "RUNNING"}, None, "running", ""),
        ("Suspending", {}, workload_of(EVICTED), "pending", "preempted: another job goes first; waiting"),
        ("Complete", {"jobStatus": "SUCCEEDED"}, workload_of(ADMITTED), "ended", "Complete"),
        ("Failed", {"reason": "AppFailed", "message": "exit 1"}, None, "ended", "AppFailed: exit 1"),
        ("ANewPhase", {}, workload_of(ADMITTED), "pending", "starting"),
    ],
)
def test_the_state_and_message_of_a_runner(
    phase: str, status: dict[str, Any], workload: Object | None, state: RunnerState, message: str
) -> None:
    found = runner_of(rayjob_of(phase, **status), workload, now_s=AT_S)
    assert (found.state, found.message) == (state, message)
    assert not found.hopeless
    assert (found.interrupted_at == AT_S) == (workload is not None and "Evicted" in str(workload))


@pytest.mark.parametrize("reason", sorted(EVICTIONS))
def test_every_reason_of_an_eviction_has_a_message(reason: str) -> None:
    workload = workload_of(("Evicted", "True", reason, ""), PENDING)
    message = runner_of(rayjob_of("Suspended"), workload, now_s=AT_S).message
    assert message.startswith(f"{EVICTIONS[reason]}; waiting")
    unknown = runner_of(rayjob_of("Suspended"), workload_of(("Evicted", "True", "Moon", "")), now_s=AT_S)
    assert unknown.message == "stopped by Kueue (Moon); waiting"


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        (workload_of(("QuotaReserved", "False", "Inadmissible", "ClusterQueue kitae-blue is inactive")), "is inactive"),
        (workload_of(PENDING, spec={"active": False}), "its Workload is deactivated"),
        (
            workload_of(
                ("QuotaReserved", "True", "QuotaReserved", ""),
                admissionChecks=[{"name": "nodes", "state": "Pending", "message": "no machines yet"}],
            ),
            "has its quota, and waits for nodes: no machines yet",
        ),
    ],
)
def test_reasons_other_than_quota(workload: Object, words: str) -> None:
    assert words in runner_of(rayjob_of("Suspended"), workload, now_s=AT_S).message


@pytest.mark.parametrize(
    ("container", "pod", "words"),
    [
        ({"waiting": {"reason": "ErrImagePull", "message": "not found"}}, {}, "the image i cannot be pulled"),
        ({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}}, {}, 'secret "s"'),
        ({"running": {}}, {"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}, "no node has room"),
    ],
)
def test_why_an_admitted_runner_does_not_start(container: Object, pod: Object, words: str) -> None:
    status: Object = {"containerStatuses": [{"image": "i", "state": container}], "conditions": [pod] if pod else []}
    pods = [{"metadata": {"creationTimestamp": AT}, "status": status}]
    late = AT_S + runner_state.IMAGE_PATIENCE_S
    for now_s in (AT_S, late):
        found = runner_of(rayjob_of("Initializing"), workload_of(ADMITTED), pods, now_s=now_s)
        assert words in found.message
        assert found.message.startswith("cannot start: ")
        assert found.hopeless == (now_s == late and "PodScheduled" not in str(pod))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(10, "5 min"), (600, "10 min"), (2400, "40 min"), (5400, "90 min"), (7200, "2 h"), (200_000, "2 days")],
)
def test_an_estimate_is_rounded_coarsely(seconds: float, words: str) -> None:
    assert roughly(seconds) == words
