"""JSON schemas of the custom resources, with only the fields that Kitae reads and writes.

They replace KubeRay's and Kueue's schemas where these are missing; beside them they restrict the fields that Kitae
writes.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from tests.repository import ROOT

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
ANYTHING: Schema = {"type": "object"}
QUANTITY: Schema = {
    "type": ["string", "integer"],
    "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$",
}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def record(required: str = "", /, **fields: Schema) -> Schema:
    """An object with these fields; `required`: names of the required ones, separated by spaces."""
    return {"type": "object", "additionalProperties": False, "required": required.split(), "properties": fields}


def of(each: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": each}


def by_name(each: Schema) -> Schema:
    return {"type": "object", "additionalProperties": each}


def texts(*names: str) -> dict[str, Schema]:
    return dict.fromkeys(names, TEXT)


LABELS = by_name(TEXT)
_HELD = one_of("None", "Hold", "HoldAndDrain")
_CONDITIONS = of(
    record(
        "type status reason message lastTransitionTime",
        status=one_of("True", "False", "Unknown"),
        observedGeneration=COUNT,
        **texts("type", "reason", "message", "lastTransitionTime"),
    )
)

# ---- pods

_CONTAINER = record(
    "name image",
    **texts("name", "image"),
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    securityContext=record(
        allowPrivilegeEscalation=FLAG, readOnlyRootFilesystem=FLAG, capabilities=record("drop", drop=of(TEXT))
    ),
    env=of(record("name value", **texts("name", "value"))),
    envFrom=of(record("secretRef", secretRef=record("name", name=TEXT))),
    resources=record(requests=by_name(QUANTITY), limits=by_name(QUANTITY)),
    lifecycle=record("preStop", preStop=record("exec", exec=record("command", command=of(TEXT)))),
    volumeMounts=of(record("name mountPath", readOnly=FLAG, **texts("name", "mountPath"))),
)
_VOLUME = record(
    "name",
    name=TEXT,
    emptyDir=record(medium=one_of("Memory"), sizeLimit=QUANTITY),
    configMap=record("name", name=TEXT),
)
_POD_SECURITY = record(
    runAsNonRoot=FLAG,
    runAsUser=COUNT,
    runAsGroup=COUNT,
    fsGroup=COUNT,
    seccompProfile=record("type", type=one_of("RuntimeDefault")),
)
_TEMPLATE = record(
    "spec",
    metadata=record(labels=LABELS),
    spec=record(
        "containers",
        serviceAccountName=TEXT,
        automountServiceAccountToken=FLAG,
        terminationGracePeriodSeconds=COUNT,
        securityContext=_POD_SECURITY,
        imagePullSecrets=of(record("name", name=TEXT)),
        containers=of(_CONTAINER),
        volumes=of(_VOLUME),
        restartPolicy=one_of("Never"),
    ),
)

# ---- KubeRay

_GROUP = record(
    "groupName replicas minReplicas maxReplicas rayStartParams template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=by_name(TEXT),
    template=_TEMPLATE,
)
_RAY_JOB = record(
    "entrypoint submissionMode shutdownAfterJobFinishes backoffLimit rayClusterSpec submitterPodTemplate",
    entrypoint=TEXT,
    submissionMode=one_of("K8sJobMode"),
    suspend=FLAG,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT,
    preRunningDeadlineSeconds=COUNT,
    rayClusterSpec=record(
        "rayVersion authOptions headGroupSpec workerGroupSpecs",
        rayVersion=TEXT,
        authOptions=record("mode", mode=one_of("token")),
        headGroupSpec=record("rayStartParams template", rayStartParams=by_name(TEXT), template=_TEMPLATE),
        workerGroupSpecs=of(_GROUP),
    ),
    submitterPodTemplate=_TEMPLATE,
)
_RAY_JOB_STATUS = record(
    failed=COUNT,
    **texts("jobDeploymentStatus", "jobStatus", "reason", "message", "rayClusterName", "startTime", "endTime"),
)

# ---- Kueue

_QUOTAS = of(
    record(
        "coveredResources flavors",
        coveredResources=of(TEXT),
        flavors=of(
            record(
                "name resources",
                name=TEXT,
                resources=of(
                    record(
                        "name nominalQuota",
                        name=TEXT,
                        nominalQuota=QUANTITY,
                        borrowingLimit=QUANTITY,
                        lendingLimit=QUANTITY,
                    )
                ),
            )
        ),
    )
)
_USAGE = of(
    record(
        "name resources",
        name=TEXT,
        resources=of(record("name total", name=TEXT, total=QUANTITY, borrowed=QUANTITY)),
    )
)
_CLUSTER_QUEUE = record(
    cohortName=TEXT,
    namespaceSelector=record(matchLabels=LABELS, matchExpressions=of(ANYTHING)),
    queueingStrategy=one_of("StrictFIFO", "BestEffortFIFO"),
    preemption=ANYTHING,
    flavorFungibility=ANYTHING,
    fairSharing=record(weight=QUANTITY),
    stopPolicy=_HELD,
    resourceGroups=_QUOTAS,
)
_CLUSTER_QUEUE_STATUS = record(
    flavorsReservation=_USAGE,
    flavorsUsage=_USAGE,
    pendingWorkloads=COUNT,
    reservingWorkloads=COUNT,
    admittedWorkloads=COUNT,
    fairSharing=ANYTHING,
    conditions=_CONDITIONS,
)
_WORKLOAD = record(
    "podSets",
    queueName=TEXT,
    priority={"type": "integer"},
    priorityClassRef=ANYTHING,
    active=FLAG,
    podSets=of(record("name count template", name=TEXT, count=COUNT, template=ANYTHING)),
)
_WORKLOAD_STATUS = record(
    conditions=_CONDITIONS,
    admission=ANYTHING,
    admissionChecks=of(ANYTHING),
    requeueState=ANYTHING,
    schedulingStats=ANYTHING,
)
_FLAVOR = record(
    nodeLabels=LABELS,
    nodeTaints=of(ANYTHING),
    tolerations=of(record(tolerationSeconds=COUNT, **texts("key", "operator", "value", "effect"))),
)
_COHORT = record(parentName=TEXT, resourceGroups=_QUOTAS, fairSharing=record(weight=QUANTITY))


def _kind(api_version: str, kind: str, spec: Schema | None, status: Schema = ANYTHING, **fields: Schema) -> Schema:
    required = ["apiVersion", "kind", "metadata", *([] if spec is None else ["spec"]), *fields]
    own = {} if spec is None else {"spec": spec, "status": status}
    named = {"apiVersion": one_of(api_version), "kind": one_of(kind), "metadata": {**ANYTHING, "required": ["name"]}}
    return record(" ".join(required), **named, **own, **fields)


_KUEUE = "kueue.x-k8s.io/v1beta2"
SCHEMAS: Mapping[str, Schema] = {
    "ray.io/v1/RayJob": _kind("ray.io/v1", "RayJob", _RAY_JOB, _RAY_JOB_STATUS),
    f"{_KUEUE}/ClusterQueue": _kind(_KUEUE, "ClusterQueue", _CLUSTER_QUEUE, _CLUSTER_QUEUE_STATUS),
    f"{_KUEUE}/LocalQueue": _kind(_KUEUE, "LocalQueue", record("clusterQueue", clusterQueue=TEXT, stopPolicy=_HELD)),
    f"{_KUEUE}/Workload": _kind(_KUEUE, "Workload", _WORKLOAD, _WORKLOAD_STATUS),
    f"{_KUEUE}/Cohort": _kind(_KUEUE, "Cohort", _COHORT),
    f"{_KUEUE}/ResourceFlavor": _kind(_KUEUE, "ResourceFlavor", _FLAVOR),
    f"{_KUEUE}/WorkloadPriorityClass": _kind(_KUEUE, "WorkloadPriorityClass", None, value={"type": "integer"}),
}


@cache
def validators(*, emitted: bool) -> Mapping[str, list[Draft202012Validator]]:
    """Schemas by `group/version/Kind`: this project's and, if `../shared/crds` exists, the operator's.

    `emitted`: for manifests as the charts emit them (`custom_resources.json`), else for objects on a server.
    """
    here = Path(__file__).parent
    shared = ROOT.parent / "shared/crds/schemas.json.gz"
    documents = [json.loads((here / "custom_resources.json").read_text(encoding="utf-8")) if emitted else SCHEMAS]
    if shared.is_file():
        documents.append(json.loads(gzip.decompress(shared.read_bytes())))
    found: dict[str, list[Draft202012Validator]] = {}
    for document in documents:
        for name, schema in document.items():
            found.setdefault(name, []).append(Draft202012Validator(schema))
    return found
