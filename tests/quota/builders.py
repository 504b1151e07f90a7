"""Queues, Workloads and past jobs for tests of quotas; a test gives the fields that matter to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from ray_jobs.cluster.kinds import Object
from ray_jobs.jobs import JobRecord
from ray_jobs.spec import DEFAULT_TEAM
from ray_jobs.storage import Workspace
from tests.builders import make_spec

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
GPU = "nvidia.com/gpu"


def stamp(minutes_ago: float) -> str:
    return (NOW - timedelta(minutes=minutes_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


def make_queue(
    team: str,
    gpus: Mapping[str, Any],
    *,
    used: int = 0,
    borrowed: int = 0,
    cohort: str | None = "kitae",
    flavor: str = "h100",
    spec: Mapping[str, Any] | None = None,
) -> Object:
    """A team's ClusterQueue as in the chart. `gpus`: nominalQuota and limits."""
    cpus = [{"name": "cpu", "nominalQuota": "16"}, {"name": "memory", "nominalQuota": "64Gi"}]
    flavors = [
        {"name": "cpu", "resources": [*cpus, {"name": GPU, "nominalQuota": "0"}]},
        {"name": flavor, "resources": [*cpus, {"name": GPU, **gpus}]},
    ]
    held = [{"name": flavor, "resources": [{"name": GPU, "total": str(used), "borrowed": str(borrowed)}]}]
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "ClusterQueue",
        "metadata": {"name": f"kitae-{team}", "labels": {"app.kubernetes.io/part-of": "kitae"}},
        "spec": {
            **({} if cohort is None else {"cohortName": cohort}),
            "namespaceSelector": {},
            "resourceGroups": [{"coveredResources": ["cpu", "memory", GPU], "flavors": flavors}],
            **(spec or {}),
        },
        "status": {"flavorsReservation": held, "flavorsUsage": held},
    }


def make_local(team: str) -> Object:
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "LocalQueue",
        "metadata": {"name": "kitae", "namespace": f"kitae-{team}"},
        "spec": {"clusterQueue": f"kitae-{team}"},
    }


def make_workload(
    name: str,
    team: str,
    gpus: int,
    *,
    minutes_ago: float = 10,
    running: bool = False,
    says: str = "couldn't assign flavors to pod set workers: insufficient unused quota for nvidia.com/gpu in h100",
    conditions: Sequence[Object] = (),
    spec: Mapping[str, Any] | None = None,
    priority: int = 0,
) -> Object:
    """The Workload of a RayJob: a head, and workers with a GPU each. Created (and admitted, if it runs) then."""

    def pods(group: str, count: int, requests: Mapping[str, str]) -> Object:
        container = {"name": "ray", "image": "kitae", "resources": {"requests": dict(requests)}}
        return {"name": group, "count": count, "template": {"spec": {"containers": [container]}}}

    worker = {"cpu": "2", "memory": "8Gi"} | ({GPU: "1"} if gpus else {})
    at = stamp(minutes_ago)
    found = [
        {
            "type": "QuotaReserved",
            "status": "True" if running else "False",
            "reason": "QuotaReserved" if running else "Pending",
            "message": "" if running else says,
            "lastTransitionTime": at,
        },
        *conditions,
    ]
    status: Object = {"conditions": found}
    if running:
        workers = {
            "name": "workers",
            "count": gpus,
            "flavors": {"cpu": "h100", "memory": "h100", GPU: "h100"},
            "resourceUsage": {"cpu": str(2 * gpus), "memory": f"{8 * gpus}Gi", GPU: str(gpus)},
        }
        status["admission"] = {"clusterQueue": f"kitae-{team}", "podSetAssignments": [workers]}
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "Workload",
        "metadata": {
            "name": f"rayjob-{name}",
            "namespace": f"kitae-{team}",
            "labels": {"kitae.dev/runner": name},
            "creationTimestamp": at,
        },
        "spec": {
            "queueName": "kitae",
            "priority": priority,
            "podSets": [pods("head", 1, {"cpu": "1", "memory": "4Gi"}), pods("workers", max(1, gpus), worker)],
            **(spec or {}),
        },
        "status": status,
    }


def make_finished(name: str, team: str, gpus: int, *, began_minutes_ago: float, ended_minutes_ago: float) -> Object:
    """The Workload of an ended RayJob."""
    times = {"Admitted": began_minutes_ago, "Finished": ended_minutes_ago}
    conditions = [
        {"type": what, "status": "True", "reason": what, "message": "", "lastTransitionTime": stamp(minutes)}
        for what, minutes in times.items()
    ]
    return make_workload(name, team, gpus, minutes_ago=began_minutes_ago, running=True, conditions=conditions)


def make_record(name: str, **changes: Any) -> JobRecord:
    """A succeeded job of team blue: arrived at 10:00, ran from 10:30 to 11:30 on two GPUs."""
    spec = make_spec(name, team="blue", compute={"workers": 2, "gpus_per_worker": 1})
    day = NOW.replace(hour=10)
    fields: dict[str, Any] = {
        "id": spec.job_id,
        "spec": spec.model_dump(mode="json"),
        "attempt": 1,
        "created_at": day,
        "started_at": day + timedelta(minutes=30),
        "finished_at": day + timedelta(minutes=90),
        "result": {"model": name},
    }
    if "spec_fields" in changes:
        spec = make_spec(name, **changes.pop("spec_fields"))
        fields |= {"id": spec.job_id, "spec": spec.model_dump(mode="json")}
    return JobRecord(**(fields | changes))


def put(store: Workspace, *records: JobRecord) -> None:
    for record in records:
        home = Workspace(store, str(record.spec.get("team") or DEFAULT_TEAM))
        home.put_json(f"jobs/{record.id}/job.json", record.model_dump(mode="json"))
