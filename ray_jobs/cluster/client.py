"""The Kubernetes API: objects as plain documents, and every failure as an error with its fix.

Owns requests, pages, watches and the reading of refusals, over the official client's connection and credentials. Does
not know what the objects mean, and caches nothing.

A request refused with 401 is sent once more with new credentials; a read whose connection broke is sent up to three
times. A write is sent once, because a lost answer does not show whether it was done: its caller makes it idempotent.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from ray_jobs.cluster.kinds import MANAGER, OPERATORS, Kind, Object
from ray_jobs.errors import (
    AlreadyExists,
    ClusterError,
    ClusterUnreachable,
    Expired,
    Forbidden,
    NoSuchKind,
    ObjectChanged,
    ObjectRefused,
)

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, Configuration

Labels = Mapping[str, str] | None
"""Labels that objects must have."""

_CONNECT_S, _READ_S = 5.0, 30.0
_METHODS = {"create": "POST", "patch": "PATCH", "delete": "DELETE"}
"""By RBAC verb; the others are GET."""


@dataclass(frozen=True)
class WatchEvent:
    """One line of a watch."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: Object
    """A BOOKMARK has only `metadata.resourceVersion`."""

    @property
    def version(self) -> str:
        """resourceVersion from which the next watch starts."""
        return str(self.object["metadata"]["resourceVersion"])


@dataclass(frozen=True)
class Listing:
    """Every object of a kind, and the resourceVersion from which a watch starts."""

    items: list[Object]
    version: str


class Cluster:
    """See the module. Safe to use from several threads."""

    def __init__(self, log_in: Callable[[], ApiClient], *, page_size: int = 500) -> None:
        """`log_in` reads the credentials; it is called again when they have expired. `page_size`: objects a page."""
        self._log_in = log_in
        self._page_size = page_size
        self._lock = threading.Lock()
        self._api = log_in()

    @classmethod
    def connect(cls) -> Self:
        """Log in with the pod's service account, else KUBECONFIG (~/.kube/config). ClusterUnreachable without both."""
        return cls(_from_environment)

    def list(self, kind: Kind, namespace: str | None = None, *, labels: Labels = None) -> list[Object]:
        """Objects of a kind with these labels, in one namespace or in all."""
        return self.listing(kind, namespace, labels=labels).items

    def listing(self, kind: Kind, namespace: str | None = None, *, labels: Labels = None) -> Listing:
        """`list`, with the resourceVersion."""
        items: list[Object] = []
        query = {**_selected(labels), "limit": str(self._page_size)}
        while True:
            try:
                page = self._ask("list", kind, namespace, query=query)
            except _Absent as error:
                raise ClusterError(f"{kind.resource} cannot be listed: {error.message}") from error
            except Expired:
                if "limit" not in query:
                    raise
                items, query = [], _selected(labels)  # a later page of an expired version: all again, in one page
                continue
            # The items of a list lack apiVersion and kind.
            items += [{"apiVersion": kind.api_version, "kind": kind.kind, **item} for item in page.get("items") or []]
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return Listing(items, str(metadata.get("resourceVersion", "")))
            query = {**query, "continue": str(metadata["continue"])}

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object | None:
        """One object. None: it does not exist."""
        try:
            return self._ask("get", kind, namespace, name)
        except _Absent:
            return None

    def create(self, kind: Kind, body: Object, namespace: str | None = None) -> Object:
        """Create an object. AlreadyExists if its name is taken; ObjectRefused if it is invalid."""
        try:
            return self._ask("create", kind, namespace, body=body)
        except _Absent as error:
            raise ObjectRefused(f"{kind.kind} cannot be created in namespace {namespace!r}: {error.message}") from error

    def patch(self, kind: Kind, name: str, body: Object, namespace: str | None = None) -> Object:
        """Change an object (JSON merge patch). ObjectChanged if the body has a `metadata.resourceVersion` that is no
        longer current; ObjectRefused if the object does not exist or would be invalid."""
        try:
            return self._ask("patch", kind, namespace, name, body=body)
        except _Absent as error:
            raise ObjectRefused(f"{_place(kind, name, namespace)} does not exist") from error

    def delete(self, kind: Kind, name: str, namespace: str | None = None) -> bool:
        """Delete an object after those that it owns. False: it does not exist."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
        try:
            self._ask("delete", kind, namespace, name, body=body)
        except _Absent:
            return False
        return True

    def watch(
        self, kind: Kind, namespace: str | None, *, labels: Labels = None, since: str, timeout_s: float
    ) -> Iterator[WatchEvent]:
        """Changes after the version `since`, until the server ends the watch, after `timeout_s` at the latest.

        Expired if the server no longer has that version: list again. ClusterUnreachable if the connection breaks.
        """
        from urllib3.exceptions import HTTPError

        query = {
            "watch": "1",
            "resourceVersion": since,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(timeout_s))),
            **_selected(labels),
        }
        response = self._send("GET", kind.path(namespace), query, timeout_s=timeout_s + _READ_S)
        if response.status != 200:
            raise self._refusal(response, "watch", kind, namespace, None)
        try:
            for line in response.response:
                if line.strip():
                    yield _event(json.loads(line), kind)
        except (HTTPError, OSError, ValueError) as error:  # ValueError: a truncated line, or no JSON
            raise ClusterUnreachable(f"the watch of {kind.resource} broke ({type(error).__name__})") from error
        finally:
            response.response.close()

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _ask(
        self,
        verb: str,
        kind: Kind,
        namespace: str | None,
        name: str | None = None,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Object:
        path = kind.path(namespace) + (f"/{name}" if name is not None else "")
        if verb in ("create", "patch"):  # the owner of the fields, in the server's records and in Helm's conflicts
            query = {"fieldManager": MANAGER}
        response = self._send(_METHODS.get(verb, "GET"), path, query or {}, body)
        if not 200 <= response.status < 300:
            name = name or (body or {}).get("metadata", {}).get("name")
            raise self._refusal(response, verb, kind, namespace, name)
        answer = _json(response)
        if answer is None:
            raise ClusterUnreachable(f"{self._api.configuration.host} does not answer as a Kubernetes API")
        return answer

    def _send(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None = None, timeout_s: float = _READ_S
    ) -> Any:
        """The raw response; after a 401, the one with new credentials."""
        api = self._api
        response = _send_once(api, method, path, query, body, timeout_s)
        if response.status != 401:
            return response
        response.response.close()
        with self._lock:
            if self._api is api:
                self._api = self._log_in()
        response = _send_once(self._api, method, path, query, body, timeout_s)
        if response.status == 401:
            raise ClusterUnreachable(
                f"the Kubernetes API at {api.configuration.host} refuses these credentials, also after reading them "
                "again: log in again, or check that the pod's service account still exists"
            )
        return response

    def _refusal(self, response: Any, verb: str, kind: Kind, namespace: str | None, name: str | None) -> ClusterError:
        status = _json(response) or {}
        code, reason = response.status, str(status.get("reason", ""))
        detail = str(status.get("message") or response.reason or "")[:2000]
        details = status.get("details") or {}
        where = _place(kind, name, namespace)
        if code == 404:
            # The answer names a missing object, but not a missing kind.
            return _Absent(detail) if details.get("name") else self._no_such_kind(kind)
        # Admission webhooks and quotas also answer 403; this one is the authorizer's.
        if code == 403 and re.search(r"cannot \w+ (resource|path)", detail):
            return _forbidden(detail, verb, kind, namespace)
        if code == 409:
            if reason == "AlreadyExists":
                return AlreadyExists(f"{where} already exists")
            return ObjectChanged(f"{where} was changed by another client: {detail}")
        if code == 410:
            return Expired(f"{kind.resource}: the server no longer has the requested version")
        if code in (400, 403, 422):
            causes = [f"{cause.get('field')}: {cause.get('message')}" for cause in details.get("causes") or []]
            return ObjectRefused(f"{where} is refused: {detail}", details=causes)
        return ClusterUnreachable(f"the Kubernetes API answered {code} to {verb} {where}: {detail}")

    def _no_such_kind(self, kind: Kind) -> NoSuchKind:
        fix = f"install {OPERATORS.get(kind.group, 'a newer Kubernetes')} or newer (infra/operators)"
        try:
            response = self._send("GET", f"/apis/{kind.group}", {})
            group = _json(response) if response.status == 200 else None
        except ClusterError:
            group = None
        versions = [str(version["version"]) for version in (group or {}).get("versions", [])]
        if versions and kind.version not in versions:
            served = ", ".join(versions)
            return NoSuchKind(f"the cluster serves {kind.group} in {served}, and {kind.version} is needed: {fix}")
        return NoSuchKind(f"the cluster has no {kind.resource} in version {kind.version}: {fix}")


class _Absent(ClusterError):
    """The object or its namespace does not exist."""


def _send_once(
    api: ApiClient, method: str, path: str, query: Mapping[str, str], body: Object | None, timeout_s: float
) -> Any:
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    headers = {"Accept": "application/json"}
    if body is not None:
        headers["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
    request = api.param_serialize(
        method, path, query_params=list(query.items()), header_params=headers, body=body, auth_settings=["BearerToken"]
    )
    try:
        return api.call_api(*request, _request_timeout=(_CONNECT_S, timeout_s))
    except (HTTPError, ApiException, OSError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        message = f"the Kubernetes API at {api.configuration.host} does not answer: {str(reason)[:300]}"
        raise ClusterUnreachable(message) from error


def _json(response: Any) -> Object | None:
    from urllib3.exceptions import HTTPError

    try:
        document = json.loads(response.read() or b"null")
    except HTTPError as error:
        raise ClusterUnreachable(
            f"the connection to the Kubernetes API broke while reading its answer ({type(error).__name__})"
        ) from error
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _event(line: Object, kind: Kind) -> WatchEvent:
    if line["type"] == "ERROR":
        status = line["object"]
        if status.get("code") == 410:
            raise Expired(f"{kind.resource}: the server no longer has the version to watch from")
        raise ClusterUnreachable(f"the watch of {kind.resource} ended: {status.get('message')}")
    return WatchEvent(line["type"], line["object"])


def _selected(labels: Labels) -> dict[str, str]:
    return {"labelSelector": ",".join(f"{key}={value}" for key, value in labels.items())} if labels else {}


def _place(kind: Kind, name: str | None, namespace: str | None) -> str:
    whole = kind.kind if name is None else f"{kind.kind} {name}"
    return whole if namespace is None else f"{whole} in namespace {namespace}"


def _forbidden(detail: str, verb: str, kind: Kind, namespace: str | None) -> Forbidden:
    found = re.search(r'User "([^"]+)"', detail)
    user = found[1] if found else "this user"
    scope, where = (f"-n {namespace} ", f"in namespace {namespace}") if namespace else ("", "in all namespaces")
    role, binding = ("role", "rolebinding") if namespace else ("clusterrole", "clusterrolebinding")
    subject = (
        f"--serviceaccount={':'.join(user.split(':')[2:])}"
        if user.startswith("system:serviceaccount:")
        else f"--user={user}"
    )
    name = f"kitae-{verb}-{kind.plural}"
    return Forbidden(
        f"{user} may not {verb} {kind.resource} {where}: install the chart's RBAC, or add a {binding}:",
        details=[
            f"kubectl {scope}create {role} {name} --verb={verb} --resource={kind.resource}",
            f"kubectl {scope}create {binding} {name} --{role}={name} {subject}",
        ],
    )


def _from_environment() -> ApiClient:
    from kubernetes import config
    from kubernetes.client import ApiClient, Configuration

    configuration = Configuration()
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]  # the client is untyped
        else:
            path = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
            config.load_kube_config(  # type: ignore[no-untyped-call]  # likewise
                path, client_configuration=configuration, persist_config=False
            )
    except (config.ConfigException, OSError, ValueError) as error:
        raise ClusterUnreachable(
            f"no access to the Kubernetes API: {error}; outside a cluster KUBECONFIG must name a file with a context, "
            "inside a cluster the pod needs a service account with automountServiceAccountToken: true"
        ) from error
    return ApiClient(prepared(configuration))


def prepared(configuration: Configuration) -> Configuration:
    """Set the number of tries and of connections that `Cluster` relies on."""
    from urllib3.util.retry import Retry

    configuration.retries = Retry(2, status=0, other=0, backoff_factor=0.2, raise_on_status=False)
    configuration.connection_pool_maxsize = 64
    return configuration
