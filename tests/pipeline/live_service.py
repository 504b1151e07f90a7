"""A service whose parts a test may kill and start again: Ray with token authentication, and the command line.

Commands reach the store through a gateway, so that a test can act in the middle of a checkpoint's upload.
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ray_jobs import jobs
from ray_jobs.local import processes, ray_head
from ray_jobs.local.processes import Process
from ray_jobs.storage import Workspace
from ray_jobs.training import checkpoint
from ray_jobs.training.checkpoint import Checkpoint
from tests.conftest import StoreServer
from tests.repository import ROOT
from tests.storage.gateway import Gateway

PATIENCE_S = 900.0
"""Far longer than any wait here takes on an idle machine."""


@dataclass
class Driver:
    """A `kitae` command that runs in the background."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def last_line(self) -> str:
        """The command's own last line: Ray prints messages of a raylet as they arrive, also after the end."""
        return [line for line in self.output.strip().splitlines() if "(raylet)" not in line][-1]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler writes the stack of each thread
            self.process.wait()
            raise AssertionError(f"still running after {timeout_s:.0f} s:\n{self.output}") from None


@dataclass
class Service:
    """A Ray head in its own directory, and a store server that the caller owns."""

    root: Path
    server: StoreServer
    gateway: Gateway
    ports: ray_head.RayPorts = field(default_factory=ray_head.choose_ports)
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    mark: str = field(default_factory=lambda: secrets.token_hex(16))
    ray: Process = field(default_factory=lambda: Process(0, ""))
    drivers: list[Driver] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def scratch(self) -> Path:
        """Directory in which workers write checkpoints before the upload."""
        return self.root / "scratch"

    def environment(self, uri: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KITAE", "RAY", "AWS"))}
        (self.root / "token").write_text(self.token)
        return kept | self.server.environment(uri) | {
            "AWS_ENDPOINT_URL": self.gateway.url,
            "KITAE_CACHE": str(self.root / "cache"),
            "RAY_ADDRESS": f"127.0.0.1:{self.ports.gcs}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.root / "token"),
            "PYTHONFAULTHANDLER": "1",
        }  # fmt: skip

    def start_ray(self) -> None:
        self.scratch.mkdir(exist_ok=True)
        if not all(processes.is_free(port) for port in vars(self.ports).values()):
            self.ports = ray_head.choose_ports()
        environment = self.environment("s3://kitae/unused") | {
            "TMPDIR": str(self.scratch),
            processes.MARK: self.mark,
        }
        log = self.root / "ray.log"
        self.ray = ray_head.start(self.root, log, self.ports, environment=environment)
        ray_head.wait_until_ready(self.ray, self.ports, self.token, log)

    def kill_ray(self) -> None:
        """SIGKILL every process of the cluster: head, agents, actors, workers."""
        found = processes.family([self.ray], self.mark)
        assert len(found) > 3
        for process in found:
            _kill(process)
        processes.stop([self.ray], self.mark)

    def recover(self) -> None:
        """End commands that a test left running, and start what it left dead."""
        for driver in self.drivers:
            driver.kill()
        self.drivers.clear()
        if not self.server.process.alive:
            self.server.start()
        if not self.ray.alive:
            self.start_ray()

    def stop(self) -> None:
        for driver in self.drivers:
            driver.kill()
        processes.stop([self.ray], self.mark)
        ray_head.keep_logs(self.root, self.root / "ray-session")

    def workers(self) -> list[Process]:
        """The training processes."""
        family = processes.family([self.ray], self.mark)
        return [process for process in family if "RayTrainWorker" in command_line(process)]

    def kitae(self, store: Workspace, *arguments: str, **environment: str) -> Driver:
        """Start a `kitae` command in the background on a store of this service."""
        log = self.root / f"driver-{next(self.numbers)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray_jobs", *arguments],
                env=self.environment(store.uri()) | environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.drivers.append(Driver(process, log))
        return self.drivers[-1]


@dataclass(frozen=True)
class Watched:
    """A job as its store shows it."""

    store: Workspace
    job_id: str

    @property
    def prefix(self) -> str:
        """Prefix of the training's checkpoints."""
        folder = f"jobs/{self.job_id}/checkpoints/"
        return next((folder + name for name in self.store.list_dirs(folder)), folder + "none")

    def committed(self) -> list[Checkpoint]:
        return checkpoint.committed(self.store, self.prefix)

    def step(self) -> int:
        """Step of the last committed checkpoint; 0 without one."""
        return max((found.position.step for found in self.committed()), default=0)

    def half_written(self) -> list[str]:
        """Names of checkpoints that have no manifest."""
        return [key.rpartition("/")[2] for key in checkpoint.uncommitted(self.store, self.prefix)]

    def wait_for_step(self, step: int, driver: Driver) -> int:
        """Wait until a checkpoint of that step or a later one is committed; returns its step."""
        wait_until(lambda: self.step() >= step, driver, f"a checkpoint of step {step}")
        return self.step()

    def status(self) -> str:
        return jobs.load(self.store, self.job_id).status


def wait_until(condition: Callable[[], bool], driver: Driver, what: str, *, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert driver.process.poll() is None, f"ended before {what}:\n{driver.output}"
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:.0f} s:\n{driver.output}"
        time.sleep(0.25)


def sender_of(client_port: int | None, among: list[Process]) -> Process:
    """The process that a connection comes from."""
    for process in among:
        if any(c.laddr.port == client_port for c in psutil.Process(process.pid).net_connections("tcp") if c.laddr):
            return process
    raise AssertionError(f"none of {among} has port {client_port}")


def kill(process: Process) -> None:
    assert process.alive
    _kill(process)


@contextmanager
def live_service(root: Path, server: StoreServer) -> Iterator[Service]:
    gateway = Gateway(server.ports.s3)
    service = Service(root, server, gateway)
    try:
        service.start_ray()
        yield service
    finally:
        service.stop()
        gateway.close()


def _kill(process: Process) -> None:
    if process.alive:
        os.kill(process.pid, signal.SIGKILL)


def command_line(process: Process) -> str:
    """What the process runs; empty if it has ended."""
    try:
        return Path(f"/proc/{process.pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
