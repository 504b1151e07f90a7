"""The admission policy of the chart kitae: what teams' charts and the endpoint start is admitted, every way around a
quota is refused with its reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from ray_jobs.cluster import settings
from ray_jobs.launch import rayjob_manifest
from ray_jobs.launch.launcher import Needs
from ray_jobs.spec import parse_spec
from tests.charts import chart_values, helm
from tests.charts.admission import Request, refusals
from tests.charts.manifests import Object

KUBERAY, KUEUE = (("system:serviceaccounts:kuberay-system",), ("system:serviceaccounts:kueue-system",))
VALUES = chart_values.kitae(
    teams={"green": {"maxPriority": 0}}, admissionPolicy={"images": ["registry.example/kitae-dev"]}
)


def policies() -> list[Object]:
    return helm.render("kitae", VALUES)


def released(team: str = "blue", **changes: Any) -> Object:
    """The RayJob of a release in a team's namespace, as the server stores it."""
    values = chart_values.job(job={"spec": {"team": team}}, **changes)
    _, job = helm.render("finetune-job", values, namespace=f"kitae-{team}")
    return copy.deepcopy(job)


def launched(priority: int = 0) -> Object:
    """The RayJob that the endpoint creates with the chart's own settings."""
    (text,) = [each["data"]["cluster.yaml"] for each in policies() if "cluster.yaml" in (each.get("data") or {})]
    spec = parse_spec(chart_values.job()["job"]["spec"] | {"priority": priority})
    arguments = ["resume", spec.job_id, "--launched"]
    cluster = settings.parse(yaml.safe_load(text))
    return rayjob_manifest.manifest(cluster, "ftjob-0123456789-1", arguments, {}, Needs.of(spec, spec.job_id))


@pytest.mark.parametrize("case", [name for name in chart_values.JOB if name not in ("no queue", "no priority")])
def test_the_teams_chart_is_admitted(case: str) -> None:
    values = chart_values.merged(chart_values.JOB[case], {"serviceAccount": "kitae-job"})
    if isinstance(values["job"]["spec"], dict):
        values["job"]["spec"]["team"] = "blue"
    else:
        values["job"]["spec"] += "team: blue\n"
    _, job = helm.render("finetune-job", values, namespace="kitae-blue")
    assert refusals(policies(), Request(job)) == []


@pytest.mark.parametrize("priority", [-100, 0, 100])
def test_the_endpoints_runners_are_admitted(priority: int) -> None:
    assert refusals(policies(), Request(launched(priority))) == []


def test_another_image_of_the_company_is_admitted() -> None:
    assert refusals(policies(), Request(released(image={"repository": "registry.example/kitae-dev"}))) == []


def head(job: Object) -> Object:
    found: Object = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    return found


def worker(job: Object) -> Object:
    found: Object = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    return found


def submitter(job: Object) -> Object:
    found: Object = job["spec"]["submitterPodTemplate"]["spec"]
    return found


def labels(job: Object) -> Object:
    found: Object = job["metadata"]["labels"]
    return found


QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
WAYS: dict[str, tuple[Callable[[Object], Any], str]] = {
    "no queue": (lambda job: labels(job).pop(QUEUE), "queue-name must be kitae"),
    "no labels": (lambda job: job["metadata"].pop("labels"), "queue-name must be kitae"),
    "another queue": (lambda job: labels(job).update({QUEUE: "other"}), "queue-name must be kitae"),
    "no priority class": (lambda job: labels(job).pop(PRIORITY), "must be one of kitae-high, kitae-low, kitae-normal"),
    "a priority class of others": (lambda job: labels(job).update({PRIORITY: "top"}), "must be one of kitae-high"),
    "another team": (lambda job: labels(job).update({"kitae.dev/team": "green"}), "kitae.dev/team must be blue"),
    "a pod's priority": (lambda job: head(job).update(priorityClassName="high"), "priorityClassName"),
    "a node": (lambda job: worker(job).update(nodeName="gpu-1"), "nodeName"),
    "another image": (lambda job: head(job)["containers"][0].update(image="evil/kitae:1"), "image must be of"),
    "a longer repository": (
        lambda job: worker(job)["containers"][0].update(image="registry.example/kitae-evil:1"),
        "image must be of",
    ),
    "the submitter's image": (lambda job: submitter(job)["containers"][0].update(image="evil:1"), "image must be of"),
    "a container beside": (
        lambda job: worker(job)["containers"].append({"name": "b", "image": "evil:1"}),
        "image must be of",
    ),
    "an init container": (
        lambda job: worker(job).update(initContainers=[{"name": "b", "image": "registry.example/kitae:1"}]),
        "initContainers",
    ),
    "no requests": (lambda job: worker(job)["containers"][0]["resources"].pop("requests"), "requests and limits need"),
    "no memory": (lambda job: submitter(job)["containers"][0]["resources"]["limits"].pop("memory"), "need cpu, memory"),
    "no bound on disk": (
        lambda job: head(job)["containers"][0]["resources"]["limits"].pop("ephemeral-storage"),
        "ephemeral-storage",
    ),
    "limits above the requests": (
        lambda job: worker(job)["containers"][0]["resources"]["limits"].update(cpu="64"),
        "must equal their requests",
    ),
    "all GPUs by a variable": (
        lambda job: worker(job)["containers"][0]["env"].append({"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}),
        "NVIDIA_VISIBLE_DEVICES",
    ),
    "variables of a ConfigMap": (
        lambda job: worker(job)["containers"][0]["envFrom"].append({"configMapRef": {"name": "mine"}}),
        "envFrom may name Secrets only",
    ),
    "GPUs by a claim": (lambda job: worker(job).update(resourceClaims=[{"name": "gpu"}]), "resourceClaims"),
    "a running Ray cluster": (
        lambda job: job["spec"].update(clusterSelector={"ray.io/cluster": "mine"}),
        "no clusterSelector",
    ),
    "no Ray cluster": (lambda job: job["spec"].pop("rayClusterSpec"), "a Ray cluster of its own"),
    "an autoscaler": (
        lambda job: job["spec"]["rayClusterSpec"].update(enableInTreeAutoscaling=True),
        "enableInTreeAutoscaling: must be off",
    ),
    "a cluster that stays": (lambda job: job["spec"].update(shutdownAfterJobFinishes=False), "must be true"),
    "a cluster that stays a day": (lambda job: job["spec"].update(ttlSecondsAfterFinished=86400), "at most 3600"),
    "a deletion strategy": (lambda job: job["spec"].update(deletionStrategy={"deletionRules": []}), "deletionStrategy"),
    "another service account": (lambda job: head(job).update(serviceAccountName="default"), "serviceAccountName must"),
    "a token": (lambda job: head(job).update(automountServiceAccountToken=True), "automountServiceAccountToken false"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_way_around_the_quota_is_refused(way: str) -> None:
    change, reason = WAYS[way]
    job = released()
    assert refusals(policies(), Request(job)) == []
    change(job)
    assert reason in "; ".join(refusals(policies(), Request(job)))


def test_a_team_has_a_ceiling_of_priority() -> None:
    job = released("green")
    assert refusals(policies(), Request(job)) == []
    job["metadata"]["labels"][PRIORITY] = "kitae-high"
    (reason,) = refusals(policies(), Request(job))
    assert reason.endswith("must be one of kitae-low, kitae-normal, up to the maxPriority of team green")


def test_kueue_alone_starts_and_places_a_job() -> None:
    queued = released()
    queued["spec"]["suspend"] = True
    started = copy.deepcopy(queued)
    started["spec"]["suspend"] = False
    worker(started)["nodeSelector"] = {"gpu": "h100"}
    assert refusals(policies(), Request(started, groups=KUEUE, old=queued)) == []
    (reason,) = refusals(policies(), Request(started, old=queued))
    assert "Kueue alone starts it" in reason


def test_a_job_from_before_the_policy_can_end() -> None:
    old = released(image={"repository": "registry.example/former"})
    old["metadata"]["finalizers"] = ["ray.io/rayjob-finalizer", "foregroundDeletion"]
    ending = copy.deepcopy(old)
    ending["metadata"]["finalizers"] = []
    assert (
        refusals(policies(), Request(ending, user="system:serviceaccount:kube-system:garbage-collector", old=old)) == []
    )


def made(kind: str, api_version: str, **spec: Any) -> Object:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "a", "namespace": "kitae-blue"}, "spec": spec}


OTHERS = [
    made("Pod", "v1"),
    made("Job", "batch/v1"),
    *(made(kind, "ray.io/v1") for kind in ("RayCluster", "RayService", "RayCronJob")),
]


@pytest.mark.parametrize("found", OTHERS, ids=lambda found: found["kind"])
def test_pods_come_from_rayjobs_alone(found: Object) -> None:
    documents = policies()
    (reason,) = refusals(documents, Request(found, user="alice"))
    assert "create a RayJob, by the API or with charts/finetune-job" in reason
    assert refusals(documents, Request(found, groups=KUBERAY)) == []
    elsewhere = copy.deepcopy(found)
    elsewhere["metadata"]["namespace"] = "kitae"
    assert refusals(documents, Request(elsewhere, user="alice")) == []


def test_controllers_that_a_team_may_use_start_no_pods() -> None:
    job_controller = "system:serviceaccount:kube-system:job-controller"
    assert refusals(policies(), Request(OTHERS[0], user=job_controller)) == []
    for user in ("replicaset-controller", "statefulset-controller", "daemon-set-controller"):
        assert refusals(policies(), Request(OTHERS[0], user=f"system:serviceaccount:kube-system:{user}"))
    assert refusals(policies(), Request(OTHERS[1], user="system:serviceaccount:kube-system:cronjob-controller"))


def test_running_pods_do_not_grow() -> None:
    old, new = made("Pod", "v1", containers=[]), made("Pod", "v1", containers=[{"name": "more"}])
    for subresource in ("resize", "ephemeralcontainers"):
        assert refusals(policies(), Request(new, user="alice", old=old, subresource=subresource))
    cluster = [made("RayCluster", "ray.io/v1", workerGroupSpecs=[{"replicas": count}]) for count in (1, 9)]
    assert refusals(policies(), Request(cluster[1], user="alice", old=cluster[0]))
    ended = copy.deepcopy(cluster[0]) | {"metadata": cluster[0]["metadata"] | {"finalizers": []}}
    assert refusals(policies(), Request(ended, user="alice", old=cluster[0])) == []


def test_the_policy_can_be_left_out() -> None:
    for values in (chart_values.kitae(admissionPolicy={"enabled": False}), chart_values.KITAE["no teams"]):
        assert not [each for each in helm.render("kitae", values) if "AdmissionPolicy" in each["kind"]]
