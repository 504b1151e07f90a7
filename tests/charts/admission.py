"""ValidatingAdmissionPolicies, evaluated as an API server does: which requests a policy refuses, and why.

Owns the evaluator: the wheel `cel-expr-python` (CEL's C++ implementation) is downloaded once, verified by digest and
kept as `.kitae/tools/cel-VERSION`. Only standard CEL and its string functions exist here, so a policy that uses a
Kubernetes library fails. Linux on x86-64 and CPython 3.11 only.
"""

from __future__ import annotations

import fcntl
import importlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.charts import helm
from tests.charts.manifests import Object

_REQUIREMENT = "cel-expr-python==0.1.3"
_SHA256 = "292ae505727bfcfc1986c8bf653c2580faa06f46af56b9087060eafdf2a08652"
_RESOURCES = {
    "RayJob": "rayjobs",
    "RayCluster": "rayclusters",
    "RayService": "rayservices",
    "RayCronJob": "raycronjobs",
}


@dataclass(frozen=True)
class Request:
    """A request to create an object, or with `old` to update it."""

    object: Object
    groups: tuple[str, ...] = ("system:authenticated",)
    user: str = "someone"
    old: Object | None = None
    subresource: str = ""

    @property
    def operation(self) -> str:
        return "CREATE" if self.old is None else "UPDATE"

    @property
    def resource(self) -> str:
        kind = self.object["kind"]
        return _RESOURCES.get(kind, f"{kind.lower()}s")


def refusals(documents: list[Object], request: Request) -> list[str]:
    """Messages of every policy among the documents that refuses the request. An error counts as a refusal."""
    namespace = {"kubernetes.io/metadata.name": request.object["metadata"]["namespace"]}
    policies = {
        each["metadata"]["name"]: each["spec"] for each in documents if each["kind"].endswith("AdmissionPolicy")
    }
    found = []
    for binding in (each["spec"] for each in documents if each["kind"] == "ValidatingAdmissionPolicyBinding"):
        (selected,) = binding["matchResources"]["namespaceSelector"]["matchExpressions"]
        assert selected["operator"] == "In"
        assert binding["validationActions"] == ["Deny"]
        policy = policies[binding["policyName"]]
        if namespace.get(selected["key"]) in selected["values"] and _matches(policy, request):
            found += _refusals(policy, request)
    return found


def _matches(policy: Object, request: Request) -> bool:
    group = request.object["apiVersion"].rpartition("/")[0].partition("/")[0]
    name = f"{request.resource}/{request.subresource}" if request.subresource else request.resource
    return any(
        group in rule["apiGroups"] and request.operation in rule["operations"] and name in rule["resources"]
        for rule in policy["matchConstraints"]["resourceRules"]
    )


def _refusals(policy: Object, request: Request) -> list[str]:
    variables: dict[str, Any] = {}
    data = {
        "object": request.object,
        "oldObject": request.old,
        "request": {
            "operation": request.operation,
            "resource": {"resource": request.resource},
            "userInfo": {"username": request.user, "groups": list(request.groups)},
        },
        "variables": variables,
    }
    if not all(_evaluate(each["expression"], data) is True for each in policy["matchConditions"]):
        return []
    for variable in policy.get("variables", []):
        # An API server evaluates a variable where it is used; one that fails fails the validations that use it.
        value = _evaluate(variable["expression"], data)
        if not isinstance(value, _Failed):
            variables[variable["name"]] = value
    found = []
    for validation in policy["validations"]:
        result = _evaluate(validation["expression"], data)
        if result is not True:
            message = validation.get("message") or _evaluate(validation["messageExpression"], data)
            found.append(str(result) if isinstance(result, _Failed) else str(message))
    return found


class _Failed(str):
    """The error of an expression."""


def _evaluate(expression: str, data: Mapping[str, Any]) -> Any:
    result = _compiled(expression).eval(data=dict(data))
    return _Failed(result.plain_value()) if result.type() == _cel().Type.ERROR else result.plain_value()


@cache
def _compiled(expression: str) -> Any:
    cel, strings = _cel(), importlib.import_module("cel_expr_python.ext.ext_strings")
    names = ("object", "oldObject", "request", "variables")
    environment = cel.NewEnv(variables=dict.fromkeys(names, cel.Type.DYN), extensions=[strings.ExtStrings()])
    return environment.compile(expression)


@cache
def _cel() -> Any:
    target = helm.TOOLS / f"cel-{_REQUIREMENT.partition('==')[2]}"
    helm.TOOLS.parent.mkdir(mode=0o700, exist_ok=True)
    helm.TOOLS.mkdir(exist_ok=True)
    with (helm.TOOLS / "lock").open("w") as lock:  # several test processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            part = target.with_suffix(".part")
            with zipfile.ZipFile(io.BytesIO(_wheel())) as wheel:
                wheel.extractall(part)
            part.rename(target)
    sys.path.append(str(target))
    return importlib.import_module("cel_expr_python.cel")


def _wheel() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", directory, _REQUIREMENT], check=True)
        (path,) = Path(directory).glob("*.whl")
        content = path.read_bytes()
    helm.check_digest(content, _SHA256, _REQUIREMENT)
    return content
