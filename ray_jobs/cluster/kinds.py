"""The kinds of Kubernetes objects that Kitae reads and writes, and the labels of its own objects. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object, as its JSON."""

TEAM_LABEL = "kitae.dev/team"
JOB_LABEL = "kitae.dev/job"
"""16 hex digits of the job's id."""
RUNNER_LABEL = "kitae.dev/runner"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
RELEASE_ANNOTATION = "kitae.dev/release"
"""On a RayJob of charts/finetune-job: the ConfigMap that exists as long as its Helm release."""
MANAGER_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "kitae"
"""Manager of the RayJobs that the launcher creates and deletes; Helm manages its own releases."""
OURS = {"app.kubernetes.io/part-of": "kitae"}
"""Label of every object that Kitae creates."""


@dataclass(frozen=True)
class Kind:
    """A kind of object, in one version."""

    group: str
    """Empty: the core group."""
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """Name in RBAC and `kubectl`: `rayjobs.ray.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None = None) -> str:
        """URL path of the collection."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        return f"{root}/namespaces/{namespace}/{self.plural}" if namespace else f"{root}/{self.plural}"


_KUEUE = "kueue.x-k8s.io"
RAY_JOB = Kind("ray.io", "v1", "rayjobs", "RayJob")
WORKLOAD = Kind(_KUEUE, "v1beta2", "workloads", "Workload")
CLUSTER_QUEUE = Kind(_KUEUE, "v1beta2", "clusterqueues", "ClusterQueue", namespaced=False)
LOCAL_QUEUE = Kind(_KUEUE, "v1beta2", "localqueues", "LocalQueue")
RESOURCE_FLAVOR = Kind(_KUEUE, "v1beta2", "resourceflavors", "ResourceFlavor", namespaced=False)
COHORT = Kind(_KUEUE, "v1beta2", "cohorts", "Cohort", namespaced=False)
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
POD = Kind("", "v1", "pods", "Pod")
NODE = Kind("", "v1", "nodes", "Node", namespaced=False)

OPERATORS = {"ray.io": "KubeRay 1.7", _KUEUE: "Kueue 0.19"}
"""The operator that serves a group, in the oldest supported version."""
