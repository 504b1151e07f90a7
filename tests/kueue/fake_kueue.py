"""Kueue and KubeRay, as far as RayJobs notice: their webhooks, and controllers that a test moves by hand.

Works on the objects of the fake API server as the real controllers do, through conditions and status. What it has:
a RayJob with a queue is suspended until its Workload is admitted; workloads are admitted by priority and age while
their ClusterQueue's quota lasts (borrowing in a cohort, one flavor); the queue's status tells what is reserved;
preemption suspends the RayJob, ends its pods, and takes the quota once they are ordered to end; it is queued again
under the same name. A RayJob that has ended stays, as it does unless KubeRay's operator was told otherwise (`expire`).

Nothing happens by itself: `reconcile` brings what is due, `advance` lets a RayJob take its next step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ray_jobs.cluster.kinds import (
    CLUSTER_QUEUE,
    LOCAL_QUEUE,
    POD,
    PRIORITY_CLASS,
    PRIORITY_LABEL,
    QUEUE_LABEL,
    RAY_JOB,
    WORKLOAD,
    Kind,
)
from ray_jobs.cluster.quantities import parse
from ray_jobs.kueue import capacity
from ray_jobs.launch import runner_state
from ray_jobs.launch.rayjob import SUBMITTER
from tests.cluster.kubernetes_objects import Object, Objects, Refused, now

PHASES = ("", "Initializing", "Running")


def webhook(kind: Kind, new: Object, old: Object | None) -> None:
    """What Kueue's and KubeRay's refuse, or change."""
    if kind != RAY_JOB:
        return
    spec, name = new["spec"], new["metadata"].get("name")
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"].get("workerGroupSpecs", [])]
    problems = [] if all("rayStartParams" in group for group in groups) else ["rayStartParams: Required value"]
    if "authOptions" in spec["rayClusterSpec"] and "rayVersion" not in spec["rayClusterSpec"]:
        problems.append("authOptions.mode is 'token' but RayVersion was not specified")
    if QUEUE_LABEL in new["metadata"].get("labels", {}):
        if spec.get("shutdownAfterJobFinishes") is not True:
            problems.append(
                "spec.shutdownAfterJobFinishes: a kueue managed job should delete the cluster after finishing"
            )
        if old is None:
            spec["suspend"] = True
    if problems:
        message = f'admission webhook "vrayjob.kb.io" denied the request: {"; ".join(problems)}'
        raise Refused(403, "Forbidden", message, name=name, kind="rayjobs")


@dataclass
class FakeKueue:
    """See the module."""

    objects: Objects
    clock: Any = now
    """Gives the time as Kubernetes writes it."""
    made: list[str] = field(default_factory=list)
    """Names of all RayJobs that it has seen, once for each object."""
    _uids: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.objects.webhooks.append(webhook)

    # ---- what a test says --------------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Workloads for new RayJobs, quota for those that wait, the queues' status."""
        for rayjob in self.objects.list(RAY_JOB):
            if rayjob["metadata"]["uid"] not in self._uids:
                self._uids.add(rayjob["metadata"]["uid"])
                self.made.append(rayjob["metadata"]["name"])
            if self.workload_of(rayjob) is None:
                self._make_workload(rayjob)
        waiting = [w for w in self.objects.list(WORKLOAD) if not _is(w, "Admitted") and not _is(w, "Finished")]
        for workload in sorted(
            waiting, key=lambda w: (-w["spec"].get("priority", 0), w["metadata"]["resourceVersion"])
        ):
            self._try_to_admit(workload)
        self._tell_queues()

    def advance(self, name: str, namespace: str) -> str:
        """A RayJob's next step while it is admitted; its phase after it."""
        rayjob = self.objects.get(RAY_JOB, name, namespace)
        status = rayjob.get("status") or {}
        phase = status.get("jobDeploymentStatus", "")
        if phase == "Suspending":
            self._phase(name, namespace, "Suspended", jobStatus="")
            self._take_quota(rayjob)
        elif phase in ("", "Suspended", "Initializing") and not rayjob["spec"]["suspend"]:
            following = "Running" if phase == "Initializing" else "Initializing"
            self._phase(name, namespace, following, jobStatus="PENDING", rayClusterName=f"{name}-x")
        elif phase == "Running" and status.get("jobStatus") == "PENDING":
            self._phase(name, namespace, "Running", jobStatus="RUNNING")
        found = self.objects.get(RAY_JOB, name, namespace).get("status") or {}
        return str(found.get("jobDeploymentStatus", ""))

    def preempt(self, name: str, namespace: str) -> None:
        """Its quota goes to another job."""
        rayjob = self.objects.get(RAY_JOB, name, namespace)
        workload = self.workload_of(rayjob)
        assert workload is not None
        assert _is(workload, "Admitted")
        message = "Preempted to accommodate a workload due to prioritization in the ClusterQueue"
        self._conditions(workload, Evicted=("True", "Preempted", message))
        self.objects.patch(RAY_JOB, name, {"spec": {"suspend": True}}, namespace)
        self._phase(name, namespace, "Suspending")

    def finish(
        self, name: str, namespace: str, *, ok: bool = True, reason: str = "AppFailed", message: str = ""
    ) -> None:
        """Its entrypoint has ended."""
        facts = {"jobStatus": "SUCCEEDED"} if ok else {"jobStatus": "FAILED", "reason": reason, "message": message}
        self._phase(name, namespace, "Complete" if ok else "Failed", endTime=self.clock(), **facts)
        workload = self.workload_of(self.objects.get(RAY_JOB, name, namespace))
        if workload is not None:
            self._conditions(workload, Finished=("True", "Succeeded" if ok else "Failed", message or "Job finished"))
        self._tell_queues()

    def expire(self, name: str, namespace: str) -> None:
        """Its time to live after its end is over, where DELETE_RAYJOB_CR_AFTER_JOB_FINISHES is set."""
        self.objects.delete(RAY_JOB, name, namespace)

    def cannot_pull(self, name: str, namespace: str, *, made_at: str | None = None) -> None:
        """Its head has no image."""
        rayjob = self.objects.get(RAY_JOB, name, namespace)
        template = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{name}-head", "labels": dict(template["metadata"]["labels"])},
            "spec": template["spec"],
        }
        self.objects.create(POD, pod, namespace)
        image = template["spec"]["containers"][0]["image"]
        waits = {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{image}"'}
        container = {"name": "ray-head", "image": image, "imageID": "", "ready": False, "restartCount": 0}
        self.objects.set_status(
            POD, f"{name}-head", namespace, {"containerStatuses": [{**container, "state": {"waiting": waits}}]}
        )
        if made_at is not None:
            self.objects._found(POD, f"{name}-head", namespace)["metadata"]["creationTimestamp"] = made_at

    def workload_of(self, rayjob: Object) -> Object | None:
        uid = rayjob["metadata"]["uid"]
        for workload in self.objects.list(WORKLOAD, rayjob["metadata"]["namespace"]):
            if any(owner["uid"] == uid for owner in workload["metadata"]["ownerReferences"]):
                return workload
        return None

    def running(self) -> list[tuple[str, str]]:
        """(name, namespace) of every RayJob whose entrypoint runs."""
        return [
            (o["metadata"]["name"], o["metadata"]["namespace"])
            for o in self.objects.list(RAY_JOB)
            if (o.get("status") or {}).get("jobStatus") == "RUNNING" and o["status"]["jobDeploymentStatus"] == "Running"
        ]

    # ---- how ---------------------------------------------------------------------------------------------------------

    def _make_workload(self, rayjob: Object) -> None:
        metadata, spec = rayjob["metadata"], rayjob["spec"]
        cluster = spec["rayClusterSpec"]
        sets = [("head", 1, cluster["headGroupSpec"]["template"])]
        sets += [(group["groupName"], group["replicas"], group["template"]) for group in cluster["workerGroupSpecs"]]
        submitter = {
            "spec": {"containers": [{"name": "submitter", "image": "i", "resources": {"requests": dict(SUBMITTER)}}]}
        }
        sets.append(("submitter", 1, submitter))
        labels = metadata.get("labels", {})
        priority = self.objects.find(PRIORITY_CLASS, labels.get(PRIORITY_LABEL, ""))
        body: Object = {
            "apiVersion": WORKLOAD.api_version,
            "kind": WORKLOAD.kind,
            "metadata": {
                "name": f"rayjob-{metadata['name']}-{metadata['uid'][:5]}",
                "ownerReferences": [
                    {
                        "apiVersion": RAY_JOB.api_version,
                        "kind": RAY_JOB.kind,
                        "name": metadata["name"],
                        "uid": metadata["uid"],
                        "controller": True,
                    }
                ],
            },
            "spec": {
                "queueName": labels[QUEUE_LABEL],
                "priority": 0 if priority is None else priority["value"],
                "podSets": [
                    {"name": name, "count": count, "template": {"spec": template["spec"]}}
                    for name, count, template in sets
                ],
            },
        }
        self.objects.create(WORKLOAD, body, metadata["namespace"])

    def _try_to_admit(self, workload: Object) -> None:
        namespace, owner = workload["metadata"]["namespace"], workload["metadata"]["ownerReferences"][0]
        queue = self.objects.find(LOCAL_QUEUE, workload["spec"]["queueName"], namespace)
        if queue is None:
            said = f"LocalQueue {workload['spec']['queueName']} doesn't exist"
            self._conditions(workload, QuotaReserved=("False", "Inadmissible", said))
            return
        self._tell_queues()
        queues = self.objects.list(CLUSTER_QUEUE)
        found = capacity.quotas(queue["spec"]["clusterQueue"], queues)
        asks = runner_state.holds(workload)
        short = [q for q in found if asks.get(q.resource, 0.0) > float(q.free)]
        if short:
            more = Decimal(asks[short[0].resource]) - short[0].free
            said = (
                f"couldn't assign flavors to pod set workers: insufficient unused quota for {short[0].resource} in "
                f"flavor {short[0].flavor}, {more:g} more needed"
            )
            self._conditions(workload, QuotaReserved=("False", "Pending", said))
            return
        flavor = found[0].flavor
        assignments = [
            {
                "name": pod_set["name"],
                "count": pod_set["count"],
                "flavors": dict.fromkeys(_requests(pod_set), flavor),
                "resourceUsage": {name: str(amount) for name, amount in _requests(pod_set).items()},
            }
            for pod_set in workload["spec"]["podSets"]
        ]
        admission = {"clusterQueue": queue["spec"]["clusterQueue"], "podSetAssignments": assignments}
        self.objects.set_status(WORKLOAD, workload["metadata"]["name"], namespace, {"admission": admission})
        reserved = f"Quota reserved in ClusterQueue {queue['spec']['clusterQueue']}"
        was_evicted = _is(workload, "Evicted")
        self._conditions(
            self.objects.get(WORKLOAD, workload["metadata"]["name"], namespace),
            QuotaReserved=("True", "QuotaReserved", reserved),
            Admitted=("True", "Admitted", "The workload is admitted"),
            **({"Evicted": ("False", "QuotaReserved", "Previously: Preempted")} if was_evicted else {}),
        )
        if self.objects.find(RAY_JOB, owner["name"], namespace) is not None:
            self.objects.patch(RAY_JOB, owner["name"], {"spec": {"suspend": False}}, namespace)

    def _take_quota(self, rayjob: Object) -> None:
        """Of an evicted one, once its RayJob is suspended."""
        workload = self.workload_of(rayjob)
        if workload is None or not _is(workload, "Evicted"):
            return
        (evicted,) = (c for c in workload["status"]["conditions"] if c["type"] == "Evicted")
        self._conditions(
            workload,
            QuotaReserved=("False", "Pending", evicted["message"]),
            Admitted=("False", "NoReservation", "The workload has no reservation"),
            Requeued=("True", evicted["reason"], evicted["message"]),
        )
        self._tell_queues()

    def _tell_queues(self) -> None:
        for queue in self.objects.list(CLUSTER_QUEUE):
            name = queue["metadata"]["name"]
            used: dict[str, float] = {}
            waits = 0
            for workload in self.objects.list(WORKLOAD):
                local = self.objects.find(LOCAL_QUEUE, workload["spec"]["queueName"], workload["metadata"]["namespace"])
                if local is None or local["spec"]["clusterQueue"] != name or _is(workload, "Finished"):
                    continue
                if not _is(workload, "QuotaReserved"):
                    waits += 1
                    continue
                for resource, amount in runner_state.holds(workload).items():
                    used[resource] = used.get(resource, 0.0) + amount
            usage = []
            for group in queue["spec"]["resourceGroups"]:
                for flavor in group["flavors"]:
                    resources = []
                    for one in flavor["resources"]:
                        total, nominal = Decimal(str(used.get(one["name"], 0.0))), parse(one["nominalQuota"])
                        borrowed = max(Decimal(0), total - nominal)
                        resources.append({"name": one["name"], "total": f"{total:f}", "borrowed": f"{borrowed:f}"})
                    usage.append({"name": flavor["name"], "resources": resources})
            status = {"flavorsReservation": usage, "flavorsUsage": usage, "pendingWorkloads": waits}
            self.objects.set_status(CLUSTER_QUEUE, name, None, status)

    def _phase(self, name: str, namespace: str, phase: str, **facts: Any) -> None:
        self.objects.set_status(RAY_JOB, name, namespace, {"jobDeploymentStatus": phase, **facts})

    def _conditions(self, workload: Object, **told: tuple[str, str, str]) -> None:
        before = {c["type"]: c for c in (workload.get("status") or {}).get("conditions", [])}
        for name, (status, reason, message) in told.items():
            changed = before.get(name, {}).get("status") != status
            at = self.clock() if changed else before[name]["lastTransitionTime"]
            before[name] = {
                "type": name, "status": status, "reason": reason, "message": message, "lastTransitionTime": at,
            }  # fmt: skip
        metadata = workload["metadata"]
        self.objects.set_status(
            WORKLOAD, metadata["name"], metadata["namespace"], {"conditions": list(before.values())}
        )


def _is(workload: Object, condition: str) -> bool:
    found = (workload.get("status") or {}).get("conditions", [])
    return any(c["type"] == condition and c["status"] == "True" for c in found)


def _requests(pod_set: Object) -> dict[str, Decimal]:
    total: dict[str, Decimal] = {}
    for container in pod_set["template"]["spec"]["containers"]:
        for name, amount in container["resources"]["requests"].items():
            total[name] = total.get(name, Decimal(0)) + parse(amount)
    return total
