"""The launcher of a Kubernetes cluster in a process of its own, behind a Unix socket.

    KITAE_CLUSTER=/etc/kitae/cluster/cluster.yaml python -m ray_jobs.launch.sidecar /run/kitae/launcher.sock

The Kubernetes token is mounted in this process's container alone. Code that runs in the endpoint's Ray cluster can
reach the socket at most, not the token: it can run jobs that the store has a record of, with the chart's image, and
stop runners, and nothing else. Does not know the store and needs none of its credentials.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ray_jobs.cluster import settings
from ray_jobs.cluster.client import Cluster
from ray_jobs.errors import ClusterError, KitaeError, SpecError
from ray_jobs.launch.kubernetes import KubernetesLauncher
from ray_jobs.launch.launcher import Launcher, Needs

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024
_RUNNER = re.compile(r"ftjob-[0-9a-z]+-[0-9]+")
"""Ids of the endpoint's runners. A release of charts/finetune-job has other names, and is not stopped from here."""
_PAUSE = re.compile(r"[0-9T:.+-]{1,40}")
_NEEDS = TypeAdapter(Needs)


class LauncherServer(ThreadingMixIn, UnixStreamServer):
    """Answers POST /check, /launch, /stop and /runners, each with a JSON object."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, socket: Path, launcher: Launcher, store: str) -> None:
        """`store`: value of KITAE_STORE that every runner gets, whatever a request says."""
        socket.unlink(missing_ok=True)  # of a former process: the directory outlives it
        super().__init__(str(socket), _Handler)
        self.launcher, self.store = launcher, store

    def answer(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a request asks for. Raises KitaeError."""
        match path:
            case "/check":
                self.launcher.check(_needs(body))
            case "/launch":
                needs, runner_id, arguments = _needs(body), _runner_id(body), _arguments(body)
                if arguments[1] != needs.job_id:
                    raise ClusterError(f"the runner is of job {arguments[1]!r}, and its needs are of {needs.job_id!r}")
                # The values follow from the settings and the needs, whatever the request says.
                environment = {"KITAE_STORE": self.store, "KITAE_TEAM": needs.team}
                if other := sorted(set(body.get("environment") or {}) - set(environment)):
                    raise ClusterError(f"a runner's environment is {', '.join(environment)}, not {', '.join(other)}")
                self.launcher.launch(runner_id, arguments, environment, needs)
            case "/stop":
                self.launcher.stop(_runner_id(body))
            case "/runners":
                found = self.launcher.runners(str(body.get("prefix", "")), fresh=body.get("fresh") is True)
                return {"runners": {runner_id: asdict(runner) for runner_id, runner in found.items()}}
            case _:
                raise ClusterError(f"the launcher has no {path}")
        return {}


class _Handler(BaseHTTPRequestHandler):
    server: LauncherServer
    timeout = 60.0

    def do_POST(self) -> None:  # the name that http.server calls
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if length > MAX_BODY_BYTES:
                raise ClusterError(f"the request has {length} bytes, and the launcher takes at most {MAX_BODY_BYTES}")
            body = json.loads(self.rfile.read(length) or b"{}")
            status, answer = 200, self.server.answer(self.path, body if isinstance(body, dict) else {})
        except KitaeError as error:
            status = 422
            answer = {"error": type(error).__name__, "message": error.message, "details": list(error.details)}
        except ValueError as error:
            status, answer = 422, {"error": "ClusterError", "message": f"the request is not JSON: {error}"}
        except Exception:  # the caller gets an answer; the log has the reason
            logger.exception("the launcher failed")
            status, answer = 500, {"error": "ClusterError", "message": "the launcher failed; its log has the reason"}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def address_string(self) -> str:
        return "the endpoint"  # a Unix socket has no peer address

    def log_message(self, format: str, *args: Any) -> None:
        """No access log: each endpoint process asks every two seconds."""


def _needs(body: Mapping[str, Any]) -> Needs:
    try:
        return _NEEDS.validate_python(body.get("needs"))
    except ValidationError as error:
        where = ", ".join(".".join(map(str, each["loc"])) or "needs" for each in error.errors())
        raise ClusterError(f"the needs of the runner are invalid: {where}") from error


def _runner_id(body: Mapping[str, Any]) -> str:
    runner_id = body.get("runner_id")
    if not isinstance(runner_id, str) or not _RUNNER.fullmatch(runner_id):
        raise ClusterError(f"{runner_id!r} is not the id of a runner of the endpoint")
    return runner_id


def _arguments(body: Mapping[str, Any]) -> list[str]:
    """`resume JOB --launched [--paused-at TIME]`: the only command of a runner."""
    match body.get("arguments"):
        case ["resume", str(job), "--launched"] if job and not job.startswith("-"):
            return ["resume", job, "--launched"]
        case ["resume", str(job), "--launched", "--paused-at", str(pause)] if (
            job and not job.startswith("-") and _PAUSE.fullmatch(pause)
        ):
            return ["resume", job, "--launched", "--paused-at", pause]
    raise ClusterError("a runner's arguments are `resume JOB --launched`, with --paused-at TIME if it was paused")


def main(socket: str, environment: Mapping[str, str]) -> None:
    """Serve until the process ends. SpecError if KITAE_CLUSTER is missing or invalid."""
    found = settings.from_environment(environment)
    if found is None:
        raise SpecError("KITAE_CLUSTER is not set: name the cluster's settings (the chart's cluster.yaml)")
    launcher = KubernetesLauncher(Cluster.connect(), found)
    with LauncherServer(Path(socket), launcher, found.store.get("KITAE_STORE", "")) as server:
        logger.info("the launcher listens on %s", socket)
        server.serve_forever()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if len(sys.argv) != 2:
        sys.exit("usage: python -m ray_jobs.launch.sidecar SOCKET")
    main(sys.argv[1], os.environ)
