"""RayJob, Workload and ClusterQueues → what a launcher says of a runner, in words for whoever waits. Pure.

KubeRay tells what became of the job, Kueue whether and why it waits. Statuses of either may be missing or a moment old.
What neither knows of, such as a phase of a newer version, is a runner that is there and has not begun.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.cluster.kinds import RUNNER_LABEL, TEAM_LABEL
from ray_jobs.cluster.quantities import parse
from ray_jobs.cluster.settings import ClusterSettings
from ray_jobs.kueue.capacity import PodSets, Quota, lacking, use_of
from ray_jobs.kueue.objects import Object, condition, is_true, time_of
from ray_jobs.launch.launcher import Runner

IMAGE_PATIENCE_S = 900.0
"""A pod that cannot get its image has so long before its runner is given up: registries have bad minutes."""
_STARTING = ("Initializing", "Waiting", "Retrying", "New", "")
_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_POD_REASONS = (*_IMAGE_REASONS, "CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_HOPELESS_ENDS = {
    "DeadlineExceeded": "it took longer than the platform's scheduling.deadline_s",
    "ValidationFailed": "KubeRay refuses it",
}


@dataclass(frozen=True)
class View:
    """What is seen of one runner."""

    rayjob: Object
    workload: Object | None = None
    """None: Kueue has not made one yet, or is not there."""
    pods: Sequence[Object] = ()
    """Of a runner that is starting; they tell why it does not."""
    quotas: Sequence[Quota] = ()
    """Of its team's queue."""
    start_in_s: float | None = None
    """Until it starts, by guess. None: nothing to tell it from."""
    now_s: float = 0.0


def runner_of(view: View, settings: ClusterSettings) -> Runner:
    """What to say of a runner."""
    status = view.rayjob.get("status") or {}
    phase, said = str(status.get("jobDeploymentStatus", "")), str(status.get("message") or "")
    interrupted_at = _interrupted_at(view.workload)
    if phase in ("Complete", "Failed", "ValidationFailed"):
        reason = "ValidationFailed" if phase == "ValidationFailed" else str(status.get("reason") or "")
        why = _HOPELESS_ENDS.get(reason)
        message = ": ".join(part for part in (why or reason, said) if part)
        return Runner("ended", message[:500] or phase, interrupted_at, hopeless=why is not None)
    if "deletionTimestamp" in view.rayjob["metadata"]:
        # Its pods may be there still; once they are not, nobody knows it any more.
        return Runner("running", "being stopped", interrupted_at)
    if phase == "Running":
        state = "pending" if status.get("jobStatus") in ("", None, "PENDING") else "running"
        return Runner(state, "", interrupted_at)  # type: ignore[arg-type]  # one of two words
    if phase == "Suspending" or not _is_admitted(view.workload) or phase == "Suspended":
        return Runner("pending", waiting(view, settings), interrupted_at)
    trouble, since_s = _pod_trouble(view.pods)
    if trouble:
        hopeless = since_s is not None and view.now_s - since_s >= IMAGE_PATIENCE_S
        return Runner("pending", f"cannot start: {trouble}", interrupted_at, hopeless)
    again = int(status.get("failed") or 0)
    message = f"starting again after {again} failed start(s)" if again and phase in _STARTING else "starting"
    return Runner("pending", message, interrupted_at)


def waiting(view: View, settings: ClusterSettings) -> str:
    """Why a runner is not admitted, and for how long: `waiting: blue uses 8 of 8 h100; 2 can be borrowed; about 40
    min`."""
    team = str(view.rayjob["metadata"].get("labels", {}).get(TEAM_LABEL, ""))
    if view.workload is None:
        return "waiting: Kueue has not looked at it yet"
    evicted, reserved = condition(view.workload, "Evicted"), condition(view.workload, "QuotaReserved")
    begins = "waiting"
    if evicted is not None and evicted["status"] == "True":
        begins = _EVICTIONS.get(evicted["reason"], f"stopped by Kueue ({evicted['reason']})") + "; waiting"
    has_quota = reserved is not None and reserved["status"] == "True"
    # Kueue takes the quota away once the pods are ordered to end; until then the condition tells of the old admission.
    said = "" if has_quota else str((reserved or {}).get("message") or "")
    if not (view.workload.get("spec") or {}).get("active", True):
        return f"{begins}: its Workload is deactivated; an administrator has to activate it"
    if "doesn't exist" in said or "inactive" in said or "Inadmissible" in str((reserved or {}).get("reason")):
        known = f"; the queues of this cluster's teams: {_queues(settings)}" if "doesn't exist" in said else ""
        return f"{begins}: not admitted: {said}{known}"
    rejected = [
        f"{check['name']}: {check.get('message') or check['state']}"
        for check in (view.workload.get("status") or {}).get("admissionChecks") or []
        if check["state"] != "Ready"
    ]
    if has_quota and rejected:
        return f"{begins}: has its quota, and waits for {'; '.join(rejected)}"
    scarce = lacking(_pod_sets(view.workload), view.quotas, settings.flavors)
    reason = use_of(team, scarce) if scarce else said
    left = "" if view.start_in_s is None else f"; about {roughly(view.start_in_s)}"
    return f"{begins}: {reason}{left}" if reason else f"{begins}{left}"


_EVICTIONS: Mapping[str, str] = {
    "Preempted": "preempted: another job goes first",
    "PodsReadyTimeout": "stopped: its pods were not ready in time",
    "AdmissionCheck": "stopped: an admission check no longer holds",
    "ClusterQueueStopped": "stopped: its ClusterQueue is stopped",
    "LocalQueueStopped": "stopped: its LocalQueue is stopped",
    "NodeFailures": "stopped: its nodes failed",
    "Deactivated": "stopped: its Workload was deactivated",
}


def roughly(seconds: float) -> str:
    """A guess, no more exact than it is: `5 min`, `40 min`, `3 h`, `2 days`."""
    minutes = max(1.0, seconds / 60)
    if minutes <= 90:
        step = 5 if minutes <= 30 else 10
        return f"{max(step, round(minutes / step) * step)} min"
    hours = minutes / 60
    return f"{round(hours)} h" if hours <= 36 else f"{round(hours / 24)} days"


@dataclass(frozen=True)
class Running:
    """A workload that holds quota, for a guess of when it gives it back."""

    since_s: float
    holds: Mapping[str, float] = field(default_factory=dict)
    """By resource."""


def start_in_s(
    ahead: Sequence[Mapping[str, float]],
    asks: Mapping[str, float],
    running: Sequence[Running],
    free: Mapping[str, float],
    typical_s: float | None,
    now_s: float,
) -> float | None:
    """When a workload starts if everything takes as long as it usually does. Pure.

    `ahead`: what those ask for that go first. `free`: what nobody holds. `typical_s` None: nothing has ended yet that
    could tell. What runs longer than usual is taken to be half done.
    """
    if typical_s is None:
        return None
    resources = [name for name, amount in asks.items() if amount > 0 and name in free]
    ends = [(max(one.since_s + typical_s - now_s, 0.0) or typical_s / 2, one.holds) for one in running]
    left, at_s = dict(free), 0.0
    for wanted in [*ahead, asks]:
        while any(wanted.get(name, 0.0) > left.get(name, 0.0) for name in resources):
            if not ends:
                return None
            ends.sort(key=lambda end: end[0])
            at_s, holds = ends.pop(0)
            left = {name: left.get(name, 0.0) + holds.get(name, 0.0) for name in left}
        left = {name: amount - wanted.get(name, 0.0) for name, amount in left.items()}
        ends.append((at_s + typical_s, wanted))
    return at_s


def runner_id(found: Object) -> str | None:
    """Whose object it is. None: none of ours."""
    label = (found["metadata"].get("labels") or {}).get(RUNNER_LABEL)
    return None if label is None else str(label)


def admitted_at(workload: Object) -> float | None:
    """Unix seconds. None: it is not admitted."""
    return _true_since(workload, "Admitted")


def finished_at(workload: Object) -> float | None:
    """Unix seconds. None: it has not finished."""
    return _true_since(workload, "Finished")


def ended_at(rayjob: Object) -> float | None:
    """Unix seconds. None: it has not ended for good, or KubeRay does not say when."""
    status = rayjob.get("status") or {}
    over = status.get("jobDeploymentStatus") in ("Complete", "Failed")
    return seconds(status["endTime"]) if over and status.get("endTime") else None


def holds(workload: Object) -> dict[str, float]:
    """What a workload asks for, by resource."""
    total: dict[str, float] = {}
    for _, count, each in _pod_sets(workload):
        for name, amount in each.items():
            total[name] = total.get(name, 0.0) + count * float(amount)
    return total


def seconds(text: str) -> float:
    """Unix seconds of a time as Kubernetes writes it."""
    return time_of(text).timestamp()


def _true_since(workload: Object, name: str) -> float | None:
    found = condition(workload, name)
    return seconds(found["lastTransitionTime"]) if found is not None and found["status"] == "True" else None


def _is_admitted(workload: Object | None) -> bool:
    return workload is not None and is_true(workload, "Admitted")


def _interrupted_at(workload: Object | None) -> float | None:
    """Kueue leaves the condition there, as False, once it has admitted it again."""
    evicted = None if workload is None else condition(workload, "Evicted")
    return None if evicted is None else seconds(evicted["lastTransitionTime"])


def _pod_sets(workload: Object) -> PodSets:
    found = []
    for pod_set in (workload.get("spec") or {}).get("podSets") or []:
        each: dict[str, Any] = {}
        for container in pod_set["template"]["spec"].get("containers") or []:
            for name, amount in ((container.get("resources") or {}).get("requests") or {}).items():
                each[name] = each.get(name, 0) + parse(amount)
        found.append((str(pod_set.get("name", "main")), int(pod_set["count"]), each))
    return found


def _pod_trouble(pods: Sequence[Object]) -> tuple[str, float | None]:
    """(why a pod cannot start, since when it is there); ("", None) where none has trouble."""
    for pod in pods:
        status = pod.get("status") or {}
        containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
        for container in containers:
            waits = (container.get("state") or {}).get("waiting") or {}
            if waits.get("reason") in _POD_REASONS:
                made = pod["metadata"].get("creationTimestamp")
                what = f"{waits['reason']}: {str(waits.get('message') or '').strip()}"[:300]
                if waits["reason"] in _IMAGE_REASONS:
                    what = f"the image {container.get('image')} cannot be pulled ({what})"
                return what, None if made is None else seconds(made)
        scheduled = condition(pod, "PodScheduled")
        if scheduled is not None and scheduled["status"] == "False":
            return f"no node has room for a pod: {str(scheduled.get('message') or '')[:300]}", None
    return "", None


def _queues(settings: ClusterSettings) -> str:
    return ", ".join(f"{team.queue} in {team.namespace}" for team in settings.teams.values())
