"""Settings and queues for tests of a cluster."""

from __future__ import annotations

from typing import Any

from ray_jobs.cluster.kinds import Object

SETTINGS: dict[str, Any] = {
    "image": "registry.example/kitae:0.1.0",
    "image_pull_secrets": ["regcred"],
    "store": {"KITAE_STORE": "s3://kitae/prod", "AWS_ENDPOINT_URL": "http://store:8333", "AWS_REGION": "us-east-1"},
    "store_ca": {"config_map": "store-ca", "key": "ca.crt"},
    "teams": {
        "blue": {"namespace": "kitae-blue", "queue": "kitae", "cohort": "kitae", "cluster_queue": "kitae-blue"},
        "red": {"namespace": "kitae-red", "queue": "kitae", "cohort": "kitae", "cluster_queue": "kitae-red"},
    },
    "flavors": {
        "h100": {"resource": "nvidia.com/gpu", "node_labels": {"gpu": "h100"}, "price_per_hour": 3.2},
        "cpu": {"resource": None, "price_per_hour": 0.1},
    },
    "priority_classes": {"kitae-low": -100, "kitae-normal": 0, "kitae-high": 100},
    "environment": {"NCCL_DEBUG": "WARN"},
}


def cluster_queue(
    name: str,
    *,
    gpus: int = 8,
    cpu: str = "64",
    memory: str = "256Gi",
    borrowing: int | None = None,
    lending: int | None = None,
    cohort: str | None = "kitae",
    flavor: str = "h100",
) -> Object:
    """A team's ClusterQueue with GPUs, CPUs and memory in one flavor."""
    limits = {} if borrowing is None else {"borrowingLimit": borrowing}
    limits |= {} if lending is None else {"lendingLimit": lending}
    resources = [
        {"name": "cpu", "nominalQuota": cpu},
        {"name": "memory", "nominalQuota": memory},
        {"name": "nvidia.com/gpu", "nominalQuota": gpus, **limits},
    ]
    spec: dict[str, Any] = {
        "namespaceSelector": {},
        "resourceGroups": [
            {
                "coveredResources": ["cpu", "memory", "nvidia.com/gpu"],
                "flavors": [{"name": flavor, "resources": resources}],
            }
        ],
    }
    if cohort is not None:
        spec["cohortName"] = cohort
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "ClusterQueue",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "kitae"}},
        "spec": spec,
    }


def local_queue(name: str, cluster_queue: str) -> Object:
    """A LocalQueue."""
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "LocalQueue",
        "metadata": {"name": name},
        "spec": {"clusterQueue": cluster_queue},
    }


def priority_class(name: str, value: int) -> Object:
    """A WorkloadPriorityClass."""
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "WorkloadPriorityClass",
        "metadata": {"name": name},
        "value": value,
    }
