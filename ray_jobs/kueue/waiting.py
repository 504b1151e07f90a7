"""Why a Workload is not admitted, in the words of a job's events and of `kitae quota show`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_jobs.cluster.kinds import Object
from ray_jobs.kueue.capacity import scarce_quotas, usage_text
from ray_jobs.kueue.objects import condition, is_active, is_true, queue_key, totals
from ray_jobs.kueue.queues import Queues, team_of

EVICTIONS: Mapping[str, str] = {
    "Preempted": "preempted: another job goes first",
    "PodsReadyTimeout": "stopped: its pods were not ready in time",
    "AdmissionCheck": "stopped: an admission check no longer holds",
    "ClusterQueueStopped": "stopped: its ClusterQueue is stopped",
    "LocalQueueStopped": "stopped: its LocalQueue is stopped",
    "NodeFailures": "stopped: its nodes failed",
    "Deactivated": "stopped: its Workload was deactivated",
}
"""By the reason of the condition `Evicted`."""
NOT_PROCESSED = "Kueue has not processed it yet"


@dataclass(frozen=True)
class WaitingReason:
    """Why a Workload waits."""

    cause: str
    """What it waits for. Empty: unknown."""
    eviction: str = ""
    """Why it lost its quota. Empty: it had none before."""
    kueue_message: str = ""
    """Kueue's own message, where `cause` says it in other words."""

    @property
    def text(self) -> str:
        return "; ".join(part for part in (self.eviction, self.cause) if part)


def waiting_reason(workload: Object, queues: Queues) -> WaitingReason:
    """The reason of a Workload that is not admitted. Without any queues Kueue's message is the cause."""
    eviction = ""
    if is_true(workload, "Evicted"):
        reason = str((condition(workload, "Evicted") or {}).get("reason", "evicted"))
        eviction = EVICTIONS.get(reason, f"stopped by Kueue ({reason})")
    cause, message = _cause(workload, queues)
    if again := ((workload.get("status") or {}).get("requeueState") or {}).get("requeueAt"):
        cause = "; ".join(part for part in (f"retried at {again}", cause) if part)
    return WaitingReason(cause if cause or eviction else NOT_PROCESSED, eviction, message)


def _cause(workload: Object, queues: Queues) -> tuple[str, str]:
    """(cause, Kueue's message if the cause does not repeat it)."""
    if not is_active(workload):
        return "its Workload is deactivated (spec.active: false); an administrator has to activate it", ""
    has_quota = is_true(workload, "QuotaReserved")
    reserved = condition(workload, "QuotaReserved") or {}
    # Kueue takes the quota away after the pods are ordered to end; until then the condition is of the old admission.
    message = "" if has_quota else str(reserved.get("message") or "")
    queue = queues.of(workload)
    if "doesn't exist" in message or (queues.local and queue_key(workload) not in queues.local):
        namespace, name = queue_key(workload)
        known = ", ".join(f"{queue} in {place}" for place, queue in queues.local) or "none"
        why = message or f"LocalQueue {name} doesn't exist in namespace {namespace}"
        return f"not admitted: {why}; the queues of this cluster's teams: {known}", ""
    if queue is not None:
        policy = (queue.get("spec") or {}).get("stopPolicy", "None")
        active = condition(queue, "Active") or {}
        if policy != "None":
            return f"the team's ClusterQueue is stopped (stopPolicy: {policy})", message
        if active.get("status") == "False":
            return f"the team's ClusterQueue is not active: {active.get('message', '')}", message
    if "inactive" in message or "Inadmissible" in str(reserved.get("reason")):
        return f"not admitted: {message}", ""
    checks = [
        f"{check['name']}: {check.get('message') or check['state']}"
        for check in (workload.get("status") or {}).get("admissionChecks") or []
        if check["state"] != "Ready"
    ]
    if has_quota:
        return (f"has its quota, and waits for {'; '.join(checks)}" if checks else ""), ""
    if not message or queue is None:
        return message, ""
    scarce = scarce_quotas(totals(workload), queues.quotas[queue["metadata"]["name"]], queues.counted)
    return (usage_text(team_of(queue), scarce), message) if scarce else (message, "")
