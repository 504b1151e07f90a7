"""The client of the Ray Serve REST API.

Owns the Serve config of deployment records, the requests that apply it, and the reading of application states. Does not
know the store. Answers come from `/api/serve/applications/` of the Ray dashboard (`ray.serve.schema`).
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from ray_jobs.deploy.records import Deployment
from ray_jobs.errors import MachineError, ServingError, SpecError
from ray_jobs.launch.ray_job import RayAddress
from ray_jobs.tasks import TASKS

INGRESS = "kitae"
"""Name of the Serve application that receives the requests."""

_PATH = "/api/serve/applications/"
_MESSAGE_LINES = 15


@dataclass(frozen=True)
class ServeSettings:
    """Addresses of the Ray cluster and of the endpoint."""

    dashboard_url: str
    """URL of the Ray dashboard, such as http://127.0.0.1:8265."""
    token: str | None
    """Ray's auth token. None: the cluster requires none."""
    host: str = "127.0.0.1"
    """Address the endpoint listens on; 0.0.0.0 for all."""
    port: int = 8000
    timeout_s: float = 900.0
    """Longest wait for the applications to run."""
    endpoint_url: str | None = None
    """URL of an endpoint that reconciles deployment records itself, so that deploying only writes them. None: records
    are applied to this cluster's Serve."""
    ingress: Mapping[str, Any] = field(default_factory=dict)
    """Options of the ingress's Serve deployment that replace the defaults in code (`DeploymentSchema`)."""

    @classmethod
    def from_env(cls) -> ServeSettings:
        """Settings from RAY_DASHBOARD_ADDRESS (or RAY_ADDRESS if it is a URL), RAY_AUTH_*, KITAE_HOST, KITAE_PORT,
        KITAE_ENDPOINT_URL and KITAE_INGRESS_OPTIONS (JSON). Raises SpecError for an invalid value."""
        ray = RayAddress.from_env()
        port = os.environ.get("KITAE_PORT") or "8000"
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise SpecError(f"KITAE_PORT is {port!r}; it must be a port number from 1 to 65535")
        endpoint_url = os.environ.get("KITAE_ENDPOINT_URL") or ""
        if endpoint_url and not endpoint_url.startswith(("http://", "https://")):
            raise SpecError(
                f"KITAE_ENDPOINT_URL is {endpoint_url!r}; it must be an address such as https://kitae.example"
            )
        return cls(
            dashboard_url=ray.dashboard_url,
            token=ray.token,
            host=os.environ.get("KITAE_HOST") or "127.0.0.1",
            port=int(port),
            endpoint_url=endpoint_url.rstrip("/") or None,
            ingress=_ingress_options(os.environ.get("KITAE_INGRESS_OPTIONS") or "{}"),
        )

    @property
    def url(self) -> str:
        """Base URL for clients: on this machine, unless the endpoint is elsewhere."""
        if self.endpoint_url is not None:
            return f"{self.endpoint_url}/v1"
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}/v1"


def serve_config(records: Iterable[Deployment], settings: ServeSettings) -> dict[str, Any]:
    """The whole Serve config: the ingress, and one application per record with its own engine. Pure.

    Serve leaves an application with unchanged arguments running, so a record's arguments hold only fields whose change
    needs a new engine. Raises ServingError for a record of an unknown task.
    """
    applications = [
        {
            "name": record.application,
            "route_prefix": None,
            "import_path": _import_path(record),
            "args": record.model_dump(mode="json", exclude={"label"}),
        }
        for record in records
        if record.kind != "adapter"
    ]
    ingress: dict[str, Any] = {"name": INGRESS, "route_prefix": "/", "import_path": "serving.app:build", "args": {}}
    if settings.ingress:
        ingress["deployments"] = [{"name": "Ingress", **settings.ingress}]
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": settings.host, "port": settings.port},
        "logging_config": {"enable_access_log": False},  # the proxy's: the ingress logs each request
        "applications": [ingress, *applications],
    }


def with_running(config: dict[str, Any], details: Mapping[str, Any], unreadable: Iterable[str]) -> dict[str, Any]:
    """The Serve config with the running applications of the records that cannot be read, unchanged. Pure.

    A damaged record, or one of a newer version of Kitae, must not stop what answers requests.
    """
    known = {application["name"] for application in config["applications"]}
    kept = []
    for name in unreadable:
        state = details.get("applications", {}).get(f"{INGRESS}-{name}", {})
        running = state.get("deployed_app_config")
        if running and f"{INGRESS}-{name}" not in known and state.get("status") != "DELETING":
            kept.append(running)
    return {**config, "applications": [*config["applications"], *kept]}


def _import_path(record: Deployment) -> str:
    if record.task not in TASKS:
        raise ServingError(
            f"{record.name!r} is deployed for the task {record.task!r}, which this version of Kitae does not know: "
            f"`kitae undeploy {record.name}`, or use the version that deployed it"
        )
    return TASKS[record.task].predictor or "serving.inference.llm:build"


def differing(details: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Kitae's applications that Serve lacks, runs with other arguments, or runs without a record. Pure.

    `details` comes from `ServeClient.details`, `config` from `serve_config`.
    """
    wanted = {application["name"]: application["args"] for application in config["applications"]}
    running = {
        name: (state.get("deployed_app_config") or {}).get("args", wanted.get(name))
        for name, state in details.get("applications", {}).items()
        if is_ours(name) and state.get("status") != "DELETING"
    }
    names = sorted(wanted.keys() | running.keys())
    return [name for name in names if name not in wanted or name not in running or wanted[name] != running[name]]


class ServeClient(AbstractContextManager["ServeClient"]):
    """Serve of one Ray cluster."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
        self._http = httpx.Client(base_url=settings.dashboard_url, headers=headers, timeout=60.0, trust_env=False)

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def details(self) -> dict[str, Any]:
        """The state of Serve (`ray.serve.schema.ServeInstanceDetails`)."""
        details: dict[str, Any] = self._request("GET").json()
        return details

    def check(self) -> None:
        """Check that Serve can run Kitae's applications.

        Raises MachineError if the port is in use, ServingError if Serve already listens on another port or runs other
        applications, which a new config would remove.
        """
        details = self.details()
        foreign = [name for name in details.get("applications", {}) if not is_ours(name)]
        if foreign:
            raise ServingError(
                f"this Ray cluster already serves {', '.join(sorted(foreign))}, which deploying would remove; shut "
                "Serve down there, or use a Ray cluster of Kitae's own"
            )
        running = details.get("http_options")
        if running:
            if running["port"] != self._settings.port:
                raise ServingError(
                    f"the endpoint already listens on port {running['port']}, and KITAE_PORT says "
                    f"{self._settings.port}: set KITAE_PORT to the first, or undeploy everything first"
                )
        elif urlsplit(self._settings.dashboard_url).hostname in ("127.0.0.1", "localhost", "::1"):
            require_free_port(self._settings.host, self._settings.port)

    def apply(self, config: dict[str, Any]) -> None:
        """Make Serve run exactly this config."""
        self._request("PUT", config)

    def wait_running(self, names: Iterable[str], progress: Callable[[str, float], None] | None = None) -> None:
        """Wait until the applications run. `progress` is called with each new status line and the elapsed seconds.

        Raises ServingError with the replica's message if one fails, or after `timeout_s`.
        """
        wanted, started, last = list(names), time.monotonic(), ""
        while True:
            details = self.details()
            applications = details.get("applications", {})
            listening = any(proxy.get("status") == "HEALTHY" for proxy in details.get("proxies", {}).values())
            states = {name: applications.get(name, {}) for name in wanted}
            for name, state in states.items():
                if state.get("status") in ("DEPLOY_FAILED", "UNHEALTHY"):
                    raise failure(name, state)
            elapsed_s = time.monotonic() - started
            line = ", ".join(f"{name} {state.get('status', 'waits').lower()}" for name, state in states.items())
            if progress is not None and line != last:
                progress(line, elapsed_s)
                last = line
            if listening and all(state.get("status") == "RUNNING" for state in states.values()):
                return
            if elapsed_s > self._settings.timeout_s:
                raise ServingError(
                    f"not everything runs after {self._settings.timeout_s:g} s: {line}",
                    details=[detail for state in states.values() for detail in _messages(state)],
                )
            time.sleep(0.5)

    def _request(self, method: str, body: dict[str, Any] | None = None) -> httpx.Response:
        where = self._settings.dashboard_url
        try:
            response = self._http.request(method, _PATH, json=body)
        except httpx.HTTPError as error:
            raise ServingError(f"Ray does not answer at {where} ({error}): start it, or set RAY_ADDRESS") from error
        if response.status_code in (401, 403):
            raise ServingError(
                f"Ray at {where} refused the token ({response.status_code}): set RAY_AUTH_TOKEN_PATH to the file that "
                "the cluster was started with"
            )
        if response.status_code != 200:
            raise ServingError(f"Ray at {where} answered {response.status_code}", details=_tail(response.text))
        return response


def is_ours(application: str) -> bool:
    """True if a Serve application is one of Kitae's."""
    return application == INGRESS or application.startswith(f"{INGRESS}-")


def failure(name: str, state: dict[str, Any]) -> ServingError:
    """The error for an application's failed state."""
    return ServingError(
        f"{name} did not start ({state.get('status', 'unknown').lower()})",
        details=_messages(state) or ["Serve gave no reason; see the logs of its replicas in the Ray dashboard"],
    )


def require_free_port(host: str, port: int) -> None:
    """Raise MachineError if the port is in use."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise MachineError(
                f"the endpoint cannot listen on {host}:{port} ({error.strerror or error}): set KITAE_PORT to a free "
                "port, or stop what uses this one"
            ) from error


def _ingress_options(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SpecError(f"KITAE_INGRESS_OPTIONS is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise SpecError("KITAE_INGRESS_OPTIONS is not a JSON object with options of a Serve deployment")
    return found


def _messages(state: dict[str, Any]) -> list[str]:
    deployments = state.get("deployments", {}).values()
    texts = [deployment.get("message", "") for deployment in deployments] or [state.get("message", "")]
    return [line for text in texts if text for line in _tail(text)]


def _tail(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()][-_MESSAGE_LINES:]
