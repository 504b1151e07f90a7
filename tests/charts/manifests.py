"""Checks of a manifest as an API server makes them: schemas, Pod Security `restricted`, names and labels.

Does not know the source of the manifest. The schemas of custom kinds are in `tests.cluster.schemas`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
from kubernetes_validate import utils
from referencing import Registry, Resource

from tests.cluster.schemas import validators

KUBERNETES = "1.37"
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_ALLOWED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"}
_ALLOWED_VOLUMES |= {"secret", "name"}

Object = dict[str, Any]


def findings(document: Object) -> list[str]:
    """Every reason for which an API server would refuse a document."""
    kind, name = f"{document['apiVersion']}/{document['kind']}", document["metadata"]["name"]
    found = [f"{kind} {name}: {text}" for text in [*_schema(document, kind), *_metadata(document)]]
    # KubeRay adds the autoscaler's container to the head's pod.
    options = document.get("spec", {}).get("rayClusterConfig", {}).get("autoscalerOptions", {})
    autoscaler = {mount["name"] for mount in options.get("volumeMounts", [])}
    for where, template in pod_templates(document):
        beside = autoscaler if "headGroupSpec" in where else set()
        found += [f"{kind} {name} {where}: {text}" for text in [*_pod(template, beside), *violations(template["spec"])]]
    return found


def _schema(document: Object, kind: str) -> Iterator[str]:
    if kind in validators(emitted=True):
        for schema in validators(emitted=True)[kind]:
            for error in schema.iter_errors(document):
                yield f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        return
    for error in _core(document["kind"], document["apiVersion"]).iter_errors(document):
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"


@cache
def _core(kind: str, api_version: str) -> jsonschema.Draft202012Validator:
    """The strict schema of a core kind. Cached, because reading the definitions takes a megabyte of JSON."""
    folder = f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict"
    group, _, version = api_version.rpartition("/")
    name = "-".join(filter(None, [kind.lower(), group.partition(".")[0], version]))
    schema, definitions = (
        Resource.from_contents(utils.schema_contents(f"{folder}/{file}.json", KUBERNETES))
        for file in (name, "_definitions")
    )
    registry: Registry[Any] = schema @ Registry()
    return jsonschema.Draft202012Validator(schema.contents, registry=definitions @ registry)


def _pod(template: Object, beside: set[str]) -> Iterator[str]:
    """`beside`: volumes that a container mounts which is not in the template."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template.get("metadata", {}), "spec": template["spec"]}
    yield from _schema(pod, "v1/Pod")
    volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
    mounted = {mount["name"] for each in containers(template["spec"]) for mount in each.get("volumeMounts", [])}
    if mounted | beside != volumes:
        yield f"mounts {sorted(mounted)} of the volumes {sorted(volumes)}"
    for container in containers(template["spec"]):
        names = [variable["name"] for variable in container.get("env", [])]
        if len(names) != len(set(names)):
            yield f"{container['name']} has a variable twice"


def unbounded(spec: Object) -> list[str]:
    """Volumes and containers of a pod's spec that may fill the node's disk or memory."""
    volumes = [
        each["name"] for each in spec.get("volumes", []) if "sizeLimit" not in each.get("emptyDir", {"sizeLimit": 0})
    ]
    limits = {each["name"]: each["resources"]["limits"] for each in containers(spec)}
    return [*volumes, *(name for name, limit in limits.items() if not {"memory", "ephemeral-storage"} <= set(limit))]


def _metadata(document: Object) -> Iterator[str]:
    name, kind = document["metadata"]["name"], document["kind"]
    if not _SUBDOMAIN.fullmatch(name) or len(name) > 253:
        yield "the name is no DNS subdomain"
    if kind in ("RayJob", "RayService") and (len(name) > 47 or not _DNS_1035.fullmatch(name)):
        yield f"the name has {len(name)} characters, or is no DNS-1035 label"
    if kind in ("Service", "Namespace") and len(name) > 63:
        yield f"the name has {len(name)} characters"
    for key, value in document["metadata"].get("labels", {}).items():
        if not isinstance(value, str) or len(value) > 63 or not _LABEL_VALUE.fullmatch(value):
            yield f"the label {key} is {value!r}"


def pod_templates(document: Any, where: str = "") -> Iterator[tuple[str, Object]]:
    """Every pod template in a document: each mapping whose `spec` has `containers`."""
    if isinstance(document, dict):
        spec = document.get("spec")
        if isinstance(spec, dict) and "containers" in spec:
            yield where, document
        for key, value in document.items():
            yield from pod_templates(value, f"{where}.{key}")
    elif isinstance(document, list):
        for number, value in enumerate(document):
            yield from pod_templates(value, f"{where}[{number}]")


def containers(spec: Object) -> list[Object]:
    return [each for kind in ("initContainers", "containers", "ephemeralContainers") for each in spec.get(kind, [])]


def violations(spec: Object) -> list[str]:
    """Violations of Pod Security `restricted` (v1.37) in a pod's spec."""
    found = [f"{key} is true" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    for volume in spec.get("volumes", []):
        found += [f"volume {volume['name']} is a {kind}" for kind in sorted(set(volume) - _ALLOWED_VOLUMES)]
    pod = spec.get("securityContext", {})
    if pod.get("sysctls"):
        found.append("has sysctls")
    for container in containers(spec):
        own = container.get("securityContext", {})
        name = container["name"]
        found += [
            f"{name} has hostPort {port['hostPort']}" for port in container.get("ports", []) if "hostPort" in port
        ]
        if own.get("privileged"):
            found.append(f"{name} is privileged")
        if own.get("allowPrivilegeEscalation") is not False:
            found.append(f"{name} does not forbid allowPrivilegeEscalation")
        if "ALL" not in own.get("capabilities", {}).get("drop", []):
            found.append(f"{name} does not drop ALL capabilities")
        if set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
            found.append(f"{name} adds capabilities")
        if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
            found.append(f"{name} may run as root")
        if own.get("runAsUser", pod.get("runAsUser")) == 0:
            found.append(f"{name} runs as user 0")
        if own.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in ("RuntimeDefault", "Localhost"):
            found.append(f"{name} has no seccompProfile")
        if own.get("procMount", "Default") != "Default":
            found.append(f"{name} has procMount {own['procMount']}")
        for context in (own, pod):
            if context.get("seLinuxOptions", {}).get("user") or context.get("seLinuxOptions", {}).get("role"):
                found.append(f"{name} has an SELinux user or role")
            if context.get("appArmorProfile", {}).get("type") == "Unconfined":
                found.append(f"{name} is unconfined by AppArmor")
    return found
