"""The RayJob of a runner. Pure: the same runner gives the same document, byte for byte.

Owns names, labels and the shape of the pods. Does not know quotas: the RayJob is created suspended, and Kueue, whose
queue its label names, starts it. Every pod satisfies Pod Security `restricted`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ray_jobs.cluster.kinds import (
    JOB_LABEL,
    MANAGER,
    MANAGER_LABEL,
    OURS,
    PRIORITY_LABEL,
    QUEUE_LABEL,
    RAY_JOB,
    RUNNER_LABEL,
    TEAM_LABEL,
)
from ray_jobs.cluster.quantities import cpus, parse
from ray_jobs.cluster.settings import ClusterSettings, TeamQueue
from ray_jobs.errors import ClusterError, UnknownQueue
from ray_jobs.jobs.sigterm import STOP_WAIT
from ray_jobs.kueue.workload import PodSet
from ray_jobs.launch.launcher import Needs

Object = dict[str, Any]

LONGEST_NAME = 47
"""KubeRay's limit: it appends suffixes to the name."""
GPU_RESOURCE = "nvidia.com/gpu"
WORKERS = "workers"
"""Name of the only worker group."""
CHECKPOINT_WAIT_S = 90
"""Seconds that preStop waits for a checkpoint."""
GRACE_S = 120
"""Seconds from SIGTERM to SIGKILL: those of the checkpoint request, and half a minute more."""
STOP_WAIT_S = 100
"""Seconds that Ray leaves a runner between SIGTERM and SIGKILL when the job is stopped, e.g. with its RayJob."""
SUBMITTER = {"cpu": "500m", "memory": "200Mi"}
"""Requests of the pod that submits the entrypoint."""
HOME, CACHE, CA = "/home/kitae", "/cache", "/etc/kitae/ca"
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def team_of(settings: ClusterSettings, name: str) -> TeamQueue:
    """The queue of a team. UnknownQueue lists the teams that have one."""
    try:
        return settings.teams[name]
    except KeyError:
        known = ", ".join(sorted(settings.teams)) or "none"
        raise UnknownQueue(
            f"team {name!r} has no queue in this cluster; these have: {known}. The platform team adds one in the "
            "chart's `teams`"
        ) from None


def manifest(
    settings: ClusterSettings,
    runner_id: str,
    arguments: list[str],
    environment: Mapping[str, str],
    needs: Needs,
    *,
    ray_version: str,
) -> Object:
    """The RayJob of a runner of `python -m ray_jobs ARGUMENTS`.

    `ray_version`: the image's; KubeRay needs it to set up the token. UnknownQueue if the team has no queue;
    ClusterError if the id is no valid name.
    """
    if len(runner_id) > LONGEST_NAME or not _NAME.fullmatch(runner_id):
        raise ClusterError(
            f"{runner_id!r} cannot name a RayJob: at most {LONGEST_NAME} characters of a-z, 0-9 and -, a letter first"
        )
    team = team_of(settings, needs.team)
    labels = {
        "app.kubernetes.io/name": "kitae",
        "app.kubernetes.io/instance": runner_id,
        MANAGER_LABEL: MANAGER,
        **OURS,
        TEAM_LABEL: needs.team,
        JOB_LABEL: needs.digest,
        RUNNER_LABEL: runner_id,
    }
    # KubeRay sets `app.kubernetes.io/name: kuberay` itself and selects the head by it.
    pod_labels = {name: value for name, value in labels.items() if name != "app.kubernetes.io/name"}
    priority = settings.priority_class(needs.priority)
    queued = {**labels, QUEUE_LABEL: team.queue, **({} if priority is None else {PRIORITY_LABEL: priority})}
    scheduling = settings.scheduling
    pods = _Pods(settings, needs, environment, pod_labels)
    spec: Object = {
        "entrypoint": shlex.join(["python", "-m", "ray_jobs", *arguments]),
        "submissionMode": "K8sJobMode",
        "suspend": True,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": scheduling.ttl_s,
        "backoffLimit": scheduling.backoff_limit,
        "rayClusterSpec": {
            "rayVersion": ray_version,
            "authOptions": {"mode": "token"},
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": pods.head()},
            "workerGroupSpecs": [
                {
                    "groupName": WORKERS,
                    "replicas": needs.workers,
                    "minReplicas": needs.workers,
                    "maxReplicas": needs.workers,
                    "rayStartParams": {},
                    "template": pods.worker(),
                }
            ],
        },
        "submitterPodTemplate": pods.submitter(),
    }
    if scheduling.deadline_s is not None:
        spec["activeDeadlineSeconds"] = scheduling.deadline_s
    if scheduling.waiting_deadline_s is not None:
        spec["preRunningDeadlineSeconds"] = scheduling.waiting_deadline_s
    metadata = {"name": runner_id, "namespace": team.namespace, "labels": queued}
    return {"apiVersion": RAY_JOB.api_version, "kind": RAY_JOB.kind, "metadata": metadata, "spec": spec}


def worker_resources(settings: ClusterSettings, needs: Needs) -> dict[str, str]:
    """Requests and limits of a worker's pod: the job file's CPUs and GPUs, at least the platform's CPUs."""
    cpu = max(Decimal(str(needs.cpus_per_worker)), parse(settings.worker.cpu))
    gpus = {gpu_resource(settings): str(needs.gpus_per_worker)} if needs.gpus_per_worker else {}
    return {"cpu": cpus(float(cpu)), "memory": settings.worker.memory, **gpus}


def gpu_resource(settings: ClusterSettings) -> str:
    """Resource name of the cluster's GPUs."""
    return next((flavor.resource for flavor in settings.flavors.values() if flavor.resource is not None), GPU_RESOURCE)


def requests(settings: ClusterSettings, needs: Needs) -> list[PodSet]:
    """Pod sets of a runner, as Kueue counts them."""
    sets = [
        ("head", 1, {"cpu": settings.head.cpu, "memory": settings.head.memory}),
        (WORKERS, needs.workers, worker_resources(settings, needs)),
        ("submitter", 1, SUBMITTER),
    ]
    return [PodSet(name, count, {key: parse(value) for key, value in each.items()}) for name, count, each in sets]


class _Pods:
    """The pod templates of one runner."""

    def __init__(
        self, settings: ClusterSettings, needs: Needs, environment: Mapping[str, str], labels: Mapping[str, str]
    ) -> None:
        self._settings, self._needs, self._labels = settings, needs, labels
        plain = {
            **settings.store,
            "KITAE_CACHE": f"{CACHE}/kitae",
            "HF_HOME": f"{CACHE}/huggingface",
            "VLLM_CACHE_ROOT": f"{CACHE}/vllm",
            "TORCH_EXTENSIONS_DIR": f"{CACHE}/torch",
            "HOME": HOME,
            "PYTHONDONTWRITEBYTECODE": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            STOP_WAIT: str(STOP_WAIT_S),
            **({"AWS_CA_BUNDLE": f"{CA}/{settings.store_ca.key}"} if settings.store_ca else {}),
            **settings.environment,
            **environment,
        }
        self._environment = [{"name": name, "value": value} for name, value in plain.items()]

    def head(self) -> Object:
        head = self._settings.head
        return self._pod("ray-head", {"cpu": head.cpu, "memory": head.memory}, shared_memory=None)

    def worker(self) -> Object:
        shared = self._settings.worker.shared_memory
        return self._pod("ray-worker", worker_resources(self._settings, self._needs), shared_memory=shared)

    def submitter(self) -> Object:
        """The pod that submits the entrypoint to the head."""
        container = {
            "name": "ray-job-submitter",
            "image": self._settings.image,
            "imagePullPolicy": self._settings.image_pull_policy,
            "securityContext": _RESTRICTED,
            "env": [{"name": "HOME", "value": HOME}, {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}],
            "resources": {"requests": dict(SUBMITTER), "limits": {"cpu": "1", "memory": "1Gi"}},
            "volumeMounts": [_mounted("tmp", "/tmp"), _mounted("home", HOME)],
        }
        spec = self._spec(container, [_empty("tmp"), _empty("home")])
        return {"metadata": {"labels": dict(self._labels)}, "spec": {**spec, "restartPolicy": "Never"}}

    def _pod(self, name: str, resources: dict[str, str], *, shared_memory: str | None) -> Object:
        settings = self._settings
        memory = {"medium": "Memory", **({"sizeLimit": shared_memory} if shared_memory else {})}
        mounts = [_mounted("tmp", "/tmp"), _mounted("home", HOME), _mounted("cache", CACHE)]
        mounts.append(_mounted("shared-memory", "/dev/shm"))
        volumes = [_empty("tmp"), _empty("home"), _empty("cache", sizeLimit=settings.cache.size)]
        volumes.append({"name": "shared-memory", "emptyDir": memory})
        if settings.store_ca is not None:
            mounts.append({**_mounted("store-ca", CA), "readOnly": True})
            volumes.append({"name": "store-ca", "configMap": {"name": settings.store_ca.config_map}})
        checkpoint_request = [
            "python",
            "-m",
            "ray_jobs",
            "notice",
            self._needs.job_id,
            "--wait-s",
            str(CHECKPOINT_WAIT_S),
        ]
        container = {
            "name": name,
            "image": settings.image,
            "imagePullPolicy": settings.image_pull_policy,
            "securityContext": _RESTRICTED,
            "env": self._environment,
            "envFrom": [{"secretRef": {"name": settings.store_secret}}],
            "resources": {"requests": dict(resources), "limits": dict(resources)},
            "lifecycle": {"preStop": {"exec": {"command": checkpoint_request}}},
            "volumeMounts": mounts,
        }
        return {"metadata": {"labels": dict(self._labels)}, "spec": self._spec(container, volumes)}

    def _spec(self, container: Object, volumes: list[Object]) -> Object:
        security = self._settings.pod_security
        pull = [{"name": name} for name in self._settings.image_pull_secrets]
        return {
            "serviceAccountName": self._settings.service_account,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": GRACE_S,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": security.run_as_user,
                "runAsGroup": security.run_as_group,
                "fsGroup": security.fs_group,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **({"imagePullSecrets": pull} if pull else {}),
            "containers": [container],
            "volumes": volumes,
        }


_RESTRICTED: Object = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def _mounted(name: str, path: str) -> Object:
    return {"name": name, "mountPath": path}


def _empty(name: str, **facts: str) -> Object:
    return {"name": name, "emptyDir": dict(facts)}
