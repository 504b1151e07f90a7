"""Kueue and KubeRay for RayJobs: their webhooks, and controllers that a test moves by hand.

Works on the objects of the fake API server through conditions and status, as the real controllers do:
- a RayJob with a queue is suspended until its Workload is admitted;
- Workloads are admitted by priority and age while their ClusterQueue's quota lasts (cohort borrowing, one flavor);
- the queue's status has what is reserved;
- a preempted RayJob is suspended; once its pods are ordered to end its quota is free, and it is queued again under the
  same name;
- an ended RayJob stays, as it does without DELETE_RAYJOB_CR_AFTER_JOB_FINISHES (`expire`).

Nothing happens automatically: `reconcile` does what is due, `advance` moves a RayJob by one phase. Computes quotas in
its own way and imports no arithmetic of `ray_jobs`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.cluster.kinds import (
    CLUSTER_QUEUE,
    LOCAL_QUEUE,
    POD,
    PRIORITY_LABEL,
    QUEUE_LABEL,
    RAY_JOB,
    WORKLOAD,
    Kind,
    Object,
)
from tests.cluster.kubernetes_objects import PRIORITY_CLASS, Objects, Refused, now

UNITS = {"m": 0.001, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def webhook(kind: Kind, new: Object, old: Object | None) -> None:
    """Refuse and default as Kueue's and KubeRay's webhooks do."""
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
    """Gives the time in Kubernetes' format."""
    made: list[str] = field(default_factory=list)
    """Names of all RayJobs so far, once for each object."""
    _uids: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.objects.webhooks.append(webhook)

    # ---- moves of a test ---------------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Make Workloads for new RayJobs, admit waiting Workloads, update the queues' status."""
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
        self._update_queues()

    def advance(self, name: str, namespace: str) -> str:
        """Move an admitted RayJob to its next phase, and return it."""
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
        """Evict a RayJob in favor of another one."""
        rayjob = self.objects.get(RAY_JOB, name, namespace)
        workload = self.workload_of(rayjob)
        assert workload is not None
        assert _is(workload, "Admitted")
        message = "Preempted to accommodate a workload due to prioritization in the ClusterQueue"
        self._conditions(workload, Evicted=("True", "Preempted", message))
        self.objects.patch(RAY_JOB, name, {"spec": {"suspend": True}}, namespace)
        if self.objects.find(RAY_JOB, name, namespace) is not None:  # else this write completed its deletion
            self._phase(name, namespace, "Suspending")

    def finish(
        self, name: str, namespace: str, *, ok: bool = True, reason: str = "AppFailed", message: str = ""
    ) -> None:
        """End the entrypoint."""
        facts = {"jobStatus": "SUCCEEDED"} if ok else {"jobStatus": "FAILED", "reason": reason, "message": message}
        self._phase(name, namespace, "Complete" if ok else "Failed", endTime=self.clock(), **facts)
        workload = self.workload_of(self.objects.get(RAY_JOB, name, namespace))
        if workload is not None:
            self._conditions(workload, Finished=("True", "Succeeded" if ok else "Failed", message or "Job finished"))
        self._update_queues()

    def expire(self, name: str, namespace: str) -> None:
        """Delete an ended RayJob, as KubeRay does with DELETE_RAYJOB_CR_AFTER_JOB_FINISHES."""
        self.objects.delete(RAY_JOB, name, namespace)

    def cannot_pull(self, name: str, namespace: str, *, made_at: str | None = None) -> None:
        """Give a RayJob a head pod whose image cannot be pulled."""
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
            self.objects.set_created(POD, f"{name}-head", namespace, made_at)

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

    # ---- admission ---------------------------------------------------------------------------------------------------

    def _make_workload(self, rayjob: Object) -> None:
        metadata, spec = rayjob["metadata"], rayjob["spec"]
        cluster = spec["rayClusterSpec"]
        sets = [("head", 1, cluster["headGroupSpec"]["template"])]
        sets += [(group["groupName"], group["replicas"], group["template"]) for group in cluster["workerGroupSpecs"]]
        sets.append(("submitter", 1, spec["submitterPodTemplate"]))
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
        local = self.objects.find(LOCAL_QUEUE, workload["spec"]["queueName"], namespace)
        if local is None:
            message = f"LocalQueue {workload['spec']['queueName']} doesn't exist"
            self._conditions(workload, QuotaReserved=("False", "Inadmissible", message))
            return
        queue = local["spec"]["clusterQueue"]
        flavor = self._flavor(queue)
        short = next((name for name, asked in _total(workload).items() if not self._fits(queue, name, asked)), None)
        if short is not None:
            message = (
                f"couldn't assign flavors to pod set workers: insufficient unused quota for {short} in flavor {flavor}"
            )
            self._conditions(workload, QuotaReserved=("False", "Pending", message))
            return
        assignments = [
            {
                "name": pod_set["name"],
                "count": pod_set["count"],
                "flavors": dict.fromkeys(_requests(pod_set), flavor),
                "resourceUsage": {name: f"{amount * 1000:.0f}m" for name, amount in _requests(pod_set).items()},
            }
            for pod_set in workload["spec"]["podSets"]
        ]
        admission = {"clusterQueue": queue, "podSetAssignments": assignments}
        self.objects.set_status(WORKLOAD, workload["metadata"]["name"], namespace, {"admission": admission})
        was_evicted = _is(workload, "Evicted")
        self._conditions(
            self.objects.get(WORKLOAD, workload["metadata"]["name"], namespace),
            QuotaReserved=("True", "QuotaReserved", f"Quota reserved in ClusterQueue {queue}"),
            Admitted=("True", "Admitted", "The workload is admitted"),
            **({"Evicted": ("False", "QuotaReserved", "Previously: Preempted")} if was_evicted else {}),
        )
        if self.objects.find(RAY_JOB, owner["name"], namespace) is not None:
            self.objects.patch(RAY_JOB, owner["name"], {"spec": {"suspend": False}}, namespace)

    def _fits(self, name: str, resource: str, asked: float) -> bool:
        """The queue stays within its limits, and its cohort lends no more than it has."""
        used = self._used()
        used[name, resource] += asked
        queues = {queue["metadata"]["name"]: queue for queue in self.objects.list(CLUSTER_QUEUE)}
        cohort = queues[name]["spec"].get("cohortName")
        nominal, borrow, _ = _limits(queues[name], resource)
        if used[name, resource] > nominal + (borrow if cohort else 0):
            return False
        lent = taken = 0.0
        for other, queue in queues.items():
            if other == name or (cohort and queue["spec"].get("cohortName") == cohort):
                own, _, lend = _limits(queue, resource)
                lent += min(own, lend)
                taken += max(0.0, used[other, resource] - (own - min(own, lend)))
        return taken <= lent

    def _used(self) -> dict[tuple[str, str], float]:
        """What Workloads with quota use, by (ClusterQueue, resource)."""
        used: dict[tuple[str, str], float] = defaultdict(float)
        for workload in self.objects.list(WORKLOAD):
            if _is(workload, "QuotaReserved") and not _is(workload, "Finished"):
                queue = self._queue_of(workload)
                for resource, amount in _total(workload).items():
                    used[queue, resource] += amount
        return used

    def _queue_of(self, workload: Object) -> str:
        local = self.objects.find(LOCAL_QUEUE, workload["spec"]["queueName"], workload["metadata"]["namespace"])
        return "" if local is None else str(local["spec"]["clusterQueue"])

    def _flavor(self, name: str) -> str:
        (group,) = self.objects.get(CLUSTER_QUEUE, name)["spec"]["resourceGroups"]
        return str(group["flavors"][0]["name"])

    def _take_quota(self, rayjob: Object) -> None:
        """Free the quota of an evicted RayJob, once it is suspended."""
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
        self._update_queues()

    def _update_queues(self) -> None:
        used = self._used()
        waiting = [w for w in self.objects.list(WORKLOAD) if not _is(w, "QuotaReserved") and not _is(w, "Finished")]
        pending = Counter(map(self._queue_of, waiting))
        for queue in self.objects.list(CLUSTER_QUEUE):
            name, (group,) = queue["metadata"]["name"], queue["spec"]["resourceGroups"]
            usage = []
            for flavor in group["flavors"]:
                resources = []
                for one in flavor["resources"]:
                    total = used[name, one["name"]]
                    borrowed = max(0.0, total - _amount(one["nominalQuota"]))
                    resources.append({"name": one["name"], "total": f"{total:f}", "borrowed": f"{borrowed:f}"})
                usage.append({"name": flavor["name"], "resources": resources})
            status = {"flavorsReservation": usage, "flavorsUsage": usage, "pendingWorkloads": pending[name]}
            self.objects.set_status(CLUSTER_QUEUE, name, None, status)

    def _phase(self, name: str, namespace: str, phase: str, **facts: Any) -> None:
        self.objects.set_status(RAY_JOB, name, namespace, {"jobDeploymentStatus": phase, **facts})

    def _conditions(self, workload: Object, **changes: tuple[str, str, str]) -> None:
        before = {c["type"]: c for c in (workload.get("status") or {}).get("conditions", [])}
        for name, (status, reason, message) in changes.items():
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


def _limits(queue: Object, resource: str) -> tuple[float, float, float]:
    """Nominal quota, borrowing limit, lending limit; infinite where there is no limit."""
    (group,) = queue["spec"]["resourceGroups"]
    (found,) = (one for one in group["flavors"][0]["resources"] if one["name"] == resource)
    nominal, *limits = (found.get(name, "inf") for name in ("nominalQuota", "borrowingLimit", "lendingLimit"))
    return _amount(nominal), _amount(limits[0]), _amount(limits[1])


def _total(workload: Object) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for pod_set in workload["spec"]["podSets"]:
        for name, amount in _requests(pod_set).items():
            total[name] += amount
    return total


def _requests(pod_set: Object) -> dict[str, float]:
    """Requests of all pods of the set."""
    total: dict[str, float] = {}
    for container in pod_set["template"]["spec"]["containers"]:
        for name, quantity in container["resources"]["requests"].items():
            if name == "ephemeral-storage":  # `resources.excludeResourcePrefixes` in infra/operators/kueue.yaml
                continue
            total[name] = total.get(name, 0.0) + pod_set["count"] * _amount(quantity)
    return total


def _amount(quantity: str | int) -> float:
    text = str(quantity)
    suffix = next((suffix for suffix in UNITS if text.endswith(suffix)), "")
    return float(text.removesuffix(suffix)) * UNITS.get(suffix, 1)
