"""Settings of the platform team: `cluster.yaml`, which the chart mounts and KITAE_CLUSTER names.

Owns names, defaults and checks. Does not know Kubernetes objects; only `from_environment` does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ray_jobs.errors import SpecError
from ray_jobs.spec.problems import problems

KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""A Kubernetes name of at most 63 characters."""
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")]
"""A Kubernetes quantity of CPUs or memory: 500m, 4, 16Gi."""


class SettingsSection(BaseModel):
    """A section of the file: frozen; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ConfigMapKey(SettingsSection):
    config_map: str
    """Name of a ConfigMap in each team's namespace."""
    key: str = "ca.crt"
    """Key in the ConfigMap."""


class TeamQueue(SettingsSection):
    namespace: KubernetesName
    """Namespace of the team's jobs."""
    queue: KubernetesName
    """LocalQueue in the namespace."""
    cohort: str | None = None
    """Cohort of queues that lend to each other. None: the team has only its own quota."""
    cluster_queue: str
    """ClusterQueue with the team's quota."""
    max_priority: int = Field(100, ge=-100, le=100)
    """Highest priority of the team's jobs. The cluster's admission policy has the same bound."""


class Toleration(SettingsSection):
    key: str | None = None
    operator: str = "Equal"
    value: str | None = None
    effect: str | None = None
    tolerationSeconds: int | None = None


class Flavor(SettingsSection):
    resource: str | None = None
    """GPU resource that a worker requests: nvidia.com/gpu. None: nodes without GPUs."""
    node_labels: dict[str, str] = Field(default_factory=dict)
    """Labels of its nodes; Kueue adds them to the node selector of the pods that it admits there."""
    tolerations: tuple[Toleration, ...] = ()
    """Tolerations that Kueue adds to these pods."""
    price_per_hour: float | None = Field(None, ge=0)
    """Price of one GPU; without GPUs, of one CPU. None: unknown."""


class WorkerPod(SettingsSection):
    """Defaults of a training worker's pod."""

    cpu: Quantity = "4"
    memory: Quantity = "16Gi"
    gpu: int = Field(1, ge=0)
    shared_memory: Quantity = "8Gi"
    """Size of /dev/shm, which counts as memory of the pod."""


class HeadPod(SettingsSection):
    """The Ray head's pod, which runs no training."""

    cpu: Quantity = "1"
    memory: Quantity = "4Gi"


class Cache(SettingsSection):
    size: Quantity = "50Gi"
    """Size of each pod's cache for bases, rows and compiled operators."""


class Scheduling(SettingsSection):
    backoff_limit: int = Field(3, ge=0)
    """Restarts of a failed job by KubeRay, each with a new Ray cluster, before the runner counts as ended."""
    deadline_s: int | None = Field(None, ge=1)
    """Longest run time of an admitted runner. None: no limit."""
    waiting_deadline_s: int | None = Field(None, ge=1)
    """Longest time from admission until the Ray cluster is ready. None: no limit."""
    ttl_s: int = Field(60, ge=0)
    """Seconds for which the Ray cluster of an ended RayJob is kept; the RayJob itself is kept longer."""


class PodSecurity(SettingsSection):
    run_as_user: int = Field(1000, ge=1)
    run_as_group: int = Field(1000, ge=1)
    fs_group: int = Field(1000, ge=1)


class ClusterSettings(SettingsSection):
    """The whole file."""

    image: str
    """Image of a job's head, workers and submitter."""
    image_pull_policy: str = Field("IfNotPresent", pattern=r"^(Always|IfNotPresent|Never)$")
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets in each team's namespace."""
    service_account: str = "kitae-job"
    """Service account of a job's pods, in each team's namespace; it has no permissions."""
    store: dict[str, str] = Field(default_factory=dict)
    """Environment variables that configure the store."""
    store_secret: str = "kitae-store"
    """Secret in each team's namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""
    tracking_secret: str | None = None
    """Secret in each team's namespace with the trackers' credentials, by the names of their environment variables.
    None: jobs have no credentials for trackers."""
    store_ca: ConfigMapKey | None = None
    """The store's certificate authority. None: the image trusts it."""
    teams: dict[str, TeamQueue] = Field(default_factory=dict)
    """Queues by team."""
    flavors: dict[str, Flavor] = Field(default_factory=dict)
    """Kueue's ResourceFlavors: kinds of nodes."""
    priority_classes: dict[str, int] = Field(default_factory=dict)
    """WorkloadPriorityClasses. A job gets the highest class that is not above its priority, else the lowest."""
    worker: WorkerPod = WorkerPod()
    head: HeadPod = HeadPod()
    cache: Cache = Cache()
    disk: Quantity = "80Gi"
    """Limit of each training pod's files on its node's disk: cache, temporary files and logs. A pod above it is
    evicted."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Further environment variables of a job's pods."""
    scheduling: Scheduling = Scheduling()
    pod_security: PodSecurity = PodSecurity()

    @model_validator(mode="after")
    def _unambiguous(self) -> ClusterSettings:
        places: dict[tuple[str, str], str] = {}
        for name, team in self.teams.items():
            other = places.setdefault((team.namespace, team.queue), name)
            if other != name:
                raise ValueError(f"teams {other} and {name} share the queue {team.queue} in {team.namespace}")
        return self

    def priority_class(self, priority: int) -> str | None:
        """The class of a job with this priority (-100 to 100). None: no classes are configured."""
        ordered = sorted(self.priority_classes.items(), key=lambda item: item[1])
        fitting = [name for name, value in ordered if value <= priority]
        return fitting[-1] if fitting else ordered[0][0] if ordered else None


def parse(document: Any, *, source: str = "the cluster's settings") -> ClusterSettings:
    """Validate a document. SpecError lists every problem."""
    try:
        return ClusterSettings.model_validate(document)
    except ValidationError as error:
        details = [f"{where or 'the file'}: {message}" for where, message in problems(error.errors(), document)]
        raise SpecError(f"{source}: {len(details)} field(s) are wrong", details=details) from error


def from_environment(environment: Mapping[str, str]) -> ClusterSettings | None:
    """The settings in the file that KITAE_CLUSTER names. None: the variable is not set. SpecError lists every
    problem."""
    path = environment.get("KITAE_CLUSTER")
    if not path:
        return None
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"KITAE_CLUSTER names {path}, which is not readable YAML: {error}") from error
    return parse(document, source=path)
