"""A fake Kubernetes API server over HTTP, in a thread: answers the official client as a real one does.

Implemented:
- objects with uid, creationTimestamp, generation (incremented with `spec`) and a server-wide resourceVersion;
- create, get, list, merge patch, replace, delete; `dryRun=All`; `generateName`; status written by its controller only;
- bodies are validated strictly (an unknown field, a null, a wrong type: 422), by KubeRay's and Kueue's own schemas
  if `../shared/crds` exists and by `tests/cluster/schemas.py`; names and labels too; webhooks may refuse more;
- 409 AlreadyExists for a taken name (also of an object being deleted), 409 Conflict for an old resourceVersion, 404
  for a missing object or namespace and, as plain text, for an unserved kind;
- label and field selectors; pages (`limit`, `continue`) whose token expires (410) when the history is forgotten;
- watches from a version, with bookmarks, `timeoutSeconds`, objects that leave a selector as DELETED, 410 as an event;
- deletion of owned objects; finalizers; delayed deletion (`objects.deletion_lingers`, `collect`);
- bearer tokens (401 for an expired one) and RBAC (403 with a real server's message).

Not implemented: server-side apply, strategic merge, subresources other than `status`, CEL rules, TLS, quotas, and
controllers; those of Kueue and KubeRay are in `tests/kueue/fake_kueue.py`.

Faults on demand: `fail` (the next answers are a status), `drop` (the connection breaks before or after the request; for
a watch, within the second line), `down` (every connection breaks).

    with fake_kubernetes() as server:
        cluster = server.connect()
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from ray_jobs.cluster.client import Cluster, prepared
from ray_jobs.cluster.kinds import Kind, Object
from tests.cluster.kubernetes_objects import Objects, Refused, bad_request, seen_as, selects, selects_fields

USER = "system:serviceaccount:kitae:kitae-endpoint"
_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>v[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<subresource>status))?"
)
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Request:
    """A received request."""

    method: str
    verb: str
    """RBAC's name of the verb."""
    kind: Kind | None
    path: str
    namespace: str | None
    name: str | None
    query: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Rule:
    """A permission; "*" matches everything."""

    verbs: tuple[str, ...]
    plurals: tuple[str, ...]
    namespaces: tuple[str, ...] = ("*",)


@dataclass
class _Fault:
    when: Callable[[Request], bool]
    times: int
    status: int | None = None
    """None: the connection breaks."""
    after: bool = False
    """The request is executed before the fault."""


@dataclass
class FakeKubernetes:
    """See the module."""

    objects: Objects = field(default_factory=Objects)
    rules: list[Rule] | None = None
    """None: everything is permitted."""
    token: str = "token-1"
    """The only valid token."""
    down: bool = False
    watch_ends_when_idle: bool = False
    """A watch ends with a bookmark once it has sent every event, so that a test does not wait."""
    bookmark_every_s: float = 0.2
    requests: list[Request] = field(default_factory=list)
    """Every received request, also those with faults."""
    _faults: list[_Fault] = field(default_factory=list)
    server: ThreadingHTTPServer | None = None
    stopping: bool = False

    # ---- for tests ---------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        assert self.server is not None
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def connect(self, *, token: Callable[[], str] | None = None, page_size: int = 500) -> Cluster:
        """A client that logs in with the token valid at that time, or with that of `token`."""
        from kubernetes.client import ApiClient, Configuration

        def log_in() -> ApiClient:
            configuration = prepared(Configuration(host=self.url))
            configuration.proxy = None
            configuration.retries = configuration.retries.new(backoff_factor=0)  # type: ignore[union-attr]  # set there
            configuration.api_key["BearerToken"] = f"Bearer {self.token if token is None else token()}"
            return ApiClient(configuration)

        return Cluster(log_in, page_size=page_size)

    def write_kubeconfig(self, path: Path) -> None:
        """For `Cluster.connect()` and kubectl."""
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": self.token}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "test", "namespace": "default"}}],
            "current-context": "fake",
        }
        path.write_text(yaml.safe_dump(document), encoding="utf-8")

    def fail(self, status: int, *, times: int = 1, when: Callable[[Request], bool] = lambda _: True) -> None:
        """Answer the next matching requests with this status, without executing them."""
        self._faults.append(_Fault(when, times, status))

    def drop(self, *, after: bool = False, times: int = 1, when: Callable[[Request], bool] = lambda _: True) -> None:
        """Break the connection of the next matching requests; `after`: once they are executed."""
        self._faults.append(_Fault(when, times, None, after))

    def heal(self) -> None:
        """Remove all faults."""
        self.down = False
        self._faults.clear()

    def expire_token(self) -> None:
        """Replace the valid token."""
        self.token = f"token-{int(self.token.rpartition('-')[2]) + 1}"

    # ---- requests ----------------------------------------------------------------------------------------------------

    def answer(self, handler: _Handler) -> None:
        request = self._read(handler)
        self.requests.append(request)
        fault = next((fault for fault in self._faults if fault.times > 0 and fault.when(request)), None)
        if fault is not None:
            fault.times -= 1
        if self.down or (fault is not None and fault.status is None and not fault.after):
            handler.hang_up()
            return
        try:
            if fault is not None and fault.status is not None:
                raise Refused(fault.status, "InternalError", f"a fault of the test ({fault.status})")
            self._authorise(handler, request)
            if request.verb == "watch":
                self._watch(handler, request, breaks=fault is not None)
                return
            code, document = self._do(request)
        except Refused as refused:
            code, document = refused.code, refused.status
        except _NoSuchPath:
            handler.send(404, b"404 page not found\n", "text/plain")
            return
        if fault is not None and fault.after:
            handler.hang_up()
            return
        handler.send(code, json.dumps(document).encode(), "application/json")

    def _read(self, handler: _Handler) -> Request:
        url = urlsplit(handler.path)
        query = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        length = int(handler.headers.get("Content-Length") or 0)
        content = handler.rfile.read(length)
        body = json.loads(content) if content else None
        match, kind, namespace, name = _PATH.fullmatch(url.path), None, None, None
        if match is not None:
            namespace, name = match["namespace"], match["name"]
            key = (match["group"] or "", match["version"], match["plural"])
            kind = next((k for k in self.objects.kinds if (k.group, k.version, k.plural) == key), None)
        verb = _VERBS.get(handler.command, "list" if name is None else "get")
        if verb == "list" and query.get("watch") in ("1", "true"):
            verb = "watch"
        return Request(handler.command, verb, kind, url.path, namespace, name, query, body)

    def _authorise(self, handler: _Handler, request: Request) -> None:
        if handler.headers.get("Authorization") != f"Bearer {self.token}":
            raise Refused(401, "Unauthorized", "Unauthorized")
        kind = request.kind
        if self.rules is None or kind is None:
            return
        for rule in self.rules:
            if (
                {request.verb, "*"} & set(rule.verbs)
                and {kind.plural, "*"} & set(rule.plurals)
                and {request.namespace or "", "*"} & set(rule.namespaces)
            ):
                return
        where = "at the cluster scope" if not request.namespace else f'in the namespace "{request.namespace}"'
        name = f' "{request.name}"' if request.name else ""
        message = (
            f'{kind.resource}{name} is forbidden: User "{USER}" cannot {request.verb} resource "{kind.plural}" '
            f'in API group "{kind.group}" {where}'
        )
        raise Refused(403, "Forbidden", message, name=request.name, group=kind.group, kind=kind.plural)

    def _do(self, request: Request) -> tuple[int, Object]:
        if request.path == "/version":
            return 200, {"major": "1", "minor": "37", "gitVersion": "v1.37.0"}
        if (group := re.fullmatch(r"/apis/([^/]+)", request.path)) is not None:
            return 200, self._group(group[1])
        kind = request.kind
        if kind is None:
            raise _NoSuchPath
        name, namespace = request.name, request.namespace
        match request.verb:
            case "list":
                return 200, self._list(kind, request)
            case "get":
                return 200, self.objects.get(kind, str(name), namespace)
            case "create":
                return 201, self.objects.create(kind, _document(request), namespace)
            case "patch":
                body = _document(request)
                if request.path.endswith("/status"):
                    return 200, self.objects.set_status(kind, str(name), namespace, body["status"])
                return 200, self.objects.patch(kind, str(name), body, namespace)
            case "update":
                return 200, self.objects.replace(kind, str(name), _document(request), namespace)
            case _:
                return 200, self.objects.delete(kind, str(name), namespace)

    def _group(self, group: str) -> Object:
        versions = sorted({kind.version for kind in self.objects.kinds if kind.group == group})
        if not versions:
            raise _NoSuchPath
        served = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
        return {"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": served}

    def _list(self, kind: Kind, request: Request) -> Object:
        query = request.query
        with self.objects.changed:
            version, start = self.objects.version, 0
            if token := query.get("continue"):
                version, start = (int(part) for part in token.split(":"))
                if version < self.objects.forgotten:
                    raise Refused(410, "Expired", "The provided continue parameter is too old")
            found = self.objects.list(
                kind, request.namespace, query.get("labelSelector", ""), query.get("fieldSelector", "")
            )
            metadata: Object = {"resourceVersion": str(version)}
            end = len(found) if not query.get("limit") else start + int(query["limit"])
            if end < len(found):
                metadata |= {"continue": f"{version}:{end}", "remainingItemCount": len(found) - end}
        items = [
            {key: value for key, value in o.items() if key not in ("kind", "apiVersion")} for o in found[start:end]
        ]
        return {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": metadata, "items": items}

    def _watch(self, handler: _Handler, request: Request, *, breaks: bool) -> None:
        kind, query, objects = request.kind, request.query, self.objects
        if kind is None:
            raise _NoSuchPath
        selector, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
        ends_at = time.monotonic() + float(query.get("timeoutSeconds") or 1800)
        bookmarks = query.get("allowWatchBookmarks") in ("1", "true")
        handler.begin_stream()
        since = query.get("resourceVersion") or "0"
        with objects.changed:
            if since == "0":
                since = str(objects.version)
                for found in objects.list(kind, request.namespace, selector, fields):
                    handler.send_event("ADDED", found)
        sent, bookmark_at = int(since), time.monotonic() + self.bookmark_every_s
        while True:
            with objects.changed:
                expired = sent < objects.forgotten
                due = [change for change in objects.history if change.version > sent and change.kind == kind]
                newest = objects.version
            if expired:
                gone = Refused(410, "Expired", f"too old resource version: {sent} ({objects.version})")
                handler.send_event("ERROR", gone.status)
                break
            for change in due:
                inside = request.namespace in (None, change.object["metadata"].get("namespace"))
                what = seen_as(change, selector) if inside and selects_fields(fields, change.object) else None
                if what is not None:
                    handler.send_event(what, change.object)
                    if breaks:
                        handler.wfile.write(b'40\r\n{"type": "MODIF')
                        handler.hang_up()
                        return
            sent = newest
            over = self.stopping or self.down or time.monotonic() >= ends_at or self.watch_ends_when_idle
            if bookmarks and (over or time.monotonic() >= bookmark_at):
                bookmark_at = time.monotonic() + self.bookmark_every_s
                handler.send_event("BOOKMARK", _bookmark(kind, sent))
            if over:
                break
            with objects.changed:
                if objects.version == sent:
                    objects.changed.wait(timeout=min(0.1, max(0.0, ends_at - time.monotonic())))
        if self.down:
            handler.hang_up()
        else:
            handler.end_stream()


def _bookmark(kind: Kind, version: int) -> Object:
    metadata = {"resourceVersion": str(version), "creationTimestamp": None}
    return {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata}


def _document(request: Request) -> Object:
    if not isinstance(request.body, dict):
        raise bad_request("the body is no object")
    return request.body


class _NoSuchPath(Exception):
    """The path is not served."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: without this the second waits 40 ms
    fake: FakeKubernetes

    def do(self) -> None:
        try:
            self.fake.answer(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do

    def send(self, code: int, content: bytes, content_type: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_event(self, what: str, found: Object) -> None:
        line = json.dumps({"type": what, "object": found}).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def fake_kubernetes(**facts: Any) -> Iterator[FakeKubernetes]:
    """A running server on a free port."""
    fake = FakeKubernetes(**facts)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    server.daemon_threads = True
    fake.server = server
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.stopping = True
        with fake.objects.changed:
            fake.objects.changed.notify_all()
        server.shutdown()
        server.server_close()
        thread.join()


__all__ = ["FakeKubernetes", "Request", "Rule", "fake_kubernetes", "selects"]
