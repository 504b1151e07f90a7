"""What a cluster's platform team has decided: `cluster.yaml`, which the chart mounts and KITAE_CLUSTER names.

Owns names, defaults and checks. Knows nothing of Kubernetes' objects: no I/O beyond `load` reading the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ray_jobs.errors import SpecError

ENVIRONMENT_VARIABLE = "KITAE_CLUSTER"

Label = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""A name in Kubernetes: at most 63 characters."""
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")]
"""Of CPUs or memory, as Kubernetes writes it: 500m, 4, 16Gi."""


class Part(BaseModel):
    """A part of the file: frozen, and a field it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ConfigMapKey(Part):
    config_map: str
    """A ConfigMap in each team's namespace."""
    key: str = "ca.crt"
    """Of it."""


class Team(Part):
    namespace: Label
    """Where the team's jobs go."""
    queue: Label
    """The LocalQueue there."""
    cohort: str | None = None
    """Of queues that lend to each other. None: the team has what is its own."""
    cluster_queue: str
    """Whose quota it is."""


class Toleration(Part):
    key: str | None = None
    operator: str = "Equal"
    value: str | None = None
    effect: str | None = None
    tolerationSeconds: int | None = None


class Flavor(Part):
    resource: str | None = None
    """What a worker asks for: nvidia.com/gpu. None: nodes without GPUs."""
    node_labels: dict[str, str] = Field(default_factory=dict)
    """Of the nodes it means; Kueue adds them to the pods that it admits there."""
    tolerations: tuple[Toleration, ...] = ()
    """Likewise."""
    price_per_hour: float | None = Field(None, ge=0)
    """Of one GPU; without GPUs, of one CPU. None: not known."""


class Worker(Part):
    """A training worker's pod, where the job file does not say otherwise."""

    cpu: Quantity = "4"
    memory: Quantity = "16Gi"
    gpu: int = Field(1, ge=0)
    shared_memory: Quantity = "8Gi"
    """/dev/shm, which counts as memory of the pod."""


class Head(Part):
    """The head's pod, which trains nothing."""

    cpu: Quantity = "1"
    memory: Quantity = "4Gi"


class Cache(Part):
    size: Quantity = "50Gi"
    """Of each pod's own, for bases, rows and compiled operators."""


class Scheduling(Part):
    backoff_limit: int = Field(3, ge=0)
    """How often KubeRay starts a failed job anew, with a new Ray cluster, before the runner counts as ended."""
    deadline_s: int | None = Field(None, ge=1)
    """Longest time a runner may take once it is admitted. None: no limit."""
    waiting_deadline_s: int | None = Field(None, ge=1)
    """Longest time an admitted runner may take until its Ray cluster is there. None: no limit."""
    ttl_s: int = Field(60, ge=0)
    """How long the Ray cluster of a RayJob that has ended stays; the RayJob itself stays longer."""


class PodSecurity(Part):
    run_as_user: int = Field(1000, ge=1)
    run_as_group: int = Field(1000, ge=1)
    fs_group: int = Field(1000, ge=1)


class ClusterSettings(Part):
    """The whole file."""

    image: str
    """Of a job's head, workers and submitter."""
    image_pull_policy: str = Field("IfNotPresent", pattern=r"^(Always|IfNotPresent|Never)$")
    image_pull_secrets: tuple[str, ...] = ()
    """Names of Secrets in each team's namespace."""
    service_account: str = "kitae-job"
    """Of a job's pods; exists in each team's namespace, and may do nothing."""
    store: dict[str, str] = Field(default_factory=dict)
    """Plain environment that names the store."""
    store_secret: str = "kitae-store"
    """Secret in each team's namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""
    store_ca: ConfigMapKey | None = None
    """The store's certificate authority. None: one that the image trusts."""
    teams: dict[str, Team] = Field(default_factory=dict)
    """Where a team's jobs go."""
    flavors: dict[str, Flavor] = Field(default_factory=dict)
    """Kinds of nodes: Kueue's ResourceFlavors."""
    priority_classes: dict[str, int] = Field(default_factory=dict)
    """WorkloadPriorityClasses; a job gets the highest whose value is not above its priority, else the lowest."""
    worker: Worker = Worker()
    head: Head = Head()
    cache: Cache = Cache()
    environment: dict[str, str] = Field(default_factory=dict)
    """Further plain environment of a job's pods."""
    scheduling: Scheduling = Scheduling()
    pod_security: PodSecurity = PodSecurity()

    @model_validator(mode="after")
    def _unambiguous(self) -> ClusterSettings:
        places: dict[tuple[str, str], str] = {}
        for name, team in self.teams.items():
            other = places.setdefault((team.namespace, team.queue), name)
            if other != name:
                raise ValueError(f"teams {other} and {name} have the same queue {team.queue} in {team.namespace}")
        return self

    def priority_class(self, priority: int) -> str | None:
        """For a job of this priority (-100 to 100). None: there are no classes."""
        ordered = sorted(self.priority_classes.items(), key=lambda item: item[1])
        fitting = [name for name, value in ordered if value <= priority]
        return fitting[-1] if fitting else ordered[0][0] if ordered else None


def load(path: Path) -> ClusterSettings:
    """Read the file. SpecError with everything that is wrong."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{ENVIRONMENT_VARIABLE} names {path}, which is not readable YAML: {error}") from error
    return parse(document, source=str(path))


def parse(document: Any, *, source: str = "the cluster's settings") -> ClusterSettings:
    """Validate a document. SpecError with one detail a finding."""
    try:
        return ClusterSettings.model_validate(document)
    except ValidationError as error:
        details = [f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}" for item in error.errors()]
        raise SpecError(f"{source}: {len(details)} field(s) are wrong", details=details) from error


def from_environment(environment: Mapping[str, str]) -> ClusterSettings | None:
    """Of the file that KITAE_CLUSTER names. None: it names none."""
    path = environment.get(ENVIRONMENT_VARIABLE)
    return load(Path(path)) if path else None
