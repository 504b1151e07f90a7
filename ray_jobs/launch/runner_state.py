"""RayJob, Workload and pods → the state of a runner, with the message for its job's events. Pure.

KubeRay's status has the outcome of the job; Kueue's has the reason for waiting (`kueue.waiting`). Either may be missing
or out of date. An unknown phase, such as one of a newer version, is that of a runner that has not started.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_jobs.cluster.kinds import RUNNER_LABEL, Object
from ray_jobs.kueue.objects import condition, is_true, seconds_of
from ray_jobs.kueue.queues import NO_QUEUES, Queues
from ray_jobs.kueue.waiting import NOT_PROCESSED, waiting_reason
from ray_jobs.launch.launcher import Runner

IMAGE_PATIENCE_S = 900.0
"""Age of a pod whose image cannot be pulled before its runner is given up: registries have short outages."""
_STARTING = ("Initializing", "Waiting", "Retrying", "New", "")
_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_POD_REASONS = (*_IMAGE_REASONS, "CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_HOPELESS_ENDS = {
    "DeadlineExceeded": "it took longer than the platform's scheduling.deadline_s",
    "ValidationFailed": "KubeRay refuses it",
}


def runner_of(
    rayjob: Object,
    workload: Object | None = None,
    pods: Sequence[Object] = (),
    queues: Queues = NO_QUEUES,
    *,
    starts_in_s: float | None = None,
    now_s: float,
) -> Runner:
    """The state of a runner.

    `workload`: None if Kueue has not made one yet, or is not installed. `pods`: those of a starting runner; they show
    why it does not start. `starts_in_s`: estimated seconds until it starts; None: unknown.
    """
    status = rayjob.get("status") or {}
    phase, detail = str(status.get("jobDeploymentStatus", "")), str(status.get("message") or "")
    # Kueue sets the condition to False when it admits the Workload again.
    evicted = None if workload is None else condition(workload, "Evicted")
    interrupted_at = None if evicted is None else seconds_of(evicted["lastTransitionTime"])
    if phase in ("Complete", "Failed", "ValidationFailed"):
        reason = "ValidationFailed" if phase == "ValidationFailed" else str(status.get("reason") or "")
        why = _HOPELESS_ENDS.get(reason)
        message = ": ".join(part for part in (why or reason, detail) if part)
        return Runner("ended", message[:500] or phase, interrupted_at, hopeless=why is not None)
    if "deletionTimestamp" in rayjob["metadata"]:
        # Its pods may still run; it becomes unknown once the RayJob is gone.
        return Runner("running", "being stopped", interrupted_at)
    if phase == "Running":
        begun = status.get("jobStatus") not in ("", None, "PENDING")
        return Runner("running" if begun else "pending", "", interrupted_at)
    if phase in ("Suspending", "Suspended") or workload is None or not is_true(workload, "Admitted"):
        return Runner("pending", _waiting_message(workload, queues, starts_in_s), interrupted_at)
    trouble, since_s = _pod_trouble(pods)
    if trouble:
        hopeless = since_s is not None and now_s - since_s >= IMAGE_PATIENCE_S
        return Runner("pending", f"cannot start: {trouble}", interrupted_at, hopeless)
    failed = int(status.get("failed") or 0)
    message = f"starting again after {failed} failed start(s)" if failed and phase in _STARTING else "starting"
    return Runner("pending", message, interrupted_at)


def _waiting_message(workload: Object | None, queues: Queues, starts_in_s: float | None) -> str:
    """`waiting: blue uses 8 of 8 h100; 2 can be borrowed; about 40 min`."""
    if workload is None:
        return f"waiting: {NOT_PROCESSED}"
    reason = waiting_reason(workload, queues)
    begin = f"{reason.eviction}; waiting" if reason.eviction else "waiting"
    estimate = "" if starts_in_s is None else f"about {roughly(starts_in_s)}"
    rest = "; ".join(part for part in (reason.cause, estimate) if part)
    return f"{begin}: {rest}" if rest else begin


def roughly(seconds: float) -> str:
    """A duration, rounded as coarsely as an estimate deserves: `5 min`, `40 min`, `3 h`, `2 days`."""
    minutes = max(1.0, seconds / 60)
    if minutes <= 90:
        step = 5 if minutes <= 30 else 10
        return f"{max(step, round(minutes / step) * step)} min"
    hours = minutes / 60
    return f"{round(hours)} h" if hours <= 36 else f"{round(hours / 24)} days"


def runner_id_of(found: Object) -> str | None:
    """The runner of an object. None: the object is not of a runner."""
    label = (found["metadata"].get("labels") or {}).get(RUNNER_LABEL)
    return None if label is None else str(label)


def ended_at(rayjob: Object) -> float | None:
    """Unix seconds. None: it has not ended permanently, or KubeRay gives no time."""
    status = rayjob.get("status") or {}
    ended = status.get("jobDeploymentStatus") in ("Complete", "Failed")
    return seconds_of(status["endTime"]) if ended and status.get("endTime") else None


def _pod_trouble(pods: Sequence[Object]) -> tuple[str, float | None]:
    """(why a pod cannot start, Unix seconds of its creation); ("", None) if none has trouble."""
    for pod in pods:
        status = pod.get("status") or {}
        containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
        for container in containers:
            waits = (container.get("state") or {}).get("waiting") or {}
            if waits.get("reason") in _POD_REASONS:
                created = pod["metadata"].get("creationTimestamp")
                what = f"{waits['reason']}: {str(waits.get('message') or '').strip()}"[:300]
                if waits["reason"] in _IMAGE_REASONS:
                    what = f"the image {container.get('image')} cannot be pulled ({what})"
                return what, None if created is None else seconds_of(created)
        scheduled = condition(pod, "PodScheduled")
        if scheduled is not None and scheduled["status"] == "False":
            return f"no node has room for a pod: {str(scheduled.get('message') or '')[:300]}", None
    return "", None
