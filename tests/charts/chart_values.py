"""Values for tests of the charts: the smallest valid ones, and one change for each option.

Does not know how they are rendered.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

Values = dict[str, Any]

PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """`changes` over `values`, mapping by mapping."""
    found = copy.deepcopy(dict(values))
    for key, value in changes.items():
        old = found.get(key)
        found[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return found


def kitae(**changes: Any) -> Values:
    """The smallest values of the chart kitae, with two teams and two flavors."""
    quota = {"cpu": {"nominal": "96"}, "memory": {"nominal": "1Ti"}}
    small = {"cpu": {"nominal": "16"}, "memory": {"nominal": "64Gi"}}
    base: Values = {
        "image": {"repository": "registry.example/kitae"},
        "store": {"uri": "s3://models/kitae", "endpointUrl": "https://s3.example"},
        "secrets": {"apiKey": {"existingSecret": "an-api-key"}, "store": {"existingSecret": "a-store"}},
        "networkPolicy": {"store": {"cidrs": ["10.20.0.0/16"]}},
        "flavors": {
            "h100": {"resource": "nvidia.com/gpu", "nodeLabels": {"gpu": "h100"}, "pricePerHour": 3.2},
            "cpu": {"pricePerHour": 0.1},
        },
        "teams": {
            "blue": {"weight": 2, "quotas": {"h100": quota | {"gpu": {"nominal": 8, "lendingLimit": 4}}, "cpu": small}},
            "green": {"quotas": {"cpu": small}},
        },
    }
    return merged(base, changes)


def job(**changes: Any) -> Values:
    """The smallest values of the chart finetune-job."""
    base: Values = {
        "image": {"repository": "registry.example/kitae"},
        "store": {"uri": "s3://models/kitae", "endpointUrl": "https://s3.example", "existingSecret": "a-store"},
        "endpointUrl": "http://kitae-serve-svc.kitae.svc:8000",
        "job": {
            "spec": {
                "name": "faq-chat",
                "task": "chat",
                "base_model": "s3://models/bases/small",
                "team": "blue",
                "data": {"train": "s3://models/rows.jsonl"},
                "compute": {"workers": 2, "gpus_per_worker": 1},
            }
        },
    }
    return merged(base, changes)


_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
_PLACED = {"nodeSelector": {"pool": "kitae"}, "tolerations": [_TOLERATION], "priorityClassName": "important"}
_REDIS = {"enabled": True, "redisAddress": "redis.kitae:6379", "existingSecret": "a-redis"}
_REDIS_POD = {"namespaceLabels": {"kubernetes.io/metadata.name": "redis"}, "podLabels": {"app": "redis"}}
_EXTERNAL = {"enabled": True, "storeName": "vault", "apiKey": "kitae/key", "store": "kitae/store"}
_OPEN_RULE = {"to": [{"ipBlock": {"cidr": "10.30.0.9/32"}}], "ports": [{"protocol": "TCP", "port": 443}]}

KITAE: dict[str, Values] = {
    "gpu": kitae(),
    "cpu": kitae(profile="cpu"),
    "no teams": kitae() | {"teams": {}, "flavors": {}},
    "image by digest": kitae(
        image={"digest": "sha256:" + "a" * 64, "pullPolicy": "Always", "pullSecrets": ["regcred"]}
    ),
    "image by tag": kitae(image={"tag": "1.2.3"}),
    "region, authority in PEM": kitae(store={"region": "eu-1", "ca": {"pem": PEM}}),
    "existing authority": kitae(store={"ca": {"existingConfigMap": "company-ca", "key": "root.pem"}}),
    "external secrets": kitae(
        secrets={
            "apiKey": {"existingSecret": ""},
            "store": {"existingSecret": ""},
            "externalSecrets": _EXTERNAL,
        },
        teams={"blue": {"storeSecretEntry": "kitae/blue"}, "green": {"storeSecretEntry": "kitae/green"}},
    ),
    "ray": kitae(ray={"tokenSecret": "a-token", "upgradeStrategy": "None", "oldClusterStaysSeconds": 0}),
    "redis": kitae(gcsFaultTolerance=_REDIS | {"egress": _REDIS_POD}),
    "placed": kitae(head=_PLACED, api=_PLACED, inference=_PLACED, topologySpread=False),
    "small": kitae(api={"minReplicas": 1, "maxReplicas": 1}, inference={"minReplicas": 1, "maxReplicas": 1}),
    "no budgets": kitae(podDisruptionBudgets={"enabled": False}),
    "environment": kitae(environment={"KITAE_WEBHOOKS_PRIVATE": "on", "HOME": "/home/kitae"}),
    "jobs": kitae(
        jobs={"deadlineSeconds": 86400, "waitingDeadlineSeconds": 600, "environment": {"NCCL_DEBUG": "INFO"}}
    ),
    "queues elsewhere": kitae(queues={"enabled": False}),
    "flavor elsewhere": kitae(flavors={"cpu": {"create": False}, "h100": {"tolerations": [_TOLERATION]}}),
    "borrowing": kitae(queues={"preemption": {"borrowWithinCohort": {"policy": "LowerPriority"}}}),
    "namespace elsewhere": kitae(
        teams={
            "blue": {
                "namespace": "team-blue",
                "createNamespace": False,
                "submitters": [{"kind": "Group", "name": "blue", "apiGroup": "rbac.authorization.k8s.io"}],
            }
        }
    ),
    "no network policy": kitae(networkPolicy={"enabled": False}),
    "network": kitae(
        networkPolicy={
            "store": {"cidrs": [], "namespaceLabels": {"a": "b"}, "podLabels": {"app": "minio"}, "ports": [9000]},
            "kubernetesApi": {"cidrs": ["10.0.0.1/32"], "ports": [6443]},
            "clients": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
            "webhooks": False,
            "extraEgress": [_OPEN_RULE],
            "extraJobEgress": [_OPEN_RULE],
        }
    ),
    "tracking": kitae(
        tracking={"existingSecret": "trackers", "wandb": True},
        networkPolicy={"tracking": {"cidrs": ["10.40.0.7/32"], "ports": [443, 5000]}},
        profiles={"gpu": {"jobDefaults": {"tracking": {"wandb": {"project": "p", "entity": "ours"}}}}},
    ),
    "ingress": kitae(
        ingress={
            "enabled": True,
            "className": "nginx",
            "host": "kitae.example",
            "tlsSecret": "tls",
            "annotations": {"a": "b"},
        }
    ),
    "own gateway": kitae(gateway={"enabled": True, "host": "kitae.example", "className": "envoy", "tlsSecret": "tls"}),
    "existing gateway": kitae(
        gateway={
            "enabled": True,
            "host": "kitae.example",
            "parent": {"name": "g", "namespace": "gw", "sectionName": "https"},
        }
    ),
    "monitoring": kitae(
        monitoring={
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "rules": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboard": {"enabled": True},
        }
    ),
    "open metrics": kitae(monitoring={"open": True, "serviceMonitor": {"enabled": True}}),
    "offline": kitae(offline={"enabled": True}),
    "a mirror": kitae(offline={"enabled": True, "hubUrl": "https://hub.example"}),
}

JOB: dict[str, Values] = {
    "gpu": job(),
    "cpu": job(job={"spec": {"compute": {"workers": 1, "gpus_per_worker": 0}}}),
    "no compute": job()
    | {"job": {"spec": {key: value for key, value in job()["job"]["spec"].items() if key != "compute"}}},
    "text": job() | {"job": {"spec": "name: a\ntask: chat\nbase_model: b\ndata: {train: c}  # rows\n"}},
    "not deployed": job(job={"spec": {"serving": {"deploy": False}}}, endpointUrl=""),
    "no queue": job(queue=""),
    "no priority": job(priorityClass=""),
    "deadlines": job(retries=0, deadlineSeconds=3600, waitingDeadlineSeconds=600, ttlSeconds=0),
    "authority": job(store={"region": "eu-1", "ca": {"existingConfigMap": "company-ca"}}),
    "tracking": job(tracking={"existingSecret": "trackers"}),
    "placed": job(nodeSelector={"pool": "kitae"}, tolerations=[_TOLERATION], serviceAccount="other"),
    "nccl": job(nccl={"NCCL_SOCKET_IFNAME": "eth0"}, environment={"OMP_NUM_THREADS": "4"}),
    "image": job(image={"digest": "sha256:" + "b" * 64, "pullSecrets": ["regcred"]}, ray={"tokenSecret": "a-token"}),
}
