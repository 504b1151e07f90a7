"""The objects of the fake API server: versions, conflicts, selectors, deletion, and the history that watches read.

Does not know HTTP. A refusal is a `Refused` with the Status of a real server.
"""

from __future__ import annotations

import copy
import itertools
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from ray_jobs.cluster.kinds import (
    CLUSTER_QUEUE,
    COHORT,
    CONFIG_MAP,
    LOCAL_QUEUE,
    NODE,
    POD,
    RAY_JOB,
    RESOURCE_FLAVOR,
    WORKLOAD,
    Kind,
    Object,
)
from tests.cluster.schemas import validators

PRIORITY_CLASS = replace(CLUSTER_QUEUE, plural="workloadpriorityclasses", kind="WorkloadPriorityClass")
KINDS = (
    RAY_JOB, WORKLOAD, CLUSTER_QUEUE, LOCAL_QUEUE, RESOURCE_FLAVOR, PRIORITY_CLASS, COHORT, POD, NODE, CONFIG_MAP,
)  # fmt: skip
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
LONGEST_RAY_JOB = 47
"""Limit of KubeRay's webhook."""


class Refused(Exception):
    """A request refused with a Status."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": reason, "details": details, "code": code,
        }  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One line of the history."""

    version: int
    kind: Kind
    type: str
    object: Object
    before: Object | None


def findings(body: Object) -> list[str]:
    """Schema violations of an object, as `path: message`."""
    name = f"{body.get('apiVersion')}/{body.get('kind')}"
    errors = itertools.chain.from_iterable(
        schema.iter_errors(body) for schema in validators(emitted=False).get(name, [])
    )
    return sorted({f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in errors})


@dataclass
class Objects:
    """All objects of the server."""

    kinds: set[Kind] = field(default_factory=lambda: set(KINDS))
    """Served kinds; a test may remove a kind or replace its version."""
    namespaces: set[str] | None = None
    """Existing namespaces. None: all."""
    webhooks: list[Callable[[Kind, Object, Object | None], None]] = field(default_factory=list)
    """Called with an object before it is written and its previous version; may change it, or raise `Refused`."""
    deletion_lingers: bool = False
    """A deleted object stays with a deletionTimestamp until `collect`."""
    version: int = 100
    history: list[Change] = field(default_factory=list)
    forgotten: int = 0
    """The last version that has expired."""
    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))
    _stored: dict[tuple[Kind, str, str], Object] = field(default_factory=dict)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def list(self, kind: Kind, namespace: str | None = None, selector: str = "", fields: str = "") -> list[Object]:
        with self.changed:
            keys = sorted(key for key in self._stored if key[0] == kind and namespace in (None, key[1]))
            found = [self._stored[key] for key in keys]
            return [copy.deepcopy(o) for o in found if selects(selector, o) and selects_fields(fields, o)]

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        with self.changed:
            return copy.deepcopy(self._found(kind, name, namespace))

    def find(self, kind: Kind, name: str, namespace: str | None = None) -> Object | None:
        with self.changed:
            found = self._stored.get((kind, namespace or "", name))
            return copy.deepcopy(found)

    # ---- writing -----------------------------------------------------------------------------------------------------

    def create(self, kind: Kind, body: Object, namespace: str | None = None) -> Object:
        with self.changed:
            made = copy.deepcopy(body)
            metadata = made.setdefault("metadata", {})
            if kind.namespaced:
                self._must_have_namespace(namespace)
                if metadata.setdefault("namespace", namespace) != namespace:
                    raise bad_request("the namespace of the provided object does not match the namespace sent")
            if metadata.get("resourceVersion"):
                raise bad_request("resourceVersion should not be set on objects to be created")
            if "generateName" in metadata and "name" not in metadata:
                metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
            if (kind, namespace or "", metadata.get("name")) in self._stored:
                raise _status(kind, metadata["name"], 409, "AlreadyExists", "already exists")
            made.pop("status", None)  # a subresource, written by its controller only
            self._admit(kind, made, None)
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1}
            return self._put(kind, made, "ADDED")

    def patch(self, kind: Kind, name: str, body: Object, namespace: str | None = None) -> Object:
        """Apply a merge patch. Without a change the resourceVersion stays."""
        with self.changed:
            return self.replace(kind, name, merged(self._found(kind, name, namespace), body), namespace)

    def replace(self, kind: Kind, name: str, body: Object, namespace: str | None = None) -> Object:
        """Replace an object except its status."""
        with self.changed:
            old, new = self._found(kind, name, namespace), copy.deepcopy(body)
            given = new.get("metadata", {}).get("resourceVersion")
            if given is not None and given != old["metadata"]["resourceVersion"]:
                changed = "the object has been modified; please apply your changes to the latest version and try again"
                raise _status(kind, name, 409, "Conflict", changed)
            for fact in ("uid", "creationTimestamp", "deletionTimestamp", "generation", "name", "namespace"):
                if fact in old["metadata"]:
                    new["metadata"][fact] = old["metadata"][fact]
            new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
            new = (
                {**new, "status": old["status"]} if "status" in old else {k: v for k, v in new.items() if k != "status"}
            )
            self._admit(kind, new, old)
            if new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] = old["metadata"]["generation"] + 1
            if new == old:
                return copy.deepcopy(new)
            return self._put_or_finish(kind, new)

    def set_status(self, kind: Kind, name: str, namespace: str | None, status: Object) -> Object:
        """Merge into the status, as the kind's controller does."""
        with self.changed:
            new = copy.deepcopy(self._found(kind, name, namespace))
            new["status"] = merged(new.get("status", {}), status)
            problems = findings(new)
            assert not problems, problems
            if new == self._found(kind, name, namespace):
                return new
            return self._put(kind, new, "MODIFIED")

    def set_created(self, kind: Kind, name: str, namespace: str | None, at: str) -> None:
        """Change the creationTimestamp, as if the object were older."""
        with self.changed:
            self._found(kind, name, namespace)["metadata"]["creationTimestamp"] = at

    def delete(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        """Delete an object with everything that it owns."""
        with self.changed:
            old = copy.deepcopy(self._found(kind, name, namespace))
            if self.deletion_lingers or old["metadata"].get("finalizers"):
                if "deletionTimestamp" in old["metadata"]:
                    return old
                old["metadata"]["deletionTimestamp"] = now()
                return self._put(kind, old, "MODIFIED")
            return self._remove(kind, old)

    def collect(self) -> None:
        """Remove the lingering deleted objects and those that they own."""
        with self.changed:
            for (kind, _, _), old in list(self._stored.items()):
                metadata = old["metadata"]
                if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
                    self._remove(kind, old)

    def forget(self) -> None:
        """Forget the history: earlier watches and pages are answered with 410."""
        with self.changed:
            self.forgotten = self.version
            self.history.clear()
            self.changed.notify_all()

    # ---- rules -------------------------------------------------------------------------------------------------------

    def _found(self, kind: Kind, name: str, namespace: str | None) -> Object:
        try:
            return self._stored[kind, namespace or "", name]
        except KeyError:
            raise _status(kind, name, 404, "NotFound", "not found") from None

    def _must_have_namespace(self, namespace: str | None) -> None:
        if self.namespaces is not None and namespace not in self.namespaces:
            message = f'namespaces "{namespace}" not found'
            raise Refused(404, "NotFound", message, name=namespace, kind="namespaces")

    def _admit(self, kind: Kind, new: Object, old: Object | None) -> None:
        if (new.get("apiVersion"), new.get("kind")) != (kind.api_version, kind.kind):
            raise bad_request(f"the object is a {new.get('apiVersion')} {new.get('kind')}, not a {kind.kind}")
        for webhook in self.webhooks:
            webhook(kind, new, old)
        problems = findings(new) + _metadata_findings(kind, new["metadata"])
        if problems:
            name = new["metadata"].get("name")
            causes = [dict(zip(("field", "message"), problem.split(": ", 1), strict=True)) for problem in problems]
            message = f'{kind.kind}.{kind.group} "{name}" is invalid: {"; ".join(problems)}'
            raise Refused(422, "Invalid", message, name=name, group=kind.group, kind=kind.kind, causes=causes)

    def _put_or_finish(self, kind: Kind, new: Object) -> Object:
        if "deletionTimestamp" in new["metadata"] and not new["metadata"].get("finalizers"):
            return self._remove(kind, new)
        return self._put(kind, new, "MODIFIED")

    def _put(self, kind: Kind, new: Object, what: str) -> Object:
        key = (kind, new["metadata"].get("namespace", ""), new["metadata"]["name"])
        self._write(kind, new, what, self._stored.get(key))
        self._stored[key] = new
        return copy.deepcopy(new)

    def _remove(self, kind: Kind, old: Object) -> Object:
        for (other, _, _), child in list(self._stored.items()):
            if any(o["uid"] == old["metadata"]["uid"] for o in child["metadata"].get("ownerReferences", [])):
                self._remove(other, child)
        key = (kind, old["metadata"].get("namespace", ""), old["metadata"]["name"])
        before = self._stored.pop(key, None)
        gone = copy.deepcopy(old)
        self._write(kind, gone, "DELETED", before)
        return gone

    def _write(self, kind: Kind, new: Object, what: str, before: Object | None) -> None:
        self.version += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        self.history.append(Change(self.version, kind, what, copy.deepcopy(new), copy.deepcopy(before)))
        self.changed.notify_all()


def seen_as(change: Change, selector: str) -> str | None:
    """The type of the event for a watch with this selector. None: no event."""
    now_in = selects(selector, change.object)
    was_in = change.before is not None and selects(selector, change.before)
    if change.type == "DELETED" or not now_in:
        return "DELETED" if was_in or (change.type == "DELETED" and now_in) else None
    return "MODIFIED" if was_in else "ADDED"


def selects(selector: str, found: Object) -> bool:
    """A label selector (`a=b`, `a!=b`, `a`, `!a`, `a in (b,c)`) matches an object."""
    labels = found["metadata"].get("labels") or {}
    for term in re.findall(r"[^,(]+(?:\([^)]*\))?", selector):
        term = term.strip().lstrip(",")
        if match := re.fullmatch(r"(\S+)\s+(in|notin)\s+\((.*)\)", term):
            values = [value.strip() for value in match[3].split(",")]
            if (labels.get(match[1]) in values) != (match[2] == "in"):
                return False
        elif match := re.fullmatch(r"([^!=]+)(=|==|!=)([^=]*)", term):
            if (labels.get(match[1]) == match[3]) != (match[2] != "!="):
                return False
        elif (term.lstrip("!") in labels) == term.startswith("!"):
            return False
    return True


def selects_fields(selector: str, found: Object) -> bool:
    """A field selector (`a.b=c`) matches an object."""
    for term in filter(None, selector.split(",")):
        path, _, wanted = term.partition("=")
        value: Any = found
        for part in path.split("."):
            value = value.get(part, "") if isinstance(value, dict) else ""
        if value != wanted:
            return False
    return True


def merged(old: Any, change: Any) -> Any:
    """JSON merge patch (RFC 7386)."""
    if not isinstance(change, dict):
        return copy.deepcopy(change)
    result = dict(old) if isinstance(old, dict) else {}
    for name, value in change.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def bad_request(message: str) -> Refused:
    return Refused(400, "BadRequest", message)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _status(kind: Kind, name: str, code: int, reason: str, what: str) -> Refused:
    message = (
        f'{kind.resource} "{name}" {what}'
        if code != 409 or reason == "AlreadyExists"
        else (f'Operation cannot be fulfilled on {kind.resource} "{name}": {what}')
    )
    return Refused(code, reason, message, name=name, group=kind.group, kind=kind.plural)


def _metadata_findings(kind: Kind, metadata: Object) -> list[str]:
    name = str(metadata.get("name", ""))
    found = [] if _NAME.fullmatch(name) else [f"metadata.name: {name!r} is no RFC 1123 subdomain"]
    if kind == RAY_JOB and (len(name) > LONGEST_RAY_JOB or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)):
        found.append(f"metadata.name: {name!r} should be no more than {LONGEST_RAY_JOB} characters, and DNS-1035")
    for key, value in (metadata.get("labels") or {}).items():
        if not _LABEL_KEY.fullmatch(key):
            found.append(f"metadata.labels: {key!r} is no label")
        if not isinstance(value, str) or not _LABEL.fullmatch(value):
            found.append(f"metadata.labels: {value!r} of {key} must be a string of at most 63 characters")
    return found
