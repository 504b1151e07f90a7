"""`.kitae/`: the files of the local service, readable by their owner only.

Owns their names and formats. Starts nothing.

    state.json  processes and ports               store/  the embedded store's data
    keys.json   the store's credentials           logs/   logs of store and Ray
    ray-token   Ray's bearer token                api-key the endpoint's bearer key
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from ray_jobs.errors import MachineError
from ray_jobs.local.embedded_store import Credentials, StorePorts
from ray_jobs.local.processes import Process
from ray_jobs.local.ray_head import RayPorts


@dataclass(frozen=True)
class LocalState:
    """The processes started last, whether or not they run. The store keeps its ports, since its address is in use."""

    endpoint_port: int
    store_ports: StorePorts
    store: Process | None
    ray_ports: RayPorts
    ray: Process | None


class Home:
    """The `.kitae/` of one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.path = self.root / ".kitae"
        self.logs = self.path / "logs"
        self.store_data = self.path / "store"
        self.token_path = self.path / "ray-token"

    def mark(self, part: str) -> str:
        """Value of `processes.MARK` in the environment of a part's processes; independent of state.json."""
        return f"{hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]}-{part}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the service for one command; creates the directory."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            self.logs.mkdir(exist_ok=True)
            file = (self.path / "lock").open("w")
        except OSError as error:
            raise MachineError(f"cannot write {self.path}: {error.strerror}") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def load(self) -> LocalState | None:
        """The saved state; None if nothing was ever started."""
        try:
            return TypeAdapter(LocalState).validate_json((self.path / "state.json").read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise MachineError(
                f"{self.path / 'state.json'} cannot be read ({error}): remove it; `kitae local down` stops what runs"
            ) from error

    def save(self, state: LocalState) -> None:
        self._write("state.json", json.dumps(asdict(state), indent=2))

    def credentials(self) -> Credentials:
        """The store's credentials, created on first use."""
        if not (self.path / "keys.json").exists():
            made = Credentials(secrets.token_hex(10), secrets.token_urlsafe(30))
            self._write("keys.json", json.dumps(asdict(made)))
        return Credentials(**json.loads(self._read("keys.json")))

    def ray_token(self) -> str:
        return self._secret(self.token_path.name)

    def api_key(self) -> str:
        return self._secret("api-key")

    def _secret(self, name: str) -> str:
        if not (self.path / name).exists():
            self._write(name, secrets.token_hex(32))
        return self._read(name).strip()

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except OSError as error:
            raise MachineError(f"cannot read {self.path / name}: {error.strerror}") from error

    def _write(self, name: str, text: str) -> None:
        temporary = self.path / f".{name}.{os.getpid()}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, self.path / name)
        except OSError as error:
            raise MachineError(f"cannot write {self.path / name}: {error.strerror}") from error
