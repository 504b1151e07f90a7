"""The RayJob of a runner. Pure: the same runner gives the same document, byte for byte, on one version of Ray.

Owns names, labels and the shape of the pods. Does not know quotas: the RayJob is created suspended, and Kueue, whose
queue its label names, starts it. Every pod satisfies Pod Security `restricted`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from decimal import Decimal
from importlib.metadata import version

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
    Object,
)
from ray_jobs.cluster.quantities import parse, text
from ray_jobs.cluster.settings import ClusterSettings, TeamQueue
from ray_jobs.errors import ClusterError, UnknownQueue
from ray_jobs.jobs.sigterm import STOP_WAIT
from ray_jobs.kueue.objects import PodSet
from ray_jobs.launch.launcher import Needs
from ray_jobs.spec import TRACKING_CREDENTIALS

LONGEST_NAME = 47
"""KubeRay's limit: it appends suffixes to the name."""
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
_DISK = "ephemeral-storage"
"""Resource name of a node's disk. Not part of a quota (infra/operators/kueue.yaml)."""
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
    settings: ClusterSettings, runner_id: str, arguments: list[str], environment: Mapping[str, str], needs: Needs
) -> Object:
    """The RayJob of a runner of `python -m ray_jobs ARGUMENTS`.

    UnknownQueue if the team has no queue; ClusterError if the id is no valid name.
    """
    if len(runner_id) > LONGEST_NAME or not _NAME.fullmatch(runner_id):
        raise ClusterError(
            f"{runner_id!r} cannot name a RayJob: at most {LONGEST_NAME} characters of a-z, 0-9 and -, a letter first"
        )
    team = team_of(settings, needs.team)
    labels = {
        "app.kubernetes.io/instance": runner_id,
        MANAGER_LABEL: MANAGER,
        **OURS,
        TEAM_LABEL: needs.team,
        JOB_LABEL: needs.digest,
        RUNNER_LABEL: runner_id,
    }
    # Not on the pods: KubeRay sets `app.kubernetes.io/name: kuberay` itself and selects the head by it.
    queued = {"app.kubernetes.io/name": "kitae", **labels, QUEUE_LABEL: team.queue}
    if (priority := settings.priority_class(needs.priority)) is not None:
        queued[PRIORITY_LABEL] = priority
    scheduling = settings.scheduling
    pods = _Pods(settings, needs, environment, labels)
    spec: Object = {
        "entrypoint": shlex.join(["python", "-m", "ray_jobs", *arguments]),
        "submissionMode": "K8sJobMode",
        "suspend": True,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": scheduling.ttl_s,
        "backoffLimit": scheduling.backoff_limit,
        "rayClusterSpec": {
            "rayVersion": version("ray"),  # jobs run in this process' image; KubeRay needs it to set up the token
            "authOptions": {"mode": "token"},
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0"},
                "template": pods.training("ray-head", settings.head.model_dump(), settings.head.memory),
            },
            "workerGroupSpecs": [
                {
                    "groupName": WORKERS,
                    "replicas": needs.workers,
                    "minReplicas": needs.workers,
                    "maxReplicas": needs.workers,
                    "rayStartParams": {},
                    "template": pods.training(
                        "ray-worker", worker_resources(settings, needs), settings.worker.shared_memory
                    ),
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
    resources = {"cpu": text(round(cpu, 3)), "memory": settings.worker.memory}
    if needs.gpus_per_worker:
        gpus = [flavor.resource for flavor in settings.flavors.values() if flavor.resource is not None]
        resources[gpus[0] if gpus else "nvidia.com/gpu"] = str(needs.gpus_per_worker)
    return resources


def requests(settings: ClusterSettings, needs: Needs) -> list[PodSet]:
    """Pod sets of a runner, as Kueue counts them."""
    sets = [
        ("head", 1, settings.head.model_dump()),
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
            "KITAE_TEAM": needs.team,
        }
        self._environment: list[Object] = [{"name": name, "value": value} for name, value in plain.items()]
        if (secret := settings.tracking_secret) is not None:
            # By name, so that the Secret sets nothing else; a tracker whose key is missing ends no job.
            self._environment += [
                {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name, "optional": True}}}
                for name in TRACKING_CREDENTIALS
                if name not in plain
            ]

    def submitter(self) -> Object:
        """The pod that submits the entrypoint to the head."""
        container = {
            "name": "ray-job-submitter",
            "env": [{"name": "HOME", "value": HOME}, {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}],
            "resources": {
                "requests": {**SUBMITTER, _DISK: "100Mi"},
                "limits": {"cpu": "1", "memory": "1Gi", _DISK: "2Gi"},
            },
        }
        volumes = [_empty("tmp", "/tmp", sizeLimit="1Gi"), _empty("home", HOME, sizeLimit="1Gi")]
        return self._template(container, volumes, restartPolicy="Never")

    def training(self, name: str, resources: Mapping[str, str], shared_memory: str) -> Object:
        """The head or a worker. `shared_memory`: size of /dev/shm."""
        volumes = [
            _empty("tmp", "/tmp", sizeLimit="20Gi"),
            _empty("home", HOME, sizeLimit="1Gi"),
            _empty("cache", CACHE, sizeLimit=self._settings.cache.size),
            _empty("shared-memory", "/dev/shm", medium="Memory", sizeLimit=shared_memory),
        ]
        if self._settings.store_ca is not None:
            config_map = {"name": "store-ca", "configMap": {"name": self._settings.store_ca.config_map}}
            volumes.append(({"name": "store-ca", "mountPath": CA, "readOnly": True}, config_map))
        notice = f"python -m ray_jobs notice {self._needs.job_id} --wait-s {CHECKPOINT_WAIT_S}"
        container = {
            "name": name,
            "env": self._environment,
            "envFrom": [{"secretRef": {"name": self._settings.store_secret}}],
            "resources": {
                "requests": {**resources, _DISK: "1Gi"},
                "limits": {**resources, _DISK: self._settings.disk},
            },
            "lifecycle": {"preStop": {"exec": {"command": notice.split()}}},
        }
        return self._template(container, volumes)

    def _template(self, container: Object, volumes: list[tuple[Object, Object]], **spec: str) -> Object:
        """A pod of one container. `volumes`: each mount and its volume."""
        settings, security = self._settings, self._settings.pod_security
        container |= {
            "image": settings.image,
            "imagePullPolicy": settings.image_pull_policy,
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [mount for mount, _ in volumes],
        }
        pull = [{"name": name} for name in settings.image_pull_secrets]
        pod = {
            "serviceAccountName": settings.service_account,
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
            "volumes": [volume for _, volume in volumes],
            **spec,
        }
        return {"metadata": {"labels": dict(self._labels)}, "spec": pod}


def _empty(name: str, path: str, **options: str) -> tuple[Object, Object]:
    """An empty directory: its mount and its volume."""
    return {"name": name, "mountPath": path}, {"name": name, "emptyDir": dict(options)}
