"""A Ray head for this machine alone: token authentication, its own ports, one process session.

Owns Ray's command line, its environment and the wait until it answers. Never calls `ray stop`, which stops every Ray of
the machine. Knows no jobs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray_jobs.errors import MachineError
from ray_jobs.local.embedded_store import tail
from ray_jobs.local.processes import Process, free_ports, spawn

# Often more than the cores of the machine: Ray CPUs limit admission, not load, and an idle replica must not keep a
# training worker from starting.
_LEAST_CPUS = 8
_OBJECT_STORE_BYTES = 2**30
_START_PATIENCE_S = 120.0


@dataclass(frozen=True)
class RayPorts:
    """Ports of 127.0.0.1: drivers need `gcs`, clients of the job and Serve API `dashboard`."""

    gcs: int
    dashboard: int
    client: int
    agent: int


def choose_ports() -> RayPorts:
    return RayPorts(*free_ports(4))


def start(root: Path, log: Path, ports: RayPorts, *, environment: Mapping[str, str]) -> Process:
    """Start the head; its workers inherit `environment`."""
    temporary = temp_dir(root)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(mode=0o700)
    except OSError as error:
        raise MachineError(f"cannot create {temporary}: {error.strerror}") from error
    command = [
        sys.executable,
        *("-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        f"--port={ports.gcs}",
        "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ports.dashboard}",
        f"--dashboard-agent-listen-port={ports.agent}",
        f"--ray-client-server-port={ports.client}",
        f"--num-cpus={max(_LEAST_CPUS, os.cpu_count() or 1)}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        f"--temp-dir={temporary}",
        # Nothing scales this one node or prints its workers' logs: each of the two takes seconds of the start.
        "--no-monitor",
        "--include-log-monitor=false",
    ]
    return spawn(command, environment=head_environment(environment), log=log, directory=root)


def head_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of the head and its workers. Pure."""
    # RAY_ADDRESS would make the head join that cluster.
    kept = {name: value for name, value in environment.items() if name not in ("RAY_ADDRESS", "RAY_NAMESPACE")}
    binaries = str(Path(sys.executable).parent)
    return kept | {
        "RAY_USAGE_STATS_ENABLED": "0",
        # `ray job stop` waits this long, in which a training writes a checkpoint (`ray_jobs.jobs.sigterm`).
        "RAY_JOB_STOP_WAIT_TIME_S": "100",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.http.serve_proxy:header_deadline",
        # Trainings and engines share this machine's cores. A thread that waits for the others of its process spins a
        # short time only: longer, it holds the core that they wait for. Alone, a training is as fast.
        "GOMP_SPINCOUNT": environment.get("GOMP_SPINCOUNT", "10000"),
        # A process in each training that reports machines about to end; here the only machine is this one.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # `python` and `ray` in a job are those of this environment.
        "PATH": os.pathsep.join([binaries, *filter(None, [environment.get("PATH", "")])]),
        # Ray's workers rename themselves; this keeps their environment readable, by which they are found.
        "SPT_NOENV": "1",
    }


def wait_until_ready(process: Process, ports: RayPorts, token: str, log: Path) -> None:
    """Wait until Ray answers. Raises MachineError, with the end of the log, if it does not."""
    deadline = time.monotonic() + _START_PATIENCE_S
    while not is_healthy(ports, token):
        if not process.alive or time.monotonic() > deadline:
            why = f"does not answer within {_START_PATIENCE_S:.0f} s" if process.alive else "ended at once"
            raise MachineError(f"Ray {why}; its log is {log}", details=tail(log))
        time.sleep(0.25)


def is_healthy(ports: RayPorts, token: str) -> bool:
    """True if the dashboard accepts the token and the head's node is alive."""
    import httpx  # takes a tenth of a second, which a command that starts nothing need not wait for

    url = f"{dashboard_url(ports)}/nodes?view=summary"
    try:
        answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=5, trust_env=False)
        nodes = answer.raise_for_status().json()["data"]["summary"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False
    return any(node.get("raylet", {}).get("state") == "ALIVE" for node in nodes)


def dashboard_url(ports: RayPorts) -> str:
    return f"http://127.0.0.1:{ports.dashboard}"


def temp_dir(root: Path) -> Path:
    """Directory of Ray's sockets and logs. Short: a unix socket's path has at most 107 bytes, and Ray adds 70."""
    return Path("/tmp") / f"kitae-{os.getuid()}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"


def keep_logs(root: Path, target: Path) -> None:
    """Move the last session's logs to `target`, and delete the rest of Ray's directory."""
    logs = temp_dir(root) / "session_latest" / "logs"
    if logs.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(logs, target, symlinks=True, ignore_dangling_symlinks=True)
    shutil.rmtree(temp_dir(root), ignore_errors=True)
